"""`SteerBlock`: the context manager that `steer` returns, which warns where its `with` was forgotten."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from types import TracebackType

from radiant_lens.hooks.trace import Trace

_NOT_ENTERED = (
    "`steer` was called without `with`, so nothing was steered: write `with rl.steer(model, steering):` and generate "
    "inside that block."
)


class SteerBlock(AbstractContextManager[Trace], ContextDecorator):
    """Switches a steering on where its block is entered and off where it is left; may be entered several times.

    Args:
        switch_on: makes the context manager of one block.
    """

    def __init__(self, switch_on: Callable[[], AbstractContextManager[Trace]]) -> None:
        self._switch_on, self._entered = switch_on, False
        self._open: list[AbstractContextManager[Trace]] = []

    def __repr__(self) -> str:
        """State of the block; a notebook keeps the result of a cell, so it shows this in place of the warning."""
        if not self._entered:
            return f"SteerBlock(not entered: {_NOT_ENTERED})"
        return f"SteerBlock({'steering' if self._open else 'left'})"

    def __enter__(self) -> Trace:
        """Switch the steering on; returns the trace."""
        self._entered = True
        block = self._switch_on()
        trace = block.__enter__()
        self._open.append(block)
        return trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Switch the steering off."""
        return self._open.pop().__exit__(kind, error, traceback)

    def __del__(self) -> None:
        """Warn where the block was never entered, as the steering would be missed in silence."""
        if not self._entered:
            # Python frees the object in the line that forgot it, which is the caller's frame.
            warnings.warn(_NOT_ENTERED, UserWarning, stacklevel=2, source=self)
