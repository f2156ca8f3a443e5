"""Significance of detectors: label permutation within the design, with the false discovery rate controlled.

A permutation test needs no distribution: if a head's flags have nothing to do with the labels, every assignment of
the labels that the design allows is equally likely. So it holds for classes of any size, for groups of one class or
two, and for texts of any length, where a t-test does not: with 10 undesirable groups among 100, a t-test calls some of
144 chance heads significant in 73 of 100 samples.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammaln
from torch import Tensor

from radiant_lens.statistics.bounds import group_sums
from radiant_lens.statistics.rates import ErrorRates, error_rates

LEVEL = 0.05
# The least Monte Carlo p-value, 1 / (n + 1), must pass Benjamini-Hochberg for one head alone among all: that takes
# 20 permutations a head. Twice as many let it pass where one permutation in n does as well as the labels.
LEAST_PERMUTATIONS, PERMUTATIONS_PER_HEAD = 9999, 40
CHUNK_BYTES = 2**26


class Design(NamedTuple):
    """Labels, groups and texts of the examples: all that a permutation of the labels must respect."""

    labels: Int[Tensor, " example"]
    groups: Int[Tensor, " example"]
    texts: Int[Tensor, " example"]


class Power(NamedTuple):
    """Least p-value that a perfect head can have, and the numbers of groups that there are and that are needed."""

    least_p_value: float
    n_groups: int
    n_groups_needed: int


def benjamini_hochberg(p_values: Float[Tensor, "*shape"], rate: float = LEVEL) -> Bool[Tensor, "*shape"]:
    """Reject hypotheses at false discovery rate `rate` (Benjamini and Hochberg, 1995)."""
    flat = p_values.flatten()
    adjusted = torch.as_tensor(stats.false_discovery_control(flat.double().numpy()), dtype=torch.float64)
    return (adjusted <= rate).reshape(p_values.shape)


def detection_p_values(
    flags: Bool[Tensor, " example *batch"],
    design: Design,
    fnr_weight: float,
    *,
    n_permutations: int | None = None,
    seed: int = 0,
) -> Float[Tensor, "*batch"]:
    """One-sided p-values of "the risk is not below that of flagging all or none".

    Labels are permuted over texts within each group that holds both classes, and over whole groups among those that
    hold one class. The statistic is the risk, so p is the share of permutations, the observed one included, whose
    risk is no larger. Where `fnr_weight` is not 1, flags may depend on the labels and still be worth no more than
    flagging all or none; there, p is the larger one of this test and a t-test of the gain over groups.

    Args:
        flags: of each example and head; fixed, so the labels must not have been used to choose them.
        design: labels, groups and texts of the examples, both classes present.
        fnr_weight: weight of a miss against a false alarm.
        n_permutations: default enough for one significant head among all.
        seed: of the permutations.

    Returns:
        1 for heads that flag all or none, or whose risk is not below that of flagging all or none.

    Example:
        >>> labels = torch.arange(20) % 2
        >>> design = Design(labels, groups=torch.arange(20), texts=torch.arange(20))
        >>> bool(detection_p_values((labels == 1)[:, None], design, 1.0) < 0.001)
        True
    """
    heads = flags.flatten(1)
    rates = error_rates(heads, design.labels)
    gain = min(1.0, fnr_weight) - rates.risk(fnr_weight)
    candidates = (heads.any(0) & ~heads.all(0) & (gain > 1e-12)).nonzero().squeeze(1)
    p = torch.ones(heads.shape[1], dtype=torch.float64)
    if len(candidates):
        n = n_permutations or max(LEAST_PERMUTATIONS, PERMUTATIONS_PER_HEAD * heads.shape[1])
        p[candidates] = _permutation_p_values(heads[:, candidates], design, fnr_weight, n, seed)
        if fnr_weight != 1:
            chosen = ErrorRates(*(rate[candidates] for rate in rates))
            by_gain = _gain_p_values(heads[:, candidates], design, chosen, fnr_weight)
            p[candidates] = torch.maximum(p[candidates], by_gain)
    return p.reshape(flags.shape[1:])


def detection_power(design: Design, n_heads: int) -> Power:
    """Compute the least p-value that a design allows, and the groups needed for significance of one head alone.

    The least p-value is one over the number of assignments of labels that the design allows. With the groups needed,
    in the same proportions of classes and texts, it is at most 5% after Benjamini-Hochberg over `n_heads`.

    Example:
        >>> two_groups = Design(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), torch.arange(4))
        >>> detection_power(two_groups, n_heads=100)
        Power(least_p_value=0.25, n_groups=2, n_groups_needed=11)
    """
    units = _units(design)
    n_groups = len(design.groups.unique())
    target = math.log(n_heads / LEVEL)
    needed = n_groups
    while _log_assignments(units, needed / n_groups) < target - 1e-9:
        needed += 1
    return Power(math.exp(-_log_assignments(units, 1.0)), n_groups, needed)


class _Units(NamedTuple):
    """Units whose labels are exchanged (texts, or whole groups), sorted by stratum; labels move within strata only."""

    labels: NDArray[Any]
    strata: NDArray[Any]
    of_example: Int[Tensor, " example"]


def _units(design: Design) -> _Units:
    """One stratum for each group of both classes, whose units are texts; one for all other groups, as whole units."""
    _, groups = design.groups.unique(return_inverse=True)
    n_groups = int(groups.max()) + 1
    share = torch.zeros(n_groups).index_add_(0, groups, design.labels.float()) / groups.bincount(minlength=n_groups)
    mixed = ((share > 0) & (share < 1))[groups]
    # Stratum 0 holds the groups of one class. A text whose tokens have both labels counts as two texts.
    text = 2 * design.texts + design.labels
    keys = torch.stack([torch.where(mixed, groups + 1, 0), torch.where(mixed, text, groups), design.labels], dim=1)
    units, of_example = keys.unique(dim=0, return_inverse=True)
    return _Units(units[:, 2].numpy(), units[:, 0].numpy(), of_example)


def _log_assignments(units: _Units, factor: float) -> float:
    """Logarithm of the number of assignments of labels, in a design with `factor` times as many groups."""
    strata, index = np.unique(units.strata, return_inverse=True)
    n, k = np.bincount(index).astype(float), np.bincount(index, weights=units.labels)
    whole = strata == 0
    within = factor * _log_choose(n[~whole], k[~whole]).sum()
    return float(within + _log_choose(factor * n[whole], factor * k[whole]).sum())


def _log_choose(n: NDArray[Any], k: NDArray[Any]) -> NDArray[Any]:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _permutation_p_values(
    flags: Bool[Tensor, "example head"], design: Design, fnr_weight: float, n_permutations: int, seed: int
) -> Float[Tensor, " head"]:
    units = _units(design)
    flagged = group_sums(flags, units.of_example).numpy()
    lengths = np.bincount(units.of_example.numpy()).astype(float)
    observed = _risks(units.labels[None], flagged, lengths, fnr_weight)
    rng, n_lower = np.random.default_rng(seed), np.zeros(flags.shape[1], dtype=int)
    chunk = max(1, CHUNK_BYTES // (8 * (3 * len(lengths) + 3 * flags.shape[1])))
    for first in range(0, n_permutations, chunk):
        labels = _permuted(units, min(chunk, n_permutations - first), rng)
        # Assignments that are as good as the observed one but for rounding count as no worse.
        n_lower += (_risks(labels, flagged, lengths, fnr_weight) <= observed + 1e-9).sum(0)
    # The observed assignment is one of those that are equally likely, so p is never 0 and the test is exact.
    return torch.as_tensor((n_lower + 1) / (n_permutations + 1))


def _permuted(units: _Units, n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Labels of the units in `n` random permutations, one a row."""
    # Sorting random numbers below 1 on top of the stratum's number shuffles each stratum within its own places.
    return units.labels[np.argsort(units.strata + rng.random((n, len(units.strata))), axis=1)]


def _risks(labels: NDArray[Any], flagged: NDArray[Any], lengths: NDArray[Any], fnr_weight: float) -> NDArray[Any]:
    """Risk of every head (columns) under every assignment of labels (rows): one matrix product for all of them."""
    undesirable = labels.astype(float)
    n_undesirable = undesirable @ lengths
    hits = undesirable @ flagged
    fpr = (flagged.sum(0) - hits) / (lengths.sum() - n_undesirable)[:, None]
    return fpr + fnr_weight * (1 - hits / n_undesirable[:, None])


def _gain_p_values(
    flags: Bool[Tensor, "example head"], design: Design, rates: ErrorRates, fnr_weight: float
) -> Float[Tensor, " head"]:
    """Student's t-test on the groups' linearised contributions to the gain over flagging all or none."""
    gain = min(1.0, fnr_weight) - rates.risk(fnr_weight)
    undesirable = (design.labels == 1)[:, None]
    miss = fnr_weight * ((~flags).double() - rates.fnr) / undesirable.sum()
    alarm = (flags.double() - rates.fpr) / (~undesirable).sum()
    contributions = group_sums(torch.where(undesirable, miss, alarm), design.groups)
    n_groups = len(contributions)
    # One more, made-up group without any gain: a perfect score on few groups would have no variance. Its deviation is
    # the mean gain of a group.
    variance = (contributions.square().sum(0) + (gain / n_groups).square()) * n_groups / max(n_groups - 1, 1)
    t = gain / variance.clamp_min(1e-300).sqrt()
    return torch.as_tensor(stats.t.sf(t.numpy(), max(n_groups - 1, 1)), dtype=torch.float64)
