"""One batch of problems solved by several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from radiant_lens.distributed import fitting_rank
from radiant_lens.solvers.problem import UncertifiedError
from radiant_lens.solvers.solutions import ProcrustesSolution, TransportSolution

Solution = TypeVar("Solution", TransportSolution, ProcrustesSolution)


def solve_shared(solve: Callable[..., Solution], *problem: Tensor, **options: Tensor | None) -> Solution:
    """What a solver makes of many problems; ranks that fit `together` solve some each, and all get all solutions.

    Args:
        solve: the solver.
        problem: its inputs, one entry a problem on the first axis.
        options: further ones, by name.

    Raises:
        UncertifiedError: as the solver does, with places among all problems.
        RankError: another rank has died.
    """
    rank, n = fitting_rank(), len(problem[0])
    mine = rank.part(range(n))
    assert isinstance(mine, range)
    some = slice(mine.start, mine.stop)
    try:
        found = solve(*(x[some] for x in problem), **{k: None if x is None else x[some] for k, x in options.items()})
    except UncertifiedError as error:
        raise UncertifiedError(str(error), [(mine.start + first, *rest) for first, *rest in error.index]) from error
    if rank.n == 1:
        return found
    parts = rank.gather(found)
    return type(found)(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(found)})
