"""Intervals that include the variation between seeds.

Each seed of a study draws a split and fits its detectors and policies on it. A bootstrap over test groups keeps these
fits fixed, so its interval is too narrow for a statement about the method: it leaves out how much a value changes
from one split to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from radiant_lens.statistics.bounds import Interval

MIN_SEEDS = 3
"""Fewest seeds for a component between seeds: of two values, a standard deviation says next to nothing (t = 12.7)."""


def widen(
    interval: Interval,
    seed_values: Sequence[float],
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> Interval:
    """Add the variation between seeds to an interval that keeps the fits fixed.

    The two half-widths are added in quadrature, each side on its own (MOVER, the method of variance estimates
    recovery: Zou and Donner, Statistics in Medicine 27, 2008). The half-width between `k` seeds is
    `t(k - 1) * s / sqrt(k)`, with `s` the standard deviation of the seeds' values.

    The result is conservative: `s` also holds the noise of each seed's own test groups, which the interval over groups
    counts already. It covers other splits of the same data; splits of one data set share groups, so it says nothing
    of new data collected elsewhere.

    Args:
        interval: of the pooled value, over groups.
        seed_values: the value of each seed, at least two.
        limits: least and largest possible value, such as (0, 1) for shares.
        confidence: of both parts, in (0, 1).

    Example:
        >>> f"{widen(Interval(0.5, 0.4, 0.6), [0.45, 0.5, 0.55]):.2f}"
        '0.50 [0.34, 0.66]'
    """
    k = len(seed_values)
    between = float(stats.t.ppf((1 + confidence) / 2, k - 1) * np.std(seed_values, ddof=1) / math.sqrt(k))
    low = interval.value - math.hypot(interval.value - interval.low, between)
    high = interval.value + math.hypot(interval.high - interval.value, between)
    # A comparison with NaN is false: an interval without a value stays NaN through `max` and `min` in this order.
    return Interval(interval.value, max(low, limits[0]), min(high, limits[1]))
