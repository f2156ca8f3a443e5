"""Metrics that are products of two others over the same answers, such as True*Info of TruthfulQA.

They have no parts of their own: everything is computed from the parts of their factors, so saving, loading, pooling
and judging again need no rule for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from radiant_lens.statistics.bounds import Interval, resample_counts, share_interval
from radiant_lens.statistics.paired import PairedDifference

PRODUCTS = {"true_times_informative": ("correct", "informative")}
"""Products with their factors; under a condition ("/bare") the factors are those of the same condition."""
N_RESAMPLES, N_PERMUTATIONS, SEED = 2000, 9999, 0

Array = NDArray[Any]


def with_products(metrics: list[str]) -> list[str]:
    """Insert the names of products into a list of metrics, each after its last factor.

    Example:
        >>> with_products(["correct", "informative", "kl"])
        ['correct', 'informative', 'true_times_informative', 'kl']
    """
    names: list[str] = []
    for metric in metrics:
        kind, slash, condition = metric.partition("/")
        names.append(metric)
        candidates = [product + slash + condition for product, of in PRODUCTS.items() if of[-1] == kind]
        names += [name for name in candidates if set(factors(name)) <= set(metrics)]
    return names


def factors(metric: str) -> tuple[str, ...]:
    """The factors of a product, under its condition; () for a metric that is none."""
    kind, slash, condition = metric.partition("/")
    return tuple(factor + slash + condition for factor in PRODUCTS.get(kind, ()))


def product_interval(parts: pd.DataFrame, metric: str) -> Interval:
    """A product of shares with its 95% interval, by a bootstrap over groups that draws all factors together."""
    sums = _factor_sums(parts, factors(metric))
    value = float(_product(sums.sum(0)))
    draws = _product(_weighted(resample_counts(len(sums), N_RESAMPLES, SEED), sums))
    draws = draws[np.isfinite(draws)]
    if np.isnan(value) or not draws.size:
        return Interval(*[float("nan")] * 3)
    low, high = np.quantile(draws, [0.025, 0.975])
    if low == high:
        # All groups agree, so that no resample differs. The product of exact bounds at 97.5% each covers at least 95%.
        bounds = [share_interval(*torch.tensor(sums[:, i].T), confidence=0.975) for i in range(sums.shape[1])]
        low, high = np.prod([bound.low for bound in bounds]), np.prod([bound.high for bound in bounds])
    return Interval(value, float(low), float(high))


def product_difference(parts: pd.DataFrame, baseline: pd.DataFrame, metric: str) -> PairedDifference:
    """Difference of a product between evaluations of the same groups; see `paired_difference` for interval and test."""
    one, two = (_factor_sums(table, factors(metric)) for table in (parts, baseline))
    observed = _product(one.sum(0)) - _product(two.sum(0))
    counts = resample_counts(len(one), N_RESAMPLES, SEED)
    draws = _product(_weighted(counts, one)) - _product(_weighted(counts, two))
    draws = draws[np.isfinite(draws)]
    if np.isnan(observed) or not draws.size:
        return PairedDifference(*[float("nan")] * 4)
    low, high = np.quantile(draws, [0.025, 0.975])
    return PairedDifference(float(observed), float(low), float(high), _p_value(one, two, float(observed)))


def _factor_sums(parts: pd.DataFrame, names: tuple[str, ...]) -> Array:
    """Numerators and denominators of each factor in each group: group, factor, 2."""
    tables = [parts[parts["metric"] == name].set_index("group")[["numerator", "denominator"]] for name in names]
    groups = sorted(set().union(*(table.index for table in tables)))
    # A group that a factor lacks has no answers of it; `fill_value` leaves NaN that are in the table as they are.
    return np.stack([table.reindex(groups, fill_value=0.0).to_numpy(float) for table in tables], axis=1)


def _weighted(weights: Array, sums: Array) -> Array:
    return np.tensordot(weights, sums, axes=(1, 0))


def _product(sums: Array) -> Array:
    """Product over the factors of numerator / denominator; NaN where a factor has no denominator."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] != 0, sums[..., 0] / sums[..., 1], np.nan).prod(-1)


def _p_value(one: Array, two: Array, observed: float) -> float:
    """Two-sided permutation test that exchanges the two sides of each group."""
    n_groups = len(one)
    exact = 2**n_groups <= N_PERMUTATIONS + 1
    if exact:
        stay = (np.arange(2**n_groups)[:, None] >> np.arange(n_groups)) & 1
    else:
        stay = np.random.default_rng(SEED).integers(0, 2, (N_PERMUTATIONS, n_groups))
    first = _weighted(stay, one - two) + two.sum(0)
    exchanged = _product(first) - _product(one.sum(0) + two.sum(0) - first)
    # Written as "not smaller": an exchange without a denominator is NaN and counts as extreme. The tolerance makes
    # exchanges that equal the observed one but for rounding count too.
    n_extreme = int((~(np.abs(exchanged) < abs(observed) - 1e-10)).sum())
    # Drawn exchanges need the observed one among them, so that the p-value is never 0.
    return n_extreme / len(stay) if exact else (n_extreme + 1) / (N_PERMUTATIONS + 1)
