"""Families of displacements: how far a head moves, as a linear function of a few parameters.

A member adds `basis(a) parameters` to the activation `a` of a head wherever its gate is open:

- "constant": the same vector everywhere, `d_head` parameters;
- "affine": a vector, and a factor for each coordinate of the standardised activation, `2 d_head` parameters;
- "evidence": a vector, and another one times the evidence that the layer and those below it have for undesirable
  content (see `radiant_lens.steering.maps.EvidenceMaps`), `2 d_head` parameters;
- "strength": the displacement of another steering, times one parameter for each head.

What the model says depends on the parameters through the sum over positions of `gradient . basis(a)`, so gradients and
Fisher information of all families come from one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens.analysis.steering import Steering
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import RunningScore
from radiant_lens.steering.maps import DenseMaps, EvidenceMaps, HeadMaps, RankOneMaps, evidence

FAMILIES = ("constant", "affine", "evidence", "strength")


class Ramp(NamedTuple):
    """The way from the joint score of a layer to the evidence of each of its heads.

    Attributes:
        start, steepness: as for `EvidenceMaps`.
        unit: of the parameters by evidence, so that these are of the size of those of the other vector.
    """

    start: Float[Tensor, " site"]
    steepness: Float[Tensor, " site"]
    unit: Float[Tensor, " site"]


@dataclass(frozen=True)
class Family:
    """Displacements of some heads under a gate, linear in their parameters.

    Args:
        kind: one of `FAMILIES`.
        template: the edited heads with their gate; for "strength", also the displacements.
        mean, spread: of each coordinate of the activations, for "affine".
        ramp: of each head's evidence, for "evidence".
    """

    kind: str
    template: Steering
    mean: Float[Tensor, "site d_head"] | None = None
    spread: Float[Tensor, "site d_head"] | None = None
    ramp: Ramp | None = None

    @property
    def needs_joint(self) -> bool:
        """True where displacements, or the gate, depend on the joint scores of layers."""
        return self.kind == "evidence" or self.template.needs_joint

    @property
    def hooked_layers(self) -> tuple[int, ...]:
        """Layers whose activations displacements depend on."""
        return self.template.scores.hooked(self.template.layers, joint=self.needs_joint)

    def joint_scores(self, z: Sequence[Float[Tensor, "batch pos head d_head"]]) -> Sequence[Tensor | None]:
        """The joint score of each of the `hooked_layers`, from their activations; None where a layer gives it alone."""
        scores, running = self.template.scores, RunningScore()
        joint, depends = scores.joint, scores.hand_over(self.template.layers, joint=self.needs_joint)
        if joint is None or not depends:
            return [None] * len(z)
        real = z[0].new_zeros(0, dtype=torch.float32)
        return [running(joint.of_layer(i, real.to(a.device)), a.float()) for i, a in zip(self.hooked_layers, z)]

    @property
    def sites(self) -> tuple[HeadSite, ...]:
        """The heads that are moved."""
        return self.template.sites

    @property
    def n_parameters(self) -> int:
        """Parameters of each head."""
        d_head = self.template.scores.weights.shape[-1]
        return {"constant": d_head, "affine": 2 * d_head, "evidence": 2 * d_head, "strength": 1}[self.kind]

    def project(
        self,
        layer: int,
        gradient: Float[Tensor, "batch pos head d_head"],
        z: Float[Tensor, "batch pos head d_head"],
        edited: Bool[Tensor, "batch pos"],
        joint: Float[Tensor, "batch pos 1"] | None = None,
    ) -> Float[Tensor, "batch site parameter"]:
        """Gradient in the parameters of a layer's heads, for each text, from the gradient in their activations.

        Args:
            layer: the layer.
            gradient: of an objective, at the activations after the edits so far.
            z: the activations before any edit.
            edited: positions at which edits happen where the gate is open.
            joint: joint score of the layer, where it depends on other layers.
        """
        at = [i for i, site in enumerate(self.sites) if site.layer == layer]
        heads = torch.tensor([self.sites[i].head for i in at], device=z.device)
        weight = edited[:, :, None].float()
        gated = self.template.gate != "none" or self.kind == "strength"
        edit = self.template.displace(z, layer, joint) if gated else None
        if edit is not None:
            weight = weight * edit.gated
        # Positions outside the window may hold anything, NaN included: `where`, not a product.
        of_heads = gradient[:, :, heads].float().where(weight[..., None] > 0, 0)
        if self.kind == "strength":
            assert edit is not None
            return (of_heads * edit.displacement.float()).sum((1, 3))[..., None]
        shift = of_heads.sum(1)
        if self.kind == "constant":
            return shift
        factor = self._evidence(z, at, layer, joint) if self.kind == "evidence" else self._standardised(z, at, heads)
        return torch.cat([shift, (of_heads * factor).sum(1)], dim=-1)

    def maps(self, parameters: Float[Tensor, "site parameter"]) -> HeadMaps:
        """The maps of these parameters."""
        if self.kind == "constant":
            return RankOneMaps.translation(parameters)
        if self.kind == "strength":
            return self.template.head_maps.scaled(parameters[:, 0])
        shift, factor = parameters.chunk(2, dim=-1)
        if self.kind == "evidence":
            assert self.ramp is not None
            start, steepness, unit = (value.to(factor) for value in self.ramp)
            return EvidenceMaps(shift.contiguous(), factor * unit[:, None], start, steepness)
        assert self.mean is not None and self.spread is not None
        factor = factor / self.spread.to(factor)
        return DenseMaps(torch.diag_embed(factor), shift - factor * self.mean.to(factor))

    def _standardised(self, z: Tensor, at: list[int], heads: Tensor) -> Tensor:
        assert self.mean is not None and self.spread is not None
        mean, spread = (value[at].to(z.device, torch.float32) for value in (self.mean, self.spread))
        return torch.nan_to_num((z[:, :, heads].float() - mean) / spread)

    def _evidence(
        self, z: Tensor, at: list[int], layer: int, joint: Tensor | None
    ) -> Float[Tensor, "batch pos site 1"]:
        assert self.ramp is not None and self.template.scores.joint is not None
        z = z.float()
        joint = self.template.scores.joint.of_layer(layer, z)(z) if joint is None else joint
        start, steepness, unit = (value[at].to(joint) for value in self.ramp)
        return torch.nan_to_num(evidence(joint, start, steepness) * unit)[..., None]
