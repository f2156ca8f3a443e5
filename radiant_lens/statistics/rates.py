"""Error rates of flags. Label 1 is undesirable; a flag is a prediction of 1."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class ErrorRates(NamedTuple):
    """Shares of desirable examples flagged (`fpr`) and of undesirable ones missed (`fnr`), each in [0, 1]."""

    fpr: Float[Tensor, "*batch"]
    fnr: Float[Tensor, "*batch"]

    def risk(self, fnr_weight: float) -> Float[Tensor, "*batch"]:
        """`FPR + fnr_weight * FNR` (RADIANT, section 3)."""
        return self.fpr + fnr_weight * self.fnr


def error_rates(flags: Bool[Tensor, " example *batch"], labels: Int[Tensor, " example"]) -> ErrorRates:
    """Error rates of flags; both classes must be present."""
    undesirable = labels == 1
    fpr = flags[~undesirable].double().mean(dim=0)
    fnr = (~flags[undesirable]).double().mean(dim=0)
    return ErrorRates(fpr, fnr)
