"""The processes that `torchrun` or `accelerate launch` started together (ranks), and the sharing of work among them.

All ranks run the same program and make the same calls in the same order. A call that shares work divides it, and
returns the whole result in every rank. Ranks meet only in `gather` and `sum`; everything else is ordinary code, and one
process by itself runs it without any meeting.

Sharing could fail in two ways:

- A rank dies. The others get a `RankError` at their next meeting, since the connection to it is closed.
- A rank makes a call that the others do not make. It would wait for them for ever. Hence work that one rank does by
  itself runs inside `alone`, and fits are shared only inside `together`, where the caller promises equal calls.

torch is imported only where ranks meet, so that the command line can ask for its rank without it.

Of all ranks the first alone shows progress.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

from radiant_lens.errors import RankError

if TYPE_CHECKING:
    from torch import Tensor

# A rank may wait for a slower one for days, as long as that one works. No timeout is needed to notice a death: the
# connection closes at once.
PATIENCE = timedelta(days=7)

# Context variables, not globals: threads, and blocks inside of blocks, do not change one another's state.
_ALONE = ContextVar("alone", default=False)
_TOGETHER = ContextVar("together", default=False)
_BAR: ContextVar[Progress | None] = ContextVar("bar", default=None)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Rank(NamedTuple):
    """The `number` of this process, counted from 0, among `n` processes."""

    number: int
    n: int

    def wait(self) -> None:
        """Wait until every rank has called this."""
        self.gather(None)

    def gather(self, mine: Result) -> list[Result]:
        """Return the arguments of all ranks, by number, to every rank.

        Raises:
            RankError: a rank has died.
        """
        if self.n == 1:
            return [mine]
        from torch import distributed as dist

        gathered: list[Any] = [None] * self.n
        with self._rank_errors():
            dist.all_gather_object(gathered, mine)
        return gathered

    def sum(self, mine: Tensor) -> Tensor:
        """Return the sum of the arguments of all ranks to every rank.

        Raises:
            RankError: a rank has died.
        """
        if self.n > 1:
            from torch import distributed as dist

            with self._rank_errors():
                dist.all_reduce(mine)
        return mine

    @contextmanager
    def _rank_errors(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"Rank {self.number} of {self.n} stopped because another one has died; the message or signal of that "
                "one says why. The same command, given again, continues from the finished work in its folder."
            ) from error

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of the items as one contiguous slice; the slices of all ranks, in order, are the items."""
        # Both ends are rounded by the same formula, so slices neither overlap nor leave gaps.
        return items[self.number * len(items) // self.n : (self.number + 1) * len(items) // self.n]


def launched() -> Rank:
    """Return the rank of this process as the launcher's environment states it, without joining the group."""
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def this_rank() -> Rank:
    """Return the rank of this process among those that were launched together.

    Rank 0 of 1 inside `alone`, and for a process that was launched by itself. The first call joins the group of
    processes that the launcher's environment names, unless the script has joined it already.
    """
    from torch import distributed as dist

    if _ALONE.get() or not dist.is_available():
        return Rank(0, 1)
    if not dist.is_initialized() and launched().n > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Rank(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Rank(0, 1)


@contextmanager
def alone() -> Generator[None]:
    """Share nothing inside the block: for work that other ranks do not do, or that is a share already."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def together() -> Generator[None]:
    """Share fits inside the block: each rank sums moments over some activations, and fits and solves for some heads.

    Every rank must make the same fits of the same cache. Outside of the block, ranks may make different fits.

    Example:
        >>> with together():
        ...     pass  # detector.fit(cache, validation), policy.fit(cache, detector); cache = HeadCache.load("store")
    """
    token = _TOGETHER.set(True)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def fitting_rank() -> Rank:
    """Return the rank that takes a share of a fit: this rank inside `together`, else rank 0 of 1."""
    return this_rank() if _TOGETHER.get() else Rank(0, 1)


def shared(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], rank: Rank | None = None
) -> list[Result]:
    """Return one result for each item, in order: each of n ranks works on every n-th item, and all get all results.

    Args:
        items: the same in every rank.
        work: maps a list of items to their results; not called for an empty list.
        rank: the rank that takes a share; default this one.

    Raises:
        RankError: another rank has died.
    """
    rank = this_rank() if rank is None else rank
    # Every n-th item, not a contiguous slice: neighbours are often alike (prompts of one length, heads of one layer),
    # so this divides the costs evenly.
    mine = items[rank.number :: rank.n]
    # Alone, since `work` may call `shared` itself, and the other ranks would meet it with other items.
    with alone():
        own_results = list(work(mine)) if len(mine) else []
    results: list[Any] = [None] * len(items)
    for number, rank_results in enumerate(rank.gather(own_results)):
        results[number :: rank.n] = rank_results
    return results


class ProgressBar:
    """Tasks of one block, each a line on standard error; without anything to show them, calls do nothing."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._own = set[TaskID]()

    def add_task(self, description: str, total: int | None) -> TaskID:
        """Add a line; `total` is None where the number of steps is unknown."""
        if self._shown is None:
            return TaskID(0)
        task = self._shown.add_task(description, total=total)
        self._own.add(task)
        return task

    def update(self, task: TaskID, description: str) -> None:
        """Change the text of a line."""
        if self._shown is not None and task in self._own:
            self._shown.update(task, description=description)

    def advance(self, task: TaskID, n: int = 1) -> None:
        """Count `n` steps."""
        if self._shown is not None and task in self._own:
            self._shown.advance(task, n)

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, and count a step after each."""
        task = self.add_task(description, len(items) if total is None and isinstance(items, Sized) else total)
        for item in items:
            yield item
            self.advance(task)

    def close(self) -> None:
        """Take the lines off."""
        while self._own:
            task = self._own.pop()
            if self._shown is not None and task in self._shown.task_ids:
                self._shown.remove_task(task)


@contextmanager
def progress_bar(*columns: ProgressColumn, shown: bool) -> Generator[ProgressBar]:
    """Yield a bar that takes tasks, on standard error: standard output holds results alone, and may be a file.

    Nothing is printed where standard error is no terminal, nor by ranks but the first. Within another bar, tasks are
    lines below those of that one, until the block ends: a long step of a long run shows its own progress. Do not yield
    inside the block: a generator that nobody reads to its end would leave its bar behind.

    Args:
        columns: of an outermost bar; default those of rich.
        shown: False gives a bar that prints nothing.
    """
    console = Console(stderr=True)
    if not (shown and launched().number == 0 and (console.is_interactive or console.is_jupyter)):
        yield ProgressBar(None)
        return
    outer = _BAR.get()
    if outer is not None and outer.live.is_started:
        with closing(ProgressBar(outer)) as bar:
            yield bar
        return
    # What is printed meanwhile is shown above the bar, but stays on standard output where that is a file.
    settings: dict[str, Any] = {"console": console, "redirect_stdout": sys.stdout.isatty(), "transient": True}
    with Progress(*(columns or Progress.get_default_columns()), **settings) as lines:
        token = _BAR.set(lines)
        try:
            yield ProgressBar(lines)
        finally:
            _BAR.reset(token)
