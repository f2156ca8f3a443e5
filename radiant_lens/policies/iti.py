"""Inference-time intervention (Li et al., 2023, arXiv 2306.03341): the baseline to beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.choosing import HeadChoice, HeadSample, assemble, prepare
from radiant_lens.policies.gates import GATES
from radiant_lens.policies.maps import Certificate, RankOneMaps
from radiant_lens.policies.steering import Steering

DIRECTIONS = ("mass_mean", "probe", "random")


@dataclass(frozen=True)
class ITIPolicy:
    """Shift the best-detecting heads by `alpha` standard deviations toward the desirable side, everywhere.

    Args:
        alpha: strength, in standard deviations of the training activations along the direction; positive.
        n_heads: how many heads of least validation risk (all, where the model has fewer).
        direction: "mass_mean" (from the undesirable to the desirable mean), "probe" (against the detector's
            weight), or "random".
        heads: the heads themselves, in place of `n_heads`.
        gate: as for `RadiantPolicy`; ITI itself has none.
        seed: of the random direction.
    """

    alpha: float = 2.0
    n_heads: int = 24
    direction: str = "mass_mean"
    heads: HeadChoice | None = None
    gate: str = "none"
    seed: int = 0

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Find the direction and length of every chosen head's shift.

        Raises:
            InvalidArgumentError: a parameter out of its range.
        """
        self.check()
        heads = min(self.n_heads, cache.n_layers * cache.n_heads) if self.heads is None else self.heads
        sample = prepare(cache, detector, heads, 1, self.gate)
        direction = self._directions(sample)
        spread = torch.einsum("nsd,sd->ns", sample.z.double(), direction).std(dim=0)
        write = self.alpha * spread[:, None] * direction
        maps = RankOneMaps(write, torch.zeros_like(write), torch.ones(len(write), dtype=torch.float64))
        settings = {**asdict(self), "heads": [list(site) for site in sample.sites]}
        certificates = [Certificate("iti", n_flagged=int(n)) for n in sample.gated.sum(0)]
        return assemble("iti", settings, sample, maps, certificates, cache, detector, gate=self.gate)

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        _checks.between("alpha", self.alpha, 0)
        _checks.whole("n_heads", self.n_heads, 1)
        _checks.choice("direction", self.direction, DIRECTIONS)
        _checks.choice("gate", self.gate, GATES)

    def _directions(self, sample: HeadSample) -> Float[Tensor, "site d_head"]:
        if self.direction == "mass_mean":
            z = sample.z.double()
            raw = z[~sample.undesirable].mean(0) - z[sample.undesirable].mean(0)
        elif self.direction == "probe":
            raw = -sample.weights
        else:
            raw = torch.randn(
                sample.weights.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed)
            )
        return raw / raw.norm(dim=-1, keepdim=True).clamp_min(1e-300)
