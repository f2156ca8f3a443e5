"""Gates, which decide at every token which heads are edited, and trust regions, which leave odd activations alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import layers_read
from radiant_lens.steering.maps import PerHead

GATES = ("head", "vote", "layer", "joint", "none")
VOTING_GATES = ("vote", "layer")
"""Gates that count the flags of all heads of a layer, edited or not."""


class JointScore(NamedTuple):
    """The score of one layer: `bias + sum over heads of weights[head] . a[head] + carry * score of the layer below`.

    Attributes:
        layer: its index.
        weights, bias, carry: of the score.
        carries: whether `carry` is not 0, known without a look at the device.
    """

    layer: int
    weights: Float[Tensor, "head d_head"]
    bias: Float[Tensor, " 1"]
    carry: Float[Tensor, " 1"]
    carries: bool

    def __call__(
        self, z: Float[Tensor, "*batch head d_head"], below: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch 1"]:
        """The score of these activations; `below`: that of the layer below, at the same tokens.

        Raises:
            InvalidArgumentError: there is no `below`, and the score depends on it.
        """
        # No matrix product: an accelerator, or autocast, may round its factors.
        own = (z * self.weights).sum((-2, -1))[..., None] + self.bias
        if not self.carries:
            return own
        if below is None:
            raise InvalidArgumentError(
                f"The joint score of layer {self.layer} takes up that of layer {self.layer - 1}: give "
                "`joint=steering.joint_scores(z)[..., [layer]]`, with `z` of all layers, or hook all of "
                "`steering.hooked_layers`."
            )
        return own + self.carry * below.to(own)


@dataclass(frozen=True)
class JointScores:
    """Scores of whole layers, each with a share of the score of the layer below it.

    A layer flags where its score, `biases[layer] + sum over heads of weights[layer, head] . a[head] + carry[layer] *
    score[layer - 1]`, is at least 0.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]
    carry: Float[Tensor, " layer"]

    def of_layer(self, layer: int, like: Tensor) -> JointScore:
        """The score of one layer, in the precision and on the device of `like`."""
        bias, carry = (value[layer, None].to(like) for value in (self.biases, self.carry))
        return JointScore(layer, self.weights[layer].to(like), bias, carry, layer in self.carrying)

    @cached_property
    def carrying(self) -> frozenset[int]:
        """Layers whose score depends on that of the layer below."""
        return frozenset(self.carry.nonzero().flatten().tolist())

    def __call__(self, z: Float[Tensor, "*batch layer head d_head"]) -> Float[Tensor, "*batch layer"]:
        """The scores of all layers, in single precision at least."""
        real, running = z.new_zeros(0, dtype=torch.promote_types(z.dtype, torch.float32)), RunningScore()
        scores = [running(self.of_layer(i, real), z[..., i, :, :].to(real)) for i in range(len(self.biases))]
        return torch.cat(scores, dim=-1)


class RunningScore:
    """The joint scores of one pass, layer by layer upwards: each is handed to the next.

    Args:
        top: the last layer of a pass, whose score nobody takes up; None: unknown.
    """

    def __init__(self, top: int | None = None) -> None:
        self._top = top
        # Several threads may generate with the same hooks.
        self._last = threading.local()

    def __call__(self, score: JointScore, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch 1"]:
        """The score of a layer; if it depends on the layer below, that one must come right before."""
        below = self._last.score if getattr(self._last, "layer", None) == score.layer - 1 else None
        value = score(z, None if below is None else below.to(z.device))
        # What is kept may hold the graph of the whole pass.
        self._last.score, self._last.layer = (None, None) if score.layer == self._top else (value, score.layer)
        return value


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
        joint = {} if self.joint is None else {f"joint_{name}": getattr(self.joint, name) for name in _JOINT_FIELDS}
        return {"weights": self.weights, "biases": self.biases, "thresholds": self.thresholds, **joint}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> HeadScores:
        """The scores of which `tensors` are the tensors; other names raise a `TypeError`."""
        joint = {name.removeprefix("joint_"): value for name, value in tensors.items() if name.startswith("joint_")}
        if "biases" in joint:
            # Those of an earlier version do not depend on the layer below.
            joint.setdefault("carry", torch.zeros_like(joint["biases"]))
        own = {name: value for name, value in tensors.items() if not name.startswith("joint_")}
        return cls(**own, joint=JointScores(**joint) if joint else None)

    def hooked(self, layers: Sequence[int], *, joint: bool) -> tuple[int, ...]:
        """Layers that need a hook: the edited `layers`, and those below that `joint` scores, if needed, take up."""
        return layers_read(layers, self.joint.carrying) if joint and self.joint is not None else tuple(layers)

    def hand_over(self, layers: Sequence[int], *, joint: bool) -> bool:
        """True where edits of these layers depend on layers below."""
        return joint and self.joint is not None and not self.joint.carrying.isdisjoint(layers)

    def used(self, *, joint: bool) -> tuple[Tensor, ...]:
        """The tensors that edits depend on: all, but joint scores only where they need these."""
        return tuple(t for name, t in self.tensors().items() if joint or not name.startswith("joint"))


_JOINT_FIELDS = tuple(field.name for field in fields(JointScores))


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
