"""Exact binomial bounds, and bootstrap intervals over groups.

Tokens of one text are not independent, so every confidence counts groups (questions), not tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval.

    A format specification applies to all three numbers.

    Example:
        >>> f"{Interval(0.5, 0.25, 0.75):.0%}"
        '50% [25%, 75%]'
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """`value [low, high]`, each with the specification; without one, three decimals."""
        value, low, high = (format(x, spec or ".3f") for x in self)
        return f"{value} [{low}, {high}]"


def clopper_pearson(n_events: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Exact two-sided binomial interval for a share; [0, 1] when `n` is 0, with value NaN.

    Example:
        >>> round(clopper_pearson(0, 59).high, 3)
        0.061
    """
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, n_events, n - n_events + 1)) if n_events > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, n_events + 1, n - n_events)) if n_events < n else 1.0
    return Interval(n_events / n if n else float("nan"), low, high)


def binomial_upper(n_events: int, n: int, *, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a share (Clopper-Pearson); 1 when `n` is 0.

    Example:
        >>> binomial_upper(0, 59) < 0.05
        True
    """
    return float(stats.beta.ppf(confidence, n_events + 1, n - n_events)) if n_events < n else 1.0


def groups_needed(share: float, *, confidence: float = 0.95) -> int:
    """Least number of groups with no event at all that bounds a share below `share`.

    Example:
        >>> groups_needed(0.05)
        59
    """
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - share)))


def one_per_group(groups: Int[Tensor, " example"], *, seed: int = 0) -> Int[Tensor, " group"]:
    """Index of one random example of each group, in the order of the groups' codes."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    shuffled = groups[order].numpy()
    _, first = np.unique(shuffled, return_index=True)
    return order[torch.as_tensor(first)]


def group_sums(
    values: Float[Tensor, " example *batch"] | Bool[Tensor, " example *batch"], groups: Int[Tensor, " example"]
) -> Float[Tensor, " group *batch"]:
    """Sum of `values` over the examples of each group."""
    _, codes = groups.unique(return_inverse=True)
    sums = torch.zeros((int(codes.max()) + 1, *values.shape[1:]), dtype=torch.float64)
    return sums.index_add_(0, codes, values.double())


def resample_counts(n_groups: int, n_resamples: int, seed: int) -> NDArray[Any]:
    """How often each group is drawn in each resample of a bootstrap; one row for each resample."""
    return np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)


def bootstrap_ratio(
    numerators: Float[Tensor, " group"],
    denominators: Float[Tensor, " group"],
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over groups of `sum(numerators) / sum(denominators)`.

    Every mean, share and paired difference of the package is such a ratio of sums over groups.
    """
    top, bottom = numerators.double().numpy(), denominators.double().numpy()
    if bottom.sum() == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    draws = resample_counts(len(top), n_resamples, seed)
    weight = draws @ bottom
    ratios = (draws @ top)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))
