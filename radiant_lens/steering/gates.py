"""Gates, which decide at every token which heads are edited, and trust regions, which leave odd activations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.maps import PerHead

GATES = ("head", "vote", "layer", "joint", "none")
VOTING_GATES = ("vote", "layer")
"""Gates that count the flags of all heads of a layer, edited or not."""


class JointScore(NamedTuple):
    """The joint score of one layer."""

    weights: Float[Tensor, "head d_head"]
    bias: Float[Tensor, " 1"]

    def __call__(self, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch 1"]:
        """The score of these activations."""
        return (z * self.weights).sum((-2, -1))[..., None] + self.bias


@dataclass(frozen=True)
class JointScores:
    """Scores of whole layers: `biases[layer] + sum over heads of weights[layer, head] . a[head]`.

    A layer flags where its score is at least 0.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]

    def of_layer(self, layer: int, like: Tensor) -> JointScore:
        """The score of one layer, in the precision and on the device of `like`."""
        return JointScore(self.weights[layer].to(like), self.biases[layer, None].to(like))


@dataclass(frozen=True)
class HeadScores:
    """Scores and vote thresholds of the detector, which are all that a gate needs.

    The score of a head is `bias + weight . a`; the head flags where it is at least 0. `joint` holds the scores of whole
    layers, for the gate of this name; None: there is no such gate.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, "layer head"]
    thresholds: Int[Tensor, " layer"]
    joint: JointScores | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name."""
        joint = {} if self.joint is None else {"joint_weights": self.joint.weights, "joint_biases": self.joint.biases}
        return {"weights": self.weights, "biases": self.biases, "thresholds": self.thresholds, **joint}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> HeadScores:
        """The scores of which `tensors` are the tensors; other names raise a `TypeError`."""
        names = ("joint_weights", "joint_biases")
        joint = JointScores(*(tensors[name] for name in names)) if any(name in tensors for name in names) else None
        return cls(**{name: value for name, value in tensors.items() if name not in names}, joint=joint)

    def used(self, *, joint: bool) -> tuple[Tensor, ...]:
        """The tensors that edits depend on: all, but joint scores only where they need these."""
        return tuple(t for name, t in self.tensors().items() if joint or not name.startswith("joint"))


def require_joint(gate: str | None, available: bool, *, evidence: bool = False) -> None:
    """Raise `InvalidArgumentError` for the gate "joint", or edits by evidence, without joint scores."""
    if (gate == "joint" or evidence) and not available:
        asking = "`gate` 'joint'" if gate == "joint" else "An edit by the evidence of its layer"
        raise InvalidArgumentError(
            f"{asking} needs joint scores of the layers, and this detector has none: fit it with "
            "`RiskAwareDetector(joint=True)`."
        )


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
    joint: Bool[Tensor, "*batch 1"] | None = None,
) -> Bool[Tensor, "*batch site"]:
    """True for the heads of one layer that are edited.

    Args:
        gate: one of `GATES`.
        own: flags of the heads themselves.
        votes: number of all heads of the layer that flag; None for gates that do not vote.
        threshold: least number of votes that opens the gate of the layer.
        joint: flag of the layer's joint score; None for other gates.
    """
    if gate == "head":
        return own
    if gate == "none":
        return torch.ones_like(own)
    if gate == "joint":
        assert joint is not None
        return joint.expand_as(own)
    assert votes is not None
    layer = votes >= threshold
    return (own & layer) if gate == "vote" else layer.expand_as(own)
