"""Controls that stand beside every claim: the same heads and gate, but an edit that should do nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_sample import prepare
from radiant_lens.steering.maps import RankOneMaps
from radiant_lens.steering.steering import Steering

METRICS = ("mahalanobis", "wasserstein")


@dataclass(frozen=True)
class RandomDirectionPolicy:
    """Control: the displacements of a fitted steering turned to a random direction of equal length.

    Displacements are turned by one random rotation for each head, in coordinates in which the metric is round: a
    displacement of any map becomes one drawn from N(0, M), of the length in the metric `M^{-1}` that it had, so that
    it lies where activations live. Heads, positions and gate stay the reference's.

    Args:
        reference: a fitted steering with affine maps.
        metric: "mahalanobis" (`M` = pooled within-class covariance) or "wasserstein" (`M = I`).
        seed: which rotations.
    """

    reference: Steering
    metric: str = "mahalanobis"
    seed: int = 0

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Draw the rotations `Q` and turn displacements by `L Q L^{-1}`, `M = L L'`.

        Raises:
            InvalidArgumentError: a reference whose maps are not affine.
        """
        _checks.instance("reference", self.reference, Steering)
        _checks.choice("metric", self.metric, METRICS)
        _checks.seed(self.seed)
        sample = prepare(cache, detector, lambda _: self.reference.sites, self.reference.gate)
        n, d = sample.weights.shape
        generator = torch.Generator().manual_seed(self.seed)
        turn, triangle = torch.linalg.qr(torch.randn((n, d, d), dtype=torch.float64, generator=generator))
        # Without these signs the rotations would not be uniform.
        turn = turn * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
        if self.metric == "mahalanobis":
            root = torch.linalg.cholesky(sample.within_class_covariance())
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
    """Control: the heads and the gate of a fitted steering, and no edit at all.

    Args:
        reference: any fitted steering.
    """

    reference: Steering

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """The reference with every displacement set to zero; `cache` and `detector` are not read."""
        _checks.instance("reference", self.reference, Steering)
        n, d = len(self.reference.sites), self.reference.scores.weights.shape[-1]
        maps = RankOneMaps.translation(torch.zeros((n, d), dtype=torch.float64))
        policy = {"name": "identity", "of": self.reference.meta.get("policy")}
        return replace(self.reference, head_maps=maps, meta={**self.reference.meta, "policy": policy})
