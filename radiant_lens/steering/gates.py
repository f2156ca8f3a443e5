"""Gates, which decide at every token which heads are edited, and trust regions, which leave odd activations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.steering.maps import PerHead

GATES = ("head", "vote", "layer", "none")


@dataclass(frozen=True)
class HeadScores:
    """Scores and vote thresholds of the detector, which are all that a gate needs.

    The score of a head is `bias + weight . a`; the head flags where it is at least 0.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, "layer head"]
    thresholds: Int[Tensor, " layer"]


@dataclass(frozen=True)
class TrustRegion(PerHead):
    """Ellipsoid around the activations that each map was fitted on.

    An activation is trusted where `||whiten (a - mean)||^2 <= radius2`. An affine map moves activations far outside
    wildly; those are left alone.
    """

    mean: Float[Tensor, "site d_head"]
    whiten: Float[Tensor, "site d_head d_head"]
    radius2: Float[Tensor, " site"]
    axes: ClassVar[dict[str, str]] = {"mean": "site d_head", "whiten": "site d_head d_head", "radius2": "site"}

    def contains(self, z: Float[Tensor, "*batch site d_head"]) -> Bool[Tensor, "*batch site"]:
        """True for each activation inside the region of its head."""
        # ||whiten (a - mean)||^2 is the squared Mahalanobis distance, whiten' whiten being the inverse covariance.
        return torch.einsum("sij,...sj->...si", self.whiten, z - self.mean).square().sum(-1) <= self.radius2


def opens(
    gate: str,
    own: Bool[Tensor, "*batch site"],
    votes: Int[Tensor, "*batch 1"] | None,
    threshold: int | Int[Tensor, ""],
) -> Bool[Tensor, "*batch site"]:
    """True for the heads of one layer that are edited.

    Args:
        gate: one of `GATES`.
        own: flags of the heads themselves.
        votes: number of all heads of the layer that flag; None for gates that do not vote.
        threshold: least number of votes that opens the gate of the layer.
    """
    if gate == "head":
        return own
    if gate == "none":
        return torch.ones_like(own)
    assert votes is not None
    layer = votes >= threshold
    return (own & layer) if gate == "vote" else layer.expand_as(own)
