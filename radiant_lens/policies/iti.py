"""Inference-time intervention (Li et al., 2023, arXiv 2306.03341), the usual baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_policy import HeadPolicy
from radiant_lens.policies.head_sample import HeadSample
from radiant_lens.policies.heads import HeadChoice, n_collected_heads
from radiant_lens.steering.maps import HeadMaps, RankOneMaps

DEFAULT_HEADS = 24
DIRECTIONS = ("mass_mean", "probe", "random")


@dataclass(frozen=True)
class ITIPolicy(HeadPolicy):
    """Shift the best-detecting heads by `alpha` standard deviations toward the desirable side, everywhere.

    Args:
        alpha: strength, in standard deviations of the training activations along the direction; positive.
        n_heads: number of heads of least validation risk. None: 24, or all heads of a smaller model.
        direction: "mass_mean" (from the undesirable to the desirable mean), "probe" (against the detector's
            weight), or "random".
        seed: of the random direction.
        heads: any choice of heads of `RadiantPolicy`, in place of `n_heads`.
        n_layers: with heads "layer", the number of layers.
        gate: as for `RadiantPolicy`; default "none", as ITI has no gate.
    """

    alpha: float = 2.0
    n_heads: int | None = None
    direction: str = "mass_mean"
    seed: int = 0
    heads: HeadChoice | None = field(default=None, kw_only=True)
    label = "iti"

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        super().check()
        _checks.between("alpha", self.alpha, 0)
        if self.n_heads is not None:
            _checks.whole("n_heads", self.n_heads, 1)
        _checks.choice("direction", self.direction, DIRECTIONS)
        _checks.seed(self.seed)

    def default_heads(self, detector: RiskAwareDetector) -> HeadChoice:
        """Choose the `n_heads` heads of least risk.

        Raises:
            InvalidArgumentError: more heads than the detector has.
        """
        available = n_collected_heads(detector)
        if self.n_heads is None:
            return min(DEFAULT_HEADS, available)
        _checks.whole("n_heads", self.n_heads, 1, available)
        return self.n_heads

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute translations of `alpha` standard deviations."""
        direction = self._directions(sample)
        spread = torch.stack([(z @ towards).std() for z, towards in zip(sample.rows.each_head(), direction)])
        return RankOneMaps.translation(self.alpha * spread[:, None] * direction)

    def _directions(self, sample: HeadSample) -> Float[Tensor, "site d_head"]:
        if self.direction == "mass_mean":
            raw = sample.mean_difference()
        elif self.direction == "probe":
            raw = -sample.weights
        else:
            # One draw for all heads of the model, for two reasons: (1) a head's direction does not depend on the other
            # edited heads, also when layers are fitted one by one; (2) no two heads share a direction.
            generator = torch.Generator().manual_seed(self.seed)
            every = torch.randn(sample.rows.z.shape[1:], dtype=torch.float64, generator=generator)
            raw = every[sample.rows.layers, sample.rows.heads]
        return raw / raw.norm(dim=-1, keepdim=True).clamp_min(1e-300)
