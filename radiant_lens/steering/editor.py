"""The edit of one layer: constants are prepared once, and every token costs a few tensor operations."""

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
    """The edit of one layer, for its edited heads in the order of `heads`.

    Attributes:
        layer: index of the layer.
        heads: the edited heads.
        flagged: the head's own score is at least 0.
        gated: the gate is open and the activation trusted, so the head is edited.
        untrusted: the gate is open, but the activation lies outside the trust region and is left alone.
        displacement: what is added to the activation; 0 where the head is not gated.
    """

    layer: int
    heads: Int[Tensor, " site"]
    flagged: Bool[Tensor, "*batch site"]
    gated: Bool[Tensor, "*batch site"]
    untrusted: Bool[Tensor, "*batch site"]
    displacement: Float[Tensor, "*batch site d_head"]


@dataclass(frozen=True)
class LayerEditor:
    """All that the hook of one layer needs, on one device and in one precision.

    Attributes:
        layer: index of the layer.
        n_heads: number of heads of the layer.
        heads: the edited heads.
        maps: of the edited heads.
        weights, biases: of the scores of the voting heads.
        voting: heads whose scores the gate needs: the edited ones, then (for gates that vote) all others of the layer.
        threshold: least number of votes.
        gate: one of `GATES`.
        trust: trust region of the edited heads, or None.
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

    def compute(self, z: Float[Tensor, "*batch head d_head"]) -> LayerEdit:
        """The edit of these activations."""
        z = z.to(self.weights.dtype)
        edited = z[..., self.heads, :]
        flagged, opened = self._gate((z[..., self.voting, :] * self.weights).sum(-1) + self.biases)
        gated = opened if self.trust is None else opened & self.trust.contains(edited)
        displacement = self.maps.displacement(edited) * gated[..., None]
        return LayerEdit(self.layer, self.heads, flagged, gated, opened & ~gated, displacement)

    def apply(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The activations of all heads after the edit, split (`*batch head d_head`) or not (`*batch d_in`)."""
        split = z.reshape(-1, self.n_heads, self.weights.shape[1])
        return add_edit(split, self.compute(split)).reshape(z.shape)

    def _gate(self, scores: Float[Tensor, "*batch voting"]) -> tuple[Tensor, Tensor]:
        """Flags of the edited heads, and the heads whose gate is open."""
        flags = scores >= 0
        if self.gate not in ("vote", "layer"):
            return flags, opens(self.gate, flags, None, 0)
        n = len(self.heads)
        flagged = flags if n == flags.shape[-1] else flags[..., :n]
        return flagged, opens(self.gate, flagged, flags.sum(-1, keepdim=True), self.threshold)


# Scores are multiplied by the first, so that bounds of 0 and 1 turn them into flags. Margins of votes, which are at
# least 1/2, are multiplied by the second: the sigmoid of -2^10 is exactly 0 and that of 2^10 exactly 1, also in double
# precision, where it underflows at about -745.
_STEEP, _SURE = 2.0**64, 2.0**11


@dataclass(frozen=True)
class RankOneEditor(LayerEditor):
    """Rank-one maps of all heads as three thin matrix products, the gate included.

    A map adds `write (read . a + shift)` to a head's activation where the gate of the head is open. Head by head this
    takes an indexing, two reductions, a comparison, a count and a choice, and every token waits for each of them. Here
    `apply` does the following to the unsplit activations `z`, with all heads of the layer side by side:

        x = clamp(z columns + offsets, least, most)      scores become flags, 0 or 1; strengths stay as they are
        y, logits = x opening + closing                  y: the strengths again; logits: votes minus votes needed
        z' = z + (y * sigmoid(logits)) rows              the gated linear unit of y and logits, then the writes

    The products serve three purposes:

    1. They reach all heads at once: `columns` and `rows` hold the vector of each head at its place in the unsplit
       activations and 0 elsewhere, so no head is cut out and put back.
    2. They replace the comparison `score >= 0`: scores are so steep (`_STEEP`) that the bounds 0 and 1 make flags of
       them.
    3. They replace the count of votes and the choice by it: margins are so large (`_SURE`) that their sigmoid is
       exactly 0 or 1, so that a shut gate leaves every bit of an activation as it was.

    It can fail in one way: a score within 2^-53 below 0 counts as flagged, since `_SURE` is added to make a score of 0
    flag, and in the last 2^-64 of that interval its flag is a fraction. The rounding of a score is larger than that for
    activations of any usual size. `test_gates_as_products_open_as_the_votes_decide` compares the gates with those of
    `LayerEditor`, for scores of exactly 0 and activations from 1e-6 to 1e6 times the usual size.

    Attributes:
        columns, offsets: give the steep scores of the voting heads, then the strength `read . a + shift` of each edited
            head.
        least, most: bounds of those: 0 and 1 for scores, none for strengths.
        opening, closing: give the strengths, then the logit of each edited head's gate.
        rows: the write vector of each edited head.
    """

    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    least: Float[Tensor, " column"]
    most: Float[Tensor, " column"]
    opening: Float[Tensor, "column gate"]
    closing: Float[Tensor, " gate"]
    rows: Float[Tensor, "site d_in"]

    def compute(self, z: Float[Tensor, "*batch head d_head"]) -> LayerEdit:
        """The edit of these activations."""
        products = torch.addmm(self.offsets, z.to(self.rows.dtype).reshape(-1, len(self.columns)), self.columns)
        scores, strengths = products.split_with_sizes((len(self.biases), len(self.heads)), 1)
        flagged, gated = self._gate(scores)
        flagged, gated, strength = (value.reshape(*z.shape[:-2], -1) for value in (flagged, gated, strengths * gated))
        assert isinstance(self.maps, RankOneMaps)
        displacement = strength[..., None] * self.maps.write
        return LayerEdit(self.layer, self.heads, flagged, gated, torch.zeros_like(gated), displacement)

    def apply(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The activations of all heads after the edit, split (`*batch head d_head`) or not (`*batch d_in`)."""
        flat, rows = z.reshape(-1, self.rows.shape[1]), self.rows
        if flat.dtype == rows.dtype:
            return torch.addmm(flat, self._gated_strengths(flat), rows).view_as(z)
        # Half precision: the change is rounded, not the activation that it is added to.
        change = self._gated_strengths(flat.to(rows.dtype)) @ rows
        return (flat + change.to(flat.dtype)).view_as(z)

    def _gated_strengths(self, flat: Float[Tensor, "row d_in"]) -> Float[Tensor, "row site"]:
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
    """The editor of a layer for activations on the device of `like`, in its precision or single precision.

    Args:
        layer: among all layers of `scores`.
        heads: the edited heads.
        maps: of the edited heads.
        scores: of the detector.
        gate: one of `GATES`.
        trust: trust region of the edited heads, or None.
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
    # A trust region is an ellipsoid, which no thin product decides.
    return (
        editor if trust is not None or not isinstance(editor.maps, RankOneMaps) else _as_products(editor, editor.maps)
    )


def _as_products(editor: LayerEditor, maps: RankOneMaps) -> RankOneEditor:
    """The same editor with its matrices; `RankOneEditor` gives the formulas."""
    n_heads, zeros = editor.n_heads, torch.zeros_like(editor.biases)
    steep, read = _STEEP * _unsplit(editor.weights, editor.voting, n_heads), _unsplit(maps.read, editor.heads, n_heads)
    opening, closing = _gate_as_product(editor)
    return RankOneEditor(
        **vars(editor),
        columns=torch.cat([steep, read]).T.contiguous(),
        # `_SURE`, as a score of 0 flags: it must come out at 1 or above.
        offsets=torch.cat([_STEEP * editor.biases + _SURE, maps.shift]),
        least=torch.cat([zeros, torch.full_like(maps.shift, -torch.inf)]),
        most=torch.cat([zeros + 1, torch.full_like(maps.shift, torch.inf)]),
        opening=opening,
        closing=closing,
        rows=_unsplit(maps.write, editor.heads, n_heads),
    )


def _gate_as_product(editor: LayerEditor) -> tuple[Float[Tensor, "column gate"], Float[Tensor, " gate"]]:
    """Matrix and offset that give, from flags and strengths, the strengths and the logits of the gates.

    The logit of a head is `_SURE * (weighted votes - votes needed)`, where the votes needed lie halfway between two
    whole numbers, so that the margin is never less than 1/2:

    - "head": its own flag, 1/2 needed;
    - "layer": the count of flags, threshold - 1/2 needed;
    - "vote": the count of flags plus `veto` times its own, threshold - 1/2 + veto needed;
    - "none": nothing, -1/2 needed.
    """
    n_voting, n = len(editor.voting), len(editor.heads)
    own, all_votes = torch.eye(n_voting, n).to(editor.weights), editor.weights.new_ones(n_voting, n)
    # The veto is more than all votes beyond the threshold together, so a head without its own flag stays shut. It is a
    # power of 2 because an accelerator may round the factors of a product to 11 significant bits (TF32): the entry
    # `veto + 1` is exact up to 1,023 voting heads.
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
    """Each head's vector at its place among all heads of the layer, 0 elsewhere."""
    placed = vectors.new_zeros(len(vectors), n_heads, vectors.shape[1])
    placed[torch.arange(len(vectors), device=vectors.device), heads] = vectors
    return placed.flatten(1)


def add_edit(z: Float[Tensor, "*batch head d_head"], edit: LayerEdit) -> Float[Tensor, "*batch head d_head"]:
    """`z` with each edited head displaced."""
    if edit.heads.numel() == 0:
        return z
    return z.index_add(-2, edit.heads, edit.displacement.to(z.dtype))


def mask_edit(edit: LayerEdit, mask: Bool[Tensor, "batch pos"]) -> LayerEdit:
    """The edit at the positions of `mask` alone."""
    mask = mask.to(edit.gated.device)[:, :, None]
    return edit._replace(
        gated=edit.gated & mask, untrusted=edit.untrusted & mask, displacement=edit.displacement * mask[..., None]
    )
