"""Paired differences of ratios of sums over groups: a bootstrap interval and a permutation test.

Groups (questions) are resampled and exchanged, never single answers or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.statistics.bounds import resample_counts

Link = Callable[[Any], Any]
Array = NDArray[Any]


class PairedDifference(NamedTuple):
    """A difference with the ends of its confidence interval, and the two-sided p-value of "there is no difference"."""

    value: float
    low: float
    high: float
    p_value: float


class GroupSums(NamedTuple):
    """Sums over the examples of each group; the quantity is `sum(numerators) / sum(denominators)`."""

    numerators: Float[Tensor, " group"]
    denominators: Float[Tensor, " group"]


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def paired_difference(
    sums: GroupSums,
    baseline: GroupSums,
    *,
    link: Link = np.asarray,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
    seed: int = 0,
) -> PairedDifference:
    """Compute the difference of two ratios that were measured on the same groups.

    The interval is a percentile bootstrap over groups, both sides drawn together. The test exchanges the two
    sides of each group; where their denominators are equal that is the sign-flip test of the differences.
    All exchanges are enumerated when there are at most `n_permutations + 1` of them; else as many are drawn,
    and the p-value counts the observed one among them, so that it is never 0. Exchanges that leave a side
    without a denominator count as extreme.

    Args:
        sums: of one side; the same groups in the same order as `baseline`.
        baseline: sums of the side that is subtracted.
        link: monotone function of both ratios, such as `numpy.exp`.
        confidence: of the interval, in (0, 1).
        n_resamples: of the bootstrap, at least 1.
        n_permutations: drawn where not all can be enumerated, at least 1.
        seed: of resamples and permutations.

    Returns:
        All NaN where a side has no denominator, or the difference is a number in no resample.

    Raises:
        InvalidArgumentError: different numbers of groups, or a number out of its range.

    Example:
        >>> import torch
        >>> better = GroupSums(torch.ones(4), torch.ones(4))
        >>> paired_difference(better, GroupSums(torch.zeros(4), torch.ones(4)))
        PairedDifference(value=1.0, low=1.0, high=1.0, p_value=0.125)
    """
    _checks.between("confidence", confidence, 0, 1)
    _checks.whole("n_resamples", n_resamples, 1)
    _checks.whole("n_permutations", n_permutations, 1)
    top, bottom = (np.stack([t.double().numpy() for t in pair]) for pair in _sides(sums, baseline))
    value = float(_difference(top.sum(1), bottom.sum(1), link))
    undefined = PairedDifference(*[float("nan")] * 4)
    if not (bottom.sum(1) != 0).all():
        return undefined
    counts = resample_counts(top.shape[1], n_resamples, seed)
    # Both sides in the same resamples: what a group adds to both cancels, so the interval is that of the difference.
    differences = _difference(top @ counts.T, bottom @ counts.T, link)
    differences = differences[np.isfinite(differences)]
    if not differences.size:
        return undefined
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedDifference(value, float(low), float(high), _p_value(top, bottom, link, n_permutations, seed))


def _sides(sums: GroupSums, baseline: GroupSums) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    lengths = {len(t) for t in (*sums, *baseline)}
    if len(lengths) != 1:
        raise InvalidArgumentError(f"`sums` and `baseline` must be of the same groups; got lengths {sorted(lengths)}.")
    return (sums.numerators, baseline.numerators), (sums.denominators, baseline.denominators)


def _difference(top: Array, bottom: Array, link: Link) -> Array:
    """Subtract the second side from the first, along the first axis; NaN where a side has no denominator."""
    ratios = link(np.where(bottom != 0, top / bottom, np.nan))
    return ratios[0] - ratios[1]


def _p_value(top: Array, bottom: Array, link: Link, n_permutations: int, seed: int) -> float:
    observed = _difference(top.sum(1), bottom.sum(1), link)
    n_groups = top.shape[1]
    exact = 2**n_groups <= n_permutations + 1
    # One row for each permutation; 1 where a group's sides are not exchanged.
    stays = _all_choices(n_groups) if exact else np.random.default_rng(seed).integers(0, 2, (n_permutations, n_groups))
    exchanged = _difference(_exchanged(top, stays), _exchanged(bottom, stays), link)
    # An exchange that differs from the observed one by rounding alone counts as extreme.
    tolerance = 1e-10 * np.abs(link(top.sum(1) / bottom.sum(1))).max()
    # "Not below", rather than "at or above", so that NaN counts as extreme.
    n_extreme = int((~(np.abs(exchanged) < np.abs(observed) - tolerance)).sum())
    return n_extreme / len(stays) if exact else (n_extreme + 1) / (n_permutations + 1)


def _all_choices(n_groups: int) -> Array:
    return (np.arange(2**n_groups)[:, None] >> np.arange(n_groups)) & 1


def _exchanged(values: Array, stays: Array) -> Array:
    """Totals of both sides after all groups but those of `stays` exchange their sides."""
    one = stays @ (values[0] - values[1]) + values[1].sum()
    return np.stack([one, values.sum() - one])
