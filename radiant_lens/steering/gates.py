"""Who is edited where: the gate, and the trust region around what a map was fitted on."""

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
    """The detector's scores and vote thresholds, all that a gate needs of it."""

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, "layer head"]
    thresholds: Int[Tensor, " layer"]


@dataclass(frozen=True)
class TrustRegion(PerHead):
    """Ellipsoid around the activations that each map was fitted on.

    An activation is trusted where `||whiten (a - mean)||^2 <= radius2`.
    """

    mean: Float[Tensor, "site d_head"]
    whiten: Float[Tensor, "site d_head d_head"]
    radius2: Float[Tensor, " site"]
    axes: ClassVar[dict[str, str]] = {"mean": "site d_head", "whiten": "site d_head d_head", "radius2": "site"}

    def holds(self, z: Float[Tensor, "*batch site d_head"]) -> Bool[Tensor, "*batch site"]:
        """Whether each activation lies inside."""
        return torch.einsum("sij,...sj->...si", self.whiten, z - self.mean).square().sum(-1) <= self.radius2


def opens(
    gate: str,
    own: Bool[Tensor, "*batch site"],
    votes: Int[Tensor, "*batch 1"] | None,
    threshold: int | Int[Tensor, ""],
) -> Bool[Tensor, "*batch site"]:
    """Which heads of one layer are edited, from their own flags and their layer's count of flags."""
    if gate == "head":
        return own
    if gate == "none":
        return torch.ones_like(own)
    assert votes is not None
    layer = votes >= threshold
    return (own & layer) if gate == "vote" else layer.expand_as(own)
