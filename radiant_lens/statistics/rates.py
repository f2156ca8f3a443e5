"""Error rates, their exact bounds and their intervals.

Tokens of one text are not independent, so whatever claims a confidence here counts groups (questions),
not tokens. Label 1 is undesirable; a flag is a prediction of 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from radiant_lens.statistics.bounds import group_sums


class ErrorRates(NamedTuple):
    """Shares of desirable examples flagged (`fpr`) and of undesirable ones missed (`fnr`), each in [0, 1]."""

    fpr: Float[Tensor, "*batch"]
    fnr: Float[Tensor, "*batch"]

    def risk(self, fnr_weight: float) -> Float[Tensor, "*batch"]:
        """`FPR + fnr_weight * FNR` (RADIANT, section 3)."""
        return self.fpr + fnr_weight * self.fnr


def error_rates(flags: Bool[Tensor, " example *batch"], labels: Int[Tensor, " example"]) -> ErrorRates:
    """Error rates of flags; both classes must be there."""
    undesirable = labels == 1
    fpr = flags[~undesirable].double().mean(dim=0)
    fnr = (~flags[undesirable]).double().mean(dim=0)
    return ErrorRates(fpr, fnr)


def benjamini_hochberg(p_values: Float[Tensor, "*shape"], rate: float = 0.05) -> Bool[Tensor, "*shape"]:
    """Which hypotheses are rejected at false discovery rate `rate` (Benjamini and Hochberg, 1995)."""
    flat = p_values.flatten()
    adjusted = torch.as_tensor(stats.false_discovery_control(flat.double().numpy()), dtype=torch.float64)
    return (adjusted <= rate).reshape(p_values.shape)


def detection_p_values(
    flags: Bool[Tensor, " example *batch"],
    labels: Int[Tensor, " example"],
    groups: Int[Tensor, " example"],
    fnr_weight: float,
) -> Float[Tensor, "*batch"]:
    """One-sided p-values of "the risk is not below that of flagging all or none", groups being the units.

    A t-test on the groups' linearised contributions to the risk, with one made-up group of no gain, so
    that a perfect score on few groups is not certain. What flags all or none has p = 1.
    """
    rates = error_rates(flags, labels)
    gain = min(1.0, fnr_weight) - rates.risk(fnr_weight)
    undesirable = (labels == 1).view(-1, *[1] * (flags.ndim - 1))
    miss = fnr_weight * ((~flags).double() - rates.fnr) / (labels == 1).sum()
    alarm = (flags.double() - rates.fpr) / (labels == 0).sum()
    error = torch.where(undesirable, miss, alarm)
    contributions = group_sums(error, groups)
    n_groups = len(contributions)
    # The made-up group adds the square of its deviation, which is the whole gain shared by all groups.
    variance = (contributions.square().sum(0) + (gain / n_groups).square()) * n_groups / max(n_groups - 1, 1)
    t = gain / variance.clamp_min(1e-300).sqrt()
    p = torch.as_tensor(stats.t.sf(t.numpy(), max(n_groups - 1, 1)), dtype=torch.float64)
    constant = flags.all(dim=0) | ~flags.any(dim=0)
    return torch.where(constant | (gain <= 0), torch.ones_like(p), p).reshape(gain.shape)
