"""Several steerings on the same prompts, and what a method pays for a share of desirable answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.steering.steering import Steering
from radiant_lens.studies.experiment import Experiment
from radiant_lens.studies.results import Row, StudyResult


def compare(
    experiment: Experiment,
    steerings: Mapping[str, Steering | None],
    *,
    n_samples: int = 4,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
) -> StudyResult:
    """Evaluate each steering on the test part, with the same seed.

    Args:
        experiment: from `prepare`.
        steerings: by name; None is the model as it is. The first is the baseline of gains.
        n_samples, max_new_tokens, temperature, seed: as for `evaluate`.

    Returns:
        One row for each steering, with this one seed; `differences` are to the first.

    Raises:
        InvalidArgumentError: no steering.
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
        evaluation = evaluate(experiment.model, experiment.test, steering, **options)
        rows.append(Row(name, None if name == baseline else baseline, {}, {seed: [evaluation]}))
    return StudyResult("comparison", tuple(rows), len(rows))


def least_cost(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """Least cost at which a method reaches a share, on the best curve through its `(share, cost)` points.

    The curve joins the points that no other beats in both.

    Returns:
        The interpolated cost; None where no point reaches the share.

    Example:
        >>> least_cost([(0.2, 1.0), (0.4, 2.0), (0.3, 9.0)], 0.3)
        1.5
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[1], -p[0])):
        if not best or point[0] > best[-1][0]:
            best.append(point)
    if not best or best[-1][0] < share:
        return None
    shares, costs = zip(*best)
    return float(np.interp(share, shares, costs))
