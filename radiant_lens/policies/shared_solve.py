"""A batch of problems, solved or certified by several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from radiant_lens.distributed import fitting_rank
from radiant_lens.solvers.certificates import MapCertificate
from radiant_lens.solvers.problem import UncertifiedError
from radiant_lens.solvers.solutions import ProcrustesSolution, TransportSolution

Solution = TypeVar("Solution", TransportSolution, ProcrustesSolution, MapCertificate)


def solve_shared(solve: Callable[..., Solution], *problem: Tensor, **options: Tensor | None) -> Solution:
    """Solve many problems; ranks inside `together` solve a share each, and each rank gets all solutions.

    Args:
        solve: a solver, or the function that certifies its maps.
        problem: its inputs, with one problem per entry of the first axis.
        options: its keyword arguments.

    Raises:
        UncertifiedError: as raised by the solver, with places among all problems.
        RankError: another rank has died.
    """
    rank, n = fitting_rank(), len(problem[0])
    mine = rank.part(range(n))
    assert isinstance(mine, range)
    share = slice(mine.start, mine.stop)
    try:
        own = solve(*(x[share] for x in problem), **{k: None if x is None else x[share] for k, x in options.items()})
    except UncertifiedError as error:
        # The solver counts from the start of this share. The rank stops here and does not reach `gather`; the others
        # notice that it is gone and raise `RankError`, so none of them returns a steering with a hole.
        raise UncertifiedError(str(error), [(mine.start + first, *rest) for first, *rest in error.index]) from error
    if rank.n == 1:
        return own
    # Ranks hold neighbouring problems in the order of their numbers, so joining keeps the order of the problems. A
    # rank without problems takes part with an empty solution: `gather` waits for every rank.
    solutions = rank.gather(own)
    return type(own)(**{f.name: torch.cat([getattr(s, f.name) for s in solutions]) for f in fields(own)})
