"""Hooks that a user adds to the passes of `collect` and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_EVERY_PASS = hook_name(0)


class UserHooks:
    """Hooks of a user that count as an error where they never run.

    A bridge lists places that its passes never reach, such as `hook_pos_embed` where positions are rotary, and takes
    hooks there. Results would be those without the hook, and look like those with it. Whether a place is reached is
    known only after a pass: a part of a mixture of experts, for one, runs for some texts and not for others.

    Args:
        model: from `load_model`.
        fwd_hooks: TransformerLens pairs; in place of a name, a filter of names is taken too.

    Attributes:
        pairs: the same hooks, whose runs are noted.

    Raises:
        UnknownNameError: the model has no hook of that name.
    """

    def __init__(self, model: TransformerBridge, fwd_hooks: Sequence[tuple[Any, HookFunction]]) -> None:
        for name, _ in fwd_hooks:
            if isinstance(name, str):
                _checks.known("hook of this model", name, model.hook_dict)
        self._names = [name for name, _ in fwd_hooks]
        self._ran: set[int | None] = set()
        self.pairs: list[tuple[Any, HookFunction]] = [
            (name, self._noted(i, function)) for i, (name, function) in enumerate(fwd_hooks)
        ]
        if self.pairs:
            # A rank without texts runs no pass, and then no hook.
            self.pairs.append((_EVERY_PASS, self._noted(None, lambda z, hook: z)))

    def _noted(self, index: int | None, function: HookFunction) -> HookFunction:
        def run(*args: Any, **options: Any) -> Any:
            self._ran.add(index)
            return function(*args, **options)

        return run

    def require_runs(self) -> None:
        """Raise `InvalidArgumentError` for a hook that never ran, though the model did."""
        idle = [name for i, name in enumerate(self._names) if i not in self._ran]
        if None in self._ran and idle:
            raise InvalidArgumentError(
                f"The hook at {idle[0]!r} never ran, so the results would be those without it: no pass of this model "
                f"reaches that place. Remove the hook, or choose a place that is reached, such as {_EVERY_PASS!r}."
            )
