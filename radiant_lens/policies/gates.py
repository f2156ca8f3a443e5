"""Who is edited where: the gate, and the trust region around what a map was fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GATES = ("head", "vote", "layer", "none")


@dataclass(frozen=True)
class HeadScores:
    """The detector's scores and vote thresholds, all that a gate needs of it."""

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, "layer head"]
    thresholds: Int[Tensor, " layer"]


@dataclass(frozen=True)
class TrustRegion:
    """Ellipsoid around the activations that each map was fitted on.

    An activation is trusted where `||whiten (a - mean)||^2 <= radius2`.
    """

    mean: Float[Tensor, "site d_head"]
    whiten: Float[Tensor, "site d_head d_head"]
    radius2: Float[Tensor, " site"]

    def holds(self, z: Float[Tensor, "*batch site d_head"]) -> Bool[Tensor, "*batch site"]:
        """Whether each activation lies inside."""
        return torch.einsum("sij,...sj->...si", self.whiten, z - self.mean).square().sum(-1) <= self.radius2

    def take(self, index: Int[Tensor, " chosen"]) -> TrustRegion:
        """The regions of the chosen heads."""
        return TrustRegion(self.mean[index], self.whiten[index], self.radius2[index])

    def to(self, like: Tensor) -> TrustRegion:
        """The same regions in the precision and on the device of `like`."""
        return TrustRegion(self.mean.to(like), self.whiten.to(like), self.radius2.to(like))


def opens(
    gate: str,
    own: Bool[Tensor, "*batch site"],
    votes: Int[Tensor, "*batch"] | None,
    threshold: int | Int[Tensor, ""],
) -> Bool[Tensor, "*batch site"]:
    """Which heads of one layer are edited, from their own flags and their layer's count of flags."""
    if gate == "head":
        return own
    if gate == "none":
        return torch.ones_like(own)
    assert votes is not None
    layer = (votes >= threshold)[..., None]
    return (own & layer) if gate == "vote" else layer.expand_as(own)
