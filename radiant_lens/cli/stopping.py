"""Ctrl-C and SIGTERM as one sentence and a status; what was being written is cleared away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The process was asked to stop. No `Exception`, so that nobody who goes on after errors goes on after this."""

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}; what was complete is kept, and nothing else is left.")
        self.exit_status = 128 + number


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, both signals raise `Stopped`, so that temporary files are removed; handlers are put back."""
    if threading.current_thread() is not threading.main_thread():
        # Python lets no other thread set handlers.
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
