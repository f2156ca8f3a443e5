"""The processes that `torchrun` or `accelerate launch` started together, and how work is shared among them.

Every rank makes the same calls; a call that shares work does so by itself, and gives every rank the whole result.
torch is imported where processes meet, so that the command line can ask for its rank without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from radiant_lens.errors import RankError

if TYPE_CHECKING:
    from torch import Tensor

# A rank may wait for a slower one as long as that works; one that has died is noticed at once.
PATIENCE = timedelta(days=7)

_ALONE = ContextVar("alone", default=False)
_TOGETHER = ContextVar("together", default=False)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Rank(NamedTuple):
    """The `number` of this process, counted from 0, among `n`."""

    number: int
    n: int

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.gather(None)

    def gather(self, mine: Result) -> list[Result]:
        """What every rank hands in, by number.

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
        """The sum of what every rank hands in, the same in all.

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
                f"Rank {self.number} of {self.n} stopped because another one has died, whose message or signal says "
                "why; the same command, given again, takes up what is kept in a folder where it stopped."
            ) from error

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's run of neighbours; the runs of all ranks are the items."""
        return items[self.number * len(items) // self.n : (self.number + 1) * len(items) // self.n]


def launched() -> Rank:
    """What the launcher's environment says of this process; nothing is joined."""
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def this_rank() -> Rank:
    """This process among those that were launched together; by itself inside `alone` and if launched by itself.

    Joins the group of processes that the launcher's environment names, unless the script has done so already.
    """
    from torch import distributed as dist

    if _ALONE.get() or not dist.is_available():
        return Rank(0, 1)
    if not dist.is_initialized() and launched().n > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Rank(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Rank(0, 1)


@contextmanager
def alone() -> Generator[None]:
    """Share nothing meanwhile: for work that other ranks do not do."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def together() -> Generator[None]:
    """Share fits meanwhile: each rank reads some of the activations for moments, and fits and solves for some heads.

    Every rank must make the same fits, of the same cache. Outside, a rank may fit by itself what the others do not.

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
    """Who does a share of a fit: this rank inside `together`, else a process by itself."""
    return this_rank() if _TOGETHER.get() else Rank(0, 1)


def shared(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], rank: Rank | None = None
) -> list[Result]:
    """One result for each item: every rank works on every n-th item, and all get all results in order.

    Args:
        items: the same in every rank.
        work: from some of the items to their results; not called without items.
        rank: who does a share; default this rank.

    Raises:
        RankError: another rank has died.
    """
    rank = this_rank() if rank is None else rank
    mine = items[rank.number :: rank.n]
    with alone():
        done = list(work(mine)) if len(mine) else []
    results: list[Any] = [None] * len(items)
    for number, part in enumerate(rank.gather(done)):
        results[number :: rank.n] = part
    return results
