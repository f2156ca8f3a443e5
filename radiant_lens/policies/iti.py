"""Inference-time intervention (Li et al., 2023, arXiv 2306.03341): the baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_policy import HeadPolicy
from radiant_lens.policies.head_sample import HeadSample
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.steering.maps import HeadMaps, RankOneMaps

DIRECTIONS = ("mass_mean", "probe", "random")


@dataclass(frozen=True)
class ITIPolicy(HeadPolicy):
    """Shift the best-detecting heads by `alpha` standard deviations toward the desirable side, everywhere.

    Args:
        alpha: strength, in standard deviations of the training activations along the direction; positive.
        n_heads: how many heads of least validation risk (all, where the model has fewer).
        direction: "mass_mean" (from the undesirable to the desirable mean), "probe" (against the detector's
            weight), or "random".
        seed: of the random direction.
        heads: any choice of heads of `RadiantPolicy`, in place of `n_heads`.
        n_layers: with heads "layer", how many.
        gate: as for `RadiantPolicy`; ITI itself has none.
    """

    alpha: float = 2.0
    n_heads: int = 24
    direction: str = "mass_mean"
    seed: int = 0
    heads: HeadChoice | None = field(default=None, kw_only=True)
    label = "iti"

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        super().check()
        _checks.between("alpha", self.alpha, 0)
        _checks.whole("n_heads", self.n_heads, 1)
        _checks.choice("direction", self.direction, DIRECTIONS)
        _checks.seed(self.seed)

    def default_heads(self, detector: RiskAwareDetector) -> HeadChoice:
        """The `n_heads` heads of least risk."""
        return min(self.n_heads, detector.head_risk_.numel())

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Translations of `alpha` standard deviations."""
        direction = self._directions(sample)
        spread = torch.einsum("nsd,sd->ns", sample.z.double(), direction).std(dim=0)
        return RankOneMaps.translation(self.alpha * spread[:, None] * direction)

    def _directions(self, sample: HeadSample) -> Float[Tensor, "site d_head"]:
        if self.direction == "mass_mean":
            raw = sample.mean_difference()
        elif self.direction == "probe":
            raw = -sample.weights
        else:
            # Drawn for all heads of the model, so that a head's direction does not depend on which others are edited.
            generator = torch.Generator().manual_seed(self.seed)
            every = torch.randn(sample.rows.z.shape[1:], dtype=torch.float64, generator=generator)
            raw = every[sample.rows.layers, sample.rows.heads]
        return raw / raw.norm(dim=-1, keepdim=True).clamp_min(1e-300)
