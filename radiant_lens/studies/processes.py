"""Processes that share work on one machine. None outlives its parent, and the death of one raises an error."""

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

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def in_processes(function: Callable[[Chunk], Result], chunks: Sequence[Chunk], n_jobs: int) -> Generator[Result]:
    """Compute a function of each chunk in `n_jobs` processes; results come in the order of the chunks.

    The processes share the threads of this one. An early end (an error, Ctrl-C, SIGTERM, closing the generator) ends
    them at once and removes their temporary files.

    Args:
        function: can be pickled.
        chunks: arguments of the function.
        n_jobs: number of processes.

    Raises:
        RadiantError: a process has died.
    """
    # "spawn", not "fork": a forked process inherits locks that this one's threads hold, and waits for them forever.
    threads = max(1, torch.get_num_threads() // n_jobs)
    pool = ProcessPoolExecutor(n_jobs, get_context("spawn"), initializer=_begin, initargs=(threads,))
    others = set(active_children())
    try:
        yield from pool.map(partial(_ended_by_signals, function), chunks)
    except BrokenProcessPool as error:
        raise RadiantError(
            f"One of {n_jobs} processes has died, perhaps for lack of memory: try fewer processes. Finished cells are "
            "kept."
        ) from error
    # `BaseException`: Ctrl-C, SIGTERM (which the command line turns into `SystemExit`) and the closing of this
    # generator must end the other processes as well.
    except BaseException:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    # `sys.exit` instead of the default, which would skip the removal of temporary files.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed with SIGKILL cannot end its children; each waits for its parent's end in a thread.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ended_by_signals(function: Callable[[Chunk], Result], chunk: Chunk) -> Result:
    """End the process on `SystemExit`; the pool would return the exception as a result and start the next chunk."""
    try:
        return function(chunk)
    except SystemExit:
        os._exit(1)
