"""Comparison of several steerings on the same prompts, and the cost of a method at a share of desirable answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radiant_lens.analysis.steering import Steering
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.studies.experiment import Experiment
from radiant_lens.studies.results import Row, StudyResult


def compare(
    experiment: Experiment,
    steerings: Mapping[str, Steering | Sequence[Steering] | None],
    *,
    n_samples: int = 4,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
) -> StudyResult:
    """Evaluate each steering on the test part, with the same seed.

    Intervals hold given the experiment's one split and fit; a `Study` over seeds includes other fits.

    Args:
        experiment: from `prepare`.
        steerings: by name; None is the model as it is, and several draws of a control are pooled in one row. The
            first is the baseline of differences.
        n_samples, max_new_tokens, temperature, seed: as for `evaluate`.

    Returns:
        One row for each name, with this one seed.

    Raises:
        InvalidArgumentError: no steering, or a name with an empty list of draws.
    """
    if not steerings:
        raise InvalidArgumentError("`steerings` must hold at least one entry; got none.")
    options: dict[str, Any] = {
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    baseline = next(iter(steerings))
    rows = []
    for name, steering in steerings.items():
        draws = [steering] if steering is None or isinstance(steering, Steering) else list(steering)
        if not draws:
            raise InvalidArgumentError(f"`steerings` must hold at least one steering for each name; {name!r} has none.")
        runs = [evaluate(experiment.model, experiment.test, draw, **options) for draw in draws]
        rows.append(Row(name, None if name == baseline else baseline, {}, {seed: runs}))
    return StudyResult("comparison", tuple(rows), sum(len(row.runs) for row in rows))


def least_cost(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """Least cost at which a method reaches a share, on the best curve through its `(share, cost)` points.

    The curve joins the points that no other point beats in both. It ends at the dearest of them: beyond it a sweep
    says nothing, so "never reaches the share" holds for the strengths that were tried.

    Returns:
        The interpolated cost; None where no point reaches the share.

    Example:
        >>> least_cost([(0.2, 1.0), (0.4, 2.0), (0.3, 9.0)], 0.3)
        1.5
    """
    best: list[tuple[float, float]] = []
    # Cheapest first; of equal cost, the largest share first, so that the others are dropped.
    for point in sorted(points, key=lambda p: (p[1], -p[0])):
        if not best or point[0] > best[-1][0]:
            best.append(point)
    if not best or best[-1][0] < share:
        return None
    shares, costs = zip(*best)
    return float(np.interp(share, shares, costs))
