"""Vote thresholds: the least number of flagging heads at which a layer flags, chosen on validation data.

The error rates of a chosen threshold are optimistic on the data that chose it, by .04 to .30 in trials. So the detector
measures them on other groups; the certified rule is the exception (see `_certified`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.errors import GuaranteeError
from radiant_lens.statistics.bounds import binomial_upper, groups_needed, one_per_group
from radiant_lens.statistics.rates import ErrorRates, error_rates

VOTE_RULES = ("fnr", "risk", "certified")


class Detection(NamedTuple):
    """Scores of all heads at one layer, and the number of heads that flag."""

    layer: int
    scores: Float[Tensor, "batch pos head"]
    votes: Int[Tensor, "batch pos"]


class LayerVotes(NamedTuple):
    """Vote thresholds, their error rates on the data that chose them, and whether a bound holds for each."""

    thresholds: Int[Tensor, " layer"]
    rates: ErrorRates
    certified: Bool[Tensor, " layer"]


class VotingData(NamedTuple):
    """Number of flagging heads of each example in each layer, with labels and groups."""

    counts: Int[Tensor, "example layer"]
    labels: Int[Tensor, " example"]
    groups: Int[Tensor, " example"]


def choose_thresholds(
    data: VotingData,
    n_heads: int,
    *,
    rule: str,
    fnr_weight: float,
    target_fnr: float,
    delta: float,
    layer: int | None,
    seed: int,
) -> LayerVotes:
    """Choose `tau` for every layer: the layer flags an example when at least `tau` of its `n_heads` heads do.

    Args:
        data: votes on the data to choose on.
        n_heads: heads of a layer.
        rule: "fnr" (least FNR, ties by risk, then by larger tau), "risk" (least risk, ties by larger tau),
            "certified" (largest tau whose FNR is below `target_fnr` with confidence `1 - delta`).
        fnr_weight: weight of a miss against a false alarm.
        target_fnr, delta: of the certified rule; one random token of each group counts.
        layer: the one layer to certify, chosen before seeing the data; None: all layers, which share `delta`.
        seed: of the draw of one token a group, for the certified rule.

    Raises:
        GuaranteeError: rule "certified", and no layer has a tau; the message has the number of groups needed.
    """
    rates = rates_by_threshold(data.counts, data.labels, n_heads)
    risk = rates.risk(fnr_weight)
    certified = torch.zeros(risk.shape[0], dtype=torch.bool)
    if rule == "certified":
        best, certified = _certified(data, n_heads, target_fnr, delta, layer, seed)
    else:
        keys = (rates.fnr, risk) if rule == "fnr" else (risk,)
        best = _lexicographic_least(keys)
    at = (torch.arange(len(best)), best)
    return LayerVotes(best + 1, ErrorRates(rates.fpr[at], rates.fnr[at]), certified)


def rates_by_threshold(
    counts: Int[Tensor, "example layer"], labels: Int[Tensor, " example"], n_heads: int
) -> ErrorRates:
    """Compute error rates of every layer's vote at each `tau` in 1..`n_heads`, with axes `layer tau`."""
    return error_rates(counts[:, :, None] >= torch.arange(1, n_heads + 1), labels)


def _lexicographic_least(keys: tuple[Float[Tensor, "layer tau"], ...]) -> Int[Tensor, " layer"]:
    """Return the last index among those least in the first key, then in the second."""
    # Last, because of equal thresholds the larger one flags less. Rates are ratios of counts: equal ones may differ by
    # rounding.
    allowed = torch.ones_like(keys[0], dtype=torch.bool)
    for key in keys:
        masked = torch.where(allowed, key, torch.full_like(key, torch.inf))
        allowed &= masked <= masked.amin(1, keepdim=True) + 1e-12
    return allowed.shape[1] - 1 - allowed.flip(1).int().argmax(1)


def _certified(
    data: VotingData, n_heads: int, target_fnr: float, delta: float, layer: int | None, seed: int
) -> tuple[Int[Tensor, " layer"], Bool[Tensor, " layer"]]:
    """Find the largest tau whose FNR is bounded, in each layer; returns indices of tau and where the bound holds."""
    # Tokens of one text are not independent: with all of them, a nominal 95% covers 79 to 91%. One random token of each
    # group makes the number of misses binomial.
    undesirable = (data.labels == 1).nonzero().squeeze(1)
    picked = undesirable[one_per_group(data.groups[undesirable], seed=seed)]
    counts, n = data.counts[picked], len(picked)
    n_layers = counts.shape[1]
    # Bonferroni over layers: the best of several certified layers may be used.
    confidence = 1 - (delta if layer is not None else delta / n_layers)
    taus = torch.ones(n_layers, dtype=torch.long)
    certified = torch.zeros(n_layers, dtype=torch.bool)
    candidates = list(range(n_layers)) if layer is None else [layer]
    for index in candidates:
        # Fixed-sequence testing: hypotheses are tested in an order that was set before seeing the data, up to the first
        # failure, so each may use the whole `delta`. This is why the same data may choose tau and certify it. It would
        # fail if the search went on after a failure, or started elsewhere.
        for tau in range(1, n_heads + 1):
            misses = int((counts[:, index] < tau).sum())
            if binomial_upper(misses, n, confidence=confidence) > target_fnr:
                break
            taus[index], certified[index] = tau, True
    if not bool(certified.any()):
        needed = groups_needed(target_fnr, confidence=confidence)
        least = int((counts[:, candidates] < 1).sum(0).min())
        raise GuaranteeError(
            f"No vote threshold has an FNR below {target_fnr:g} with confidence {confidence:g} on {n} undesirable "
            f"groups (tau = 1 misses at least {least}); without a miss it takes {needed} groups."
        )
    return taus - 1, certified
