"""Controls that stand beside every claim: the same heads and gate, but an edit that should do nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from radiant_lens import _checks
from radiant_lens._errors import InvalidArgumentError
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.choosing import prepare
from radiant_lens.policies.maps import RankOneMaps
from radiant_lens.policies.steering import Steering

METRICS = ("mahalanobis", "wasserstein")


@dataclass(frozen=True)
class RandomDirectionPolicy:
    """Control: the displacements of a fitted steering turned to a random direction of equal length.

    Directions are drawn from N(0, M) and scaled to the reference's length in the metric `M^{-1}`, so that
    they lie where activations live; heads, positions and gate stay the reference's.

    Args:
        reference: a fitted steering whose maps are rank one (transports, ITI).
        metric: "mahalanobis" (`M` = pooled within-class covariance) or "wasserstein" (`M = I`).
        seed: which directions.
    """

    reference: Steering
    metric: str = "mahalanobis"
    seed: int = 0

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Draw the directions.

        Raises:
            InvalidArgumentError: a reference whose maps are not rank one.
        """
        _checks.choice("metric", self.metric, METRICS)
        maps = self.reference.head_maps
        if not isinstance(maps, RankOneMaps):
            raise InvalidArgumentError(f"`reference` must have rank-one maps; got {maps.kind!r} ones.")
        sample = prepare(cache, detector, list(self.reference.sites), 1, self.reference.gate)
        d = maps.write.shape[1]
        covariance = (
            sample.within_class_covariance()
            if self.metric == "mahalanobis"
            else torch.eye(d, dtype=torch.float64).expand(len(maps.write), d, d)
        )
        root = torch.linalg.cholesky(covariance)
        noise = torch.randn(maps.write.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        drawn = torch.einsum("sij,sj->si", root, noise)
        # In the metric M^{-1} the drawn vector is as long as the noise it came from.
        length = torch.linalg.solve_triangular(root, maps.write.double()[..., None], upper=False)[..., 0].norm(dim=-1)
        write = drawn * (length / noise.norm(dim=-1))[:, None]
        policy = {
            "name": "random direction",
            "metric": self.metric,
            "seed": self.seed,
            "of": self.reference.meta.get("policy"),
        }
        return replace(
            self.reference, head_maps=replace(maps, write=write), meta={**self.reference.meta, "policy": policy}
        )


@dataclass(frozen=True)
class IdentityPolicy:
    """Control: the heads and the gate of a fitted steering, and no edit at all.

    Args:
        reference: any fitted steering.
    """

    reference: Steering

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """The reference with every displacement set to zero; `cache` and `detector` are not read."""
        n, d = len(self.reference.sites), self.reference.scores.weights.shape[-1]
        zero = torch.zeros((n, d), dtype=torch.float64)
        maps = RankOneMaps(zero, zero, torch.zeros(n, dtype=torch.float64))
        policy = {"name": "identity", "of": self.reference.meta.get("policy")}
        return replace(self.reference, head_maps=maps, meta={**self.reference.meta, "policy": policy})
