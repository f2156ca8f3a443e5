"""Controls for comparison: the same heads and gate as a steering, with an edit that should have no effect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_sample import prepare
from radiant_lens.steering.maps import RankOneMaps

METRICS = ("mahalanobis", "wasserstein", "total")


@dataclass(frozen=True)
class RandomDirectionPolicy:
    """Control: rotate the displacements of a fitted steering to a random direction of equal length.

    Each head gets one random rotation, in coordinates in which the metric is the identity. So a displacement becomes
    a draw from N(0, M), scaled to the length in the metric `M^{-1}` that it had before, and it points where
    activations vary. Heads, positions and gate are those of the reference.

    Args:
        reference: a fitted steering with affine maps.
        metric: "mahalanobis" (`M` = pooled within-class covariance), "total" (`M` = covariance of all training
            activations, the difference of the classes included), or "wasserstein" (`M = I`).
        seed: of the rotations.
    """

    reference: Steering
    metric: str = "mahalanobis"
    seed: int = 0

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Draw rotations `Q` and multiply displacements by `L Q L^{-1}`, `M = L L'`.

        Raises:
            InvalidArgumentError: a reference of resample ablation, or heads of layers that were not collected.
        """
        _checks.instance("reference", self.reference, Steering)
        _checks.choice("metric", self.metric, METRICS)
        _checks.seed(self.seed)
        sample = prepare(cache, detector, lambda _: self.reference.sites, self.reference.gate)
        n, d = sample.weights.shape
        generator = torch.Generator().manual_seed(self.seed)
        turn, triangle = torch.linalg.qr(torch.randn((n, d, d), dtype=torch.float64, generator=generator))
        # The signs make `Q` uniform over rotations and reflections (Mezzadri, 2007): the QR factors are unique only up
        # to signs, and the library's choice of them favours some directions.
        turn = turn * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
        if self.metric != "wasserstein":
            total = self.metric == "total"
            root = torch.linalg.cholesky(sample.total_covariance() if total else sample.within_class_covariance())
            # Solved from the right: (L Q) L^{-1}, without an inverse.
            turn = torch.linalg.solve_triangular(root, root @ turn, upper=False, left=False)
        maps = self.reference.head_maps.transformed(turn)
        policy = {
            "name": "random direction",
            "metric": self.metric,
            "seed": self.seed,
            "of": self.reference.meta.get("policy"),
        }
        return replace(self.reference, head_maps=maps, meta={**self.reference.meta, "policy": policy})


@dataclass(frozen=True)
class IdentityPolicy:
    """Control: the heads and the gate of a fitted steering, with displacements of zero.

    Args:
        reference: any fitted steering.
    """

    reference: Steering

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Set every displacement of the reference to zero; `cache` and `detector` are not read."""
        _checks.instance("reference", self.reference, Steering)
        n, d = len(self.reference.sites), self.reference.scores.weights.shape[-1]
        maps = RankOneMaps.translation(torch.zeros((n, d), dtype=torch.float64))
        policy = {"name": "identity", "of": self.reference.meta.get("policy")}
        return replace(self.reference, head_maps=maps, meta={**self.reference.meta, "policy": policy})
