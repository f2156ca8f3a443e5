"""Ctrl-C and SIGTERM: one sentence, an exit status, and no temporary files left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The process was asked to stop.

    Derives from `BaseException`, so that `except Exception` does not swallow it.
    """

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}; what was complete is kept, and nothing else is left.")
        # As shells do: 130 after Ctrl-C, 143 after SIGTERM.
        self.exit_status = 128 + number


@contextmanager
def interruptible() -> Generator[None]:
    """Raise `Stopped` on both signals inside the context, so that `finally` blocks remove temporary files."""
    if threading.current_thread() is not threading.main_thread():
        # Python allows only the main thread to set handlers.
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
