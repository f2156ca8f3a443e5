"""Knocking heads out: the edits that ask what a head is needed for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.choosing import HeadChoice, assemble, prepare
from radiant_lens.policies.maps import Certificate, DenseMaps
from radiant_lens.policies.steering import Steering

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True)
class AblationPolicy:
    """Replace the activation of heads by zero or by its mean over the training data.

    Args:
        kind: "zero" or "mean".
        heads: as for `RadiantPolicy`.
        n_layers: with heads "layer", how many.
        gate: as for `RadiantPolicy`.
    """

    kind: str = "zero"
    heads: HeadChoice = "significant"
    n_layers: int = 1
    gate: str = "none"

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Find what the heads' activations are replaced by.

        Raises:
            InvalidArgumentError: a parameter out of its range.
        """
        _checks.choice("kind", self.kind, ABLATIONS)
        sample = prepare(cache, detector, self.heads, self.n_layers, self.gate)
        n, d = sample.weights.shape
        mean = sample.z.double().mean(0)
        maps = DenseMaps(
            -torch.eye(d, dtype=torch.float64).repeat(n, 1, 1), mean if self.kind == "mean" else torch.zeros_like(mean)
        )
        settings = {**asdict(self), "heads": [list(site) for site in sample.sites]}
        certificates = [Certificate(f"{self.kind} ablation") for _ in sample.sites]
        return assemble(f"{self.kind} ablation", settings, sample, maps, certificates, cache, detector, gate=self.gate)
