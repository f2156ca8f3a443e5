"""One layer's edit: constants prepared once, a handful of tensor operations at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import glu

from radiant_lens.steering.gates import HeadScores, TrustRegion, opens
from radiant_lens.steering.maps import HeadMaps, RankOneMaps


class LayerEdit(NamedTuple):
    """What happens at one layer: for its edited heads, in the order of `heads`.

    `untrusted` is where the gate is open but the activation lies outside the trust region and is left alone.
    """

    layer: int
    heads: Int[Tensor, " site"]
    flagged: Bool[Tensor, "*batch site"]
    gated: Bool[Tensor, "*batch site"]
    untrusted: Bool[Tensor, "*batch site"]
    displacement: Float[Tensor, "*batch site d_head"]


@dataclass(frozen=True)
class LayerEditor:
    """All that one layer's hook needs, on one device and in one precision.

    Attributes:
        n_heads: of the layer.
        heads: the edited ones.
        voting: the heads whose scores the gate asks for: the edited ones, then (for votes) all others of the layer.
        weights, biases: scores of the voting heads.
    """

    layer: int
    n_heads: int
    heads: Int[Tensor, " site"]
    maps: HeadMaps
    weights: Float[Tensor, "voting d_head"]
    biases: Float[Tensor, " voting"]
    voting: Int[Tensor, " voting"]
    threshold: int
    gate: str
    trust: TrustRegion | None

    def look(self, z: Float[Tensor, "*batch head d_head"]) -> LayerEdit:
        """What would be added to each edited head; 0 where its gate is shut."""
        z = z.to(self.weights.dtype)
        edited = z[..., self.heads, :]
        flagged, opened = self._gate((z[..., self.voting, :] * self.weights).sum(-1) + self.biases)
        gated = opened if self.trust is None else opened & self.trust.holds(edited)
        displacement = self.maps.displacement(edited) * gated[..., None]
        return LayerEdit(self.layer, self.heads, flagged, gated, opened & ~gated, displacement)

    def edited(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The activations after the edit: all heads', split (`*batch head d_head`) or not (`*batch d_in`)."""
        split = z.reshape(-1, self.n_heads, self.weights.shape[1])
        return added(split, self.look(split)).reshape(z.shape)

    def _gate(self, scores: Float[Tensor, "*batch voting"]) -> tuple[Tensor, Tensor]:
        """Which edited heads flag, and whose gate is open."""
        flags = scores >= 0
        if self.gate not in ("vote", "layer"):
            return flags, opens(self.gate, flags, None, 0)
        n = len(self.heads)
        flagged = flags if n == flags.shape[-1] else flags[..., :n]
        return flagged, opens(self.gate, flagged, flags.sum(-1, keepdim=True), self.threshold)


_STEEP, _SURE = 2.0**64, 2.0**11
"""What a score and a margin of votes are multiplied by, so that a gate made of them is 0 or 1 to the last bit."""


@dataclass(frozen=True)
class RankOneEditor(LayerEditor):
    """Rank-one maps of all heads as three thin products with the unsplit activation, the gate as a gated linear unit.

    Operations are few and plain, as every token waits for them: a comparison, a count and a choice cost more than
    bounds and a product that do the same to scores so steep that they are steps.

    Attributes:
        columns, offsets: give the voting heads' scores, made steep, then the strength `read . a + shift` of each edited
            head.
        least, most: bounds that make flags of the scores, 0 or 1, and leave strengths as they are.
        opening, closing: give, from flags and strengths, the strengths again, then how far each edited head's gate is
            open (above 0) or shut, made sure.
        rows: what each edited head writes.
    """

    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    least: Float[Tensor, " column"]
    most: Float[Tensor, " column"]
    opening: Float[Tensor, "column gate"]
    closing: Float[Tensor, " gate"]
    rows: Float[Tensor, "site d_in"]

    def look(self, z: Float[Tensor, "*batch head d_head"]) -> LayerEdit:
        """What would be added to each edited head; 0 where its gate is shut."""
        products = torch.addmm(self.offsets, z.to(self.rows.dtype).reshape(-1, len(self.columns)), self.columns)
        scores, strengths = products.split_with_sizes((len(self.biases), len(self.heads)), 1)
        flagged, gated = self._gate(scores)
        flagged, gated, strength = (value.reshape(*z.shape[:-2], -1) for value in (flagged, gated, strengths * gated))
        assert isinstance(self.maps, RankOneMaps)
        displacement = strength[..., None] * self.maps.write
        return LayerEdit(self.layer, self.heads, flagged, gated, torch.zeros_like(gated), displacement)

    def edited(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The activations after the edit: all heads', split (`*batch head d_head`) or not (`*batch d_in`)."""
        flat, rows = z.reshape(-1, self.rows.shape[1]), self.rows
        if flat.dtype == rows.dtype:
            return torch.addmm(flat, self._strengths(flat), rows).view_as(z)
        change = self._strengths(flat.to(rows.dtype)) @ rows
        return (flat + change.to(flat.dtype)).view_as(z)

    def _strengths(self, flat: Float[Tensor, "row d_in"]) -> Float[Tensor, "row site"]:
        """Strengths of the edited heads; 0 where the gate is shut."""
        flags_and_strengths = torch.addmm(self.offsets, flat, self.columns).clamp_(self.least, self.most)
        return glu(torch.addmm(self.closing, flags_and_strengths, self.opening))


def make_editor(
    layer: int,
    heads: Int[Tensor, " site"],
    maps: HeadMaps,
    scores: HeadScores,
    gate: str,
    trust: TrustRegion | None,
    *,
    like: Tensor,
) -> LayerEditor:
    """The editor of a layer for activations on the device of `like`, in its precision or single.

    Args:
        layer: of all layers of `scores`.
        heads: the edited ones.
        maps: theirs.
        scores: the detector's.
        gate: one of `GATES`.
        trust: theirs, or None.
        like: activations.
    """
    # Half precision is too coarse to decide a gate in.
    real = torch.zeros((), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    n_heads = scores.weights.shape[1]
    others = [head for head in range(n_heads) if head not in heads.tolist()] if gate in ("vote", "layer") else []
    voting = torch.cat([heads, torch.tensor(others, dtype=torch.long)])
    editor = LayerEditor(
        layer=layer,
        n_heads=n_heads,
        heads=heads.to(like.device),
        maps=maps.to(real),
        weights=scores.weights[layer, voting].to(real),
        biases=scores.biases[layer, voting].to(real),
        voting=voting.to(like.device),
        threshold=int(scores.thresholds[layer]),
        gate=gate,
        trust=None if trust is None else trust.to(real),
    )
    on_device = editor.maps
    if trust is not None or not isinstance(on_device, RankOneMaps):
        return editor
    opening, closing = _gate_as_product(editor)
    return RankOneEditor(
        **vars(editor),
        columns=torch.cat(
            [_STEEP * _unsplit(editor.weights, editor.voting, n_heads), _unsplit(on_device.read, editor.heads, n_heads)]
        ).T.contiguous(),
        # A score of 0 flags.
        offsets=torch.cat([_STEEP * editor.biases + _SURE, on_device.shift]),
        least=torch.cat([torch.zeros_like(editor.biases), torch.full_like(on_device.shift, -torch.inf)]),
        most=torch.cat([torch.ones_like(editor.biases), torch.full_like(on_device.shift, torch.inf)]),
        opening=opening,
        closing=closing,
        rows=_unsplit(on_device.write, editor.heads, n_heads),
    )


def _gate_as_product(editor: LayerEditor) -> tuple[Float[Tensor, "column gate"], Float[Tensor, " gate"]]:
    """From flags (0 or 1) and strengths: the strengths, and for each head a number below 0 where its gate is shut."""
    n_voting, n = len(editor.voting), len(editor.heads)
    own, all_votes = torch.eye(n_voting, n).to(editor.weights), editor.weights.new_ones(n_voting, n)
    # No count of votes beyond the threshold makes up for it; a power of 2, since products may be rounded to few digits.
    veto = 2.0 ** max(n_voting - editor.threshold, 0).bit_length()
    votes, needed = {
        "head": (own, 0.5),
        "vote": (all_votes + veto * own, editor.threshold - 0.5 + veto),
        "layer": (all_votes, editor.threshold - 0.5),
        "none": (0 * own, -0.5),
    }[editor.gate]
    strengths = torch.cat([own.new_zeros(n_voting, n), torch.eye(n).to(own)])
    logits = _SURE * torch.cat([votes, own.new_zeros(n, n)])
    closing = torch.cat([own.new_zeros(n), own.new_full((n,), -_SURE * needed)])
    return torch.cat([strengths, logits], dim=1), closing


def _unsplit(
    vectors: Float[Tensor, "site d_head"], heads: Int[Tensor, " site"], n_heads: int
) -> Float[Tensor, "site d_in"]:
    """Each head's vector at its place among all heads of the layer."""
    placed = vectors.new_zeros(len(vectors), n_heads, vectors.shape[1])
    placed[torch.arange(len(vectors), device=vectors.device), heads] = vectors
    return placed.flatten(1)


def added(z: Float[Tensor, "*batch head d_head"], edit: LayerEdit) -> Float[Tensor, "*batch head d_head"]:
    """`z` with each edited head displaced."""
    if edit.heads.numel() == 0:
        return z
    return z.index_add(-2, edit.heads, edit.displacement.to(z.dtype))


def masked(edit: LayerEdit, mask: Bool[Tensor, "batch pos"]) -> LayerEdit:
    """The edit at the positions of `mask` alone."""
    mask = mask.to(edit.gated.device)[:, :, None]
    return edit._replace(
        gated=edit.gated & mask, untrusted=edit.untrusted & mask, displacement=edit.displacement * mask[..., None]
    )
