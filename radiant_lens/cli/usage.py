"""Errors of usage that typer itself finds, with the value that was given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup


class Commands(TyperGroup):
    """The group of all commands; a value that cannot be read is named in the message, which typer leaves out."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and add the value to a message about it."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            value = given_value(getattr(error.param, "opts", ()), sys.argv[1:])
            if value is not None and repr(value) not in error.message:
                error.message = f"{error.message.rstrip('.')}; got {value!r}."
            raise


def given_value(names: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Return the value of an option in the arguments of a command, the last one if there are several.

    Example:
        >>> given_value(["--seed"], ["fit", "--seed", "x"])
        'x'
    """
    value = None
    for i, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if name in names:
            value = text if equals else next(iter(arguments[i + 1 :]), None)
    return value
