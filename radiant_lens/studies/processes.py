"""Work shared among processes of this machine: none outlives the one that asked for it, and one that dies is told."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

import torch

from radiant_lens.errors import RadiantError

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_processes(function: Callable[[Part], Result], parts: Sequence[Part], n_jobs: int) -> Generator[Result]:
    """Results of a function that can be pickled, in the order of the parts; threads are shared, too.

    Whatever ends this early (an error, Ctrl-C, SIGTERM, closing the generator) ends the other processes at once, with
    their temporary files removed.

    Raises:
        RadiantError: one of them has died.
    """
    # A process that is forked inherits the locks of this one's threads.
    threads = max(1, torch.get_num_threads() // n_jobs)
    pool = ProcessPoolExecutor(n_jobs, get_context("spawn"), initializer=_begin, initargs=(threads,))
    others = set(active_children())
    try:
        yield from pool.map(partial(_ended_by_signals, function), parts)
    except BrokenProcessPool as error:
        raise RadiantError(
            f"One of {n_jobs} processes has died, perhaps for want of memory: try fewer. What was complete is kept."
        ) from error
    except BaseException:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ended_by_signals(function: Callable[[Part], Result], part: Part) -> Result:
    """The pool takes every exception for a result, and would go on with the next part."""
    try:
        return function(part)
    except SystemExit:
        os._exit(1)
