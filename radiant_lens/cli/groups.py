"""Options that several commands share, as one parameter: a class with a field for each option.

A command states `reading: Reading`, and its help lists every option of `Reading`. So an option of several commands has
one name, one default and one line of help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, ClassVar, get_type_hints


class OptionGroup:
    """Base of frozen dataclasses whose fields are options of a command.

    Attributes:
        panel: heading of the options in the help.
    """

    panel: ClassVar[str]


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter of a command that is an `OptionGroup` by the options of the group, for typer."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, OptionGroup)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            # Keyword-only, because an option without a default may follow one with a default; typer passes names.
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[name]))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in _options(group)})
        command(**values)

    # typer reads the signature and, separately, the annotations.
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_in_panel(hints[field.name], group.panel),
        )
        for field in fields(group)
    ]


def _in_panel(annotation: Any, panel: str) -> Any:
    kind, option = annotation.__origin__, copy(annotation.__metadata__[0])
    option.rich_help_panel = panel
    return Annotated[kind, option]
