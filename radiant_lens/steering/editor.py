"""The edit of one layer: constants are prepared once, and every token costs a few tensor operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import glu

from radiant_lens.steering.gates import VOTING_GATES, HeadScores, JointScore, TrustRegion, opens
from radiant_lens.steering.maps import EvidenceMaps, HeadMaps, RankOneMaps, evidence


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
        joint: for the gate of this name, and for maps that need it, the layer's joint score.

    Where that score takes up the one of the layer below, `compute` and `apply` must be given it.
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
    joint: JointScore | None

    def compute(
        self, z: Float[Tensor, "*batch head d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> LayerEdit:
        """The edit of these activations; `joint`: the layer's joint score, None where activations alone give it."""
        z = z.to(self.weights.dtype)
        edited = z[..., self.heads, :]
        joint = self.joint(z) if joint is None and self.joint is not None else joint
        flagged, opened = self._gate((z[..., self.voting, :] * self.weights).sum(-1) + self.biases, joint)
        gated = opened if self.trust is None else opened & self.trust.contains(edited)
        displacement = self.maps.displacement(edited, joint) * gated[..., None]
        return LayerEdit(self.layer, self.heads, flagged, gated, opened & ~gated, displacement)

    def apply(self, z: Float[Tensor, "*batch"], joint: Float[Tensor, "row 1"] | None = None) -> Float[Tensor, "*batch"]:
        """The activations of all heads after the edit, split (`*batch head d_head`) or not (`*batch d_in`)."""
        split = z.reshape(-1, self.n_heads, self.weights.shape[1])
        return add_edit(split, self.compute(split, joint)).reshape(z.shape)

    def _gate(
        self, scores: Float[Tensor, "*batch voting"], joint: Float[Tensor, "*batch 1"] | None
    ) -> tuple[Tensor, Tensor]:
        """Flags of the edited heads, and the heads whose gate is open."""
        flags = scores >= 0
        if self.gate not in VOTING_GATES:
            return flags, opens(self.gate, flags, None, 0, None if joint is None else joint >= 0)
        n = len(self.heads)
        flagged = flags if n == flags.shape[-1] else flags[..., :n]
        return flagged, opens(self.gate, flagged, flags.sum(-1, keepdim=True), self.threshold)


# Scores are multiplied by the first, so that bounds of 0 and 1, or a sigmoid, turn them into flags; the second is
# added, so that a score of 0 flags. Margins of votes, which are at least 1/2, are multiplied by the second: the sigmoid
# of -2^10 is exactly 0 and that of 2^10 exactly 1, also in double precision, where it underflows at about -745.
_STEEP, _SURE = 2.0**64, 2.0**11


class _VoteCount(NamedTuple):
    """Turns strengths and steep scores into strengths and logits of gates that vote; see `RankOneEditor`.

    Attributes:
        least, most: bounds: none for strengths, 0 and 1 for scores.
        opening, closing: give the strengths, then the logit of each edited head's gate.
    """

    least: Float[Tensor, " column"]
    most: Float[Tensor, " column"]
    opening: Float[Tensor, "column gate"]
    closing: Float[Tensor, " gate"]

    def __call__(self, products: Float[Tensor, "row column"]) -> Float[Tensor, "row gate"]:
        """Strengths, then logits; `products` is overwritten."""
        return torch.addmm(self.closing, products.clamp_(self.least, self.most), self.opening)


@dataclass(frozen=True)
class RankOneEditor(LayerEditor):
    """Rank-one maps of all heads as two thin matrix products, the gate included; three where heads vote.

    A map adds `write (read . a + shift)` to a head's activation where the gate of the head is open. Head by head this
    takes an indexing, two reductions, a comparison, a count and a choice, and every token waits for each of them. Here
    `apply` does the following to the unsplit activations `z`, with all heads of the layer side by side:

        y, logits = z columns + offsets                  y: strengths `read . a + shift`; logits: steep scores, each
                                                         head's own or the layer's joint one
        z' = z + (y * sigmoid(logits)) rows              the gated linear unit of y and logits, then the writes

    and, where heads vote, between the two

        x = (y, clamp(logits, 0, 1))                     scores become flags
        y, logits = x opening + closing                  y: the strengths again; logits: votes minus votes needed

    The products serve three purposes:

    1. They reach all heads at once: `columns` and `rows` hold the vector of each head at its place in the unsplit
       activations and 0 elsewhere, so no head is cut out and put back.
    2. They replace the comparison `score >= 0`: scores are so steep (`_STEEP`) that their sigmoid, or the bounds 0 and
       1, make flags of them.
    3. They replace the count of votes and the choice by it: margins are so large (`_SURE`) that their sigmoid is
       exactly 0 or 1, so that a shut gate leaves every bit of an activation as it was.

    It can fail in one way: a score within 2^-53 below 0 counts as flagged, since `_SURE` is added to make a score of 0
    flag, and within 2^-54 of -2^-53 its flag is a fraction. The rounding of a score is larger than that for
    activations of any usual size. `test_gates_as_products_open_as_the_votes_decide` compares the gates with those of
    `LayerEditor`, for scores of exactly 0 and activations from 1e-6 to 1e6 times the usual size.

    Attributes:
        columns, offsets: give the strength `read . a + shift` of each edited head, then for the gate "joint" as often
            the layer's steep joint score, then the steep scores of the voting heads.
        count: of the votes; None where heads do not vote.
        rows: the write vector of each edited head.
    """

    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    count: _VoteCount | None
    rows: Float[Tensor, "site d_in"]

    def compute(
        self, z: Float[Tensor, "*batch head d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> LayerEdit:
        """The edit of these activations."""
        products = torch.addmm(self.offsets, z.to(self.rows.dtype).reshape(-1, len(self.columns)), self.columns)
        n, n_scores = len(self.heads), len(self.biases)
        strengths, own_joint, scores = products.split_with_sizes((n, products.shape[1] - n - n_scores, n_scores), 1)
        flagged, gated = self._gate(scores, None if self.joint is None else own_joint[:, :1])
        flagged, gated, strength = (value.reshape(*z.shape[:-2], -1) for value in (flagged, gated, strengths * gated))
        assert isinstance(self.maps, RankOneMaps)
        displacement = strength[..., None] * self.maps.write
        return LayerEdit(self.layer, self.heads, flagged, gated, torch.zeros_like(gated), displacement)

    def apply(self, z: Float[Tensor, "*batch"], joint: Float[Tensor, "row 1"] | None = None) -> Float[Tensor, "*batch"]:
        """The activations of all heads after the edit, split (`*batch head d_head`) or not (`*batch d_in`)."""
        # In single precision at least: the sum is rounded, not what is added.
        flat = z.reshape(-1, self.rows.shape[1]).to(self.rows.dtype)
        return torch.addmm(flat, self._gated_strengths(flat), self.rows).to(z.dtype).view_as(z)

    def _gated_strengths(self, flat: Float[Tensor, "row d_in"]) -> Float[Tensor, "row site"]:
        """Strengths of the edited heads; 0 where the gate is shut."""
        # Few operations: between two layers of a model each starts with cold caches, which takes longer than its work.
        products = torch.addmm(self.offsets, flat, self.columns)
        n = len(self.heads)
        if self.gate == "none":
            return products[:, :n]
        return glu(products[:, : 2 * n] if self.count is None else self.count(products))


@dataclass(frozen=True)
class EvidenceEditor(LayerEditor):
    """Displacements by the evidence of the layer, without a gate, as two thin matrix products.

        evidence = clamp(z columns + offsets, 0, 1)      where the score takes up that of the layer below, and is given,
                                                         clamp((score - start) steepness, 0, 1)
        z' = z + shift + evidence rows

    Attributes:
        columns, offsets: give the ramp of each edited head.
        shift: of all edited heads at their places in the unsplit activations.
        rows: the slope of each edited head at its place.
    """

    columns: Float[Tensor, "d_in site"]
    offsets: Float[Tensor, " site"]
    shift: Float[Tensor, " d_in"]
    rows: Float[Tensor, "site d_in"]

    def apply(self, z: Float[Tensor, "*batch"], joint: Float[Tensor, "row 1"] | None = None) -> Float[Tensor, "*batch"]:
        """The activations of all heads after the edit, split (`*batch head d_head`) or not (`*batch d_in`)."""
        assert isinstance(self.maps, EvidenceMaps) and self.joint is not None
        # In single precision at least: the sum is rounded, not what is added.
        flat = z.reshape(-1, self.rows.shape[1]).to(self.rows.dtype)
        if joint is None and not self.joint.carries:
            share = torch.addmm(self.offsets, flat, self.columns).clamp_(0, 1)
        else:
            joint = self.joint(flat.unflatten(1, (self.n_heads, -1))) if joint is None else joint
            share = evidence(joint, self.maps.start, self.maps.steepness)
        return torch.addmm(flat + self.shift, share, self.rows).to(z.dtype).view_as(z)


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
    needs_joint = gate == "joint" or maps.needs_joint
    others = [head for head in range(n_heads) if head not in heads.tolist()] if gate in VOTING_GATES else []
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
        joint=scores.joint.of_layer(layer, real) if scores.joint is not None and needs_joint else None,
    )
    # A trust region is an ellipsoid, which no thin product decides; nor are gates by scores of other layers products of
    # this layer's activations.
    carries = editor.joint is not None and editor.joint.carries
    if trust is not None or not len(heads):
        return editor
    if isinstance(editor.maps, RankOneMaps) and not carries:
        return _as_products(editor, editor.maps)
    if isinstance(editor.maps, EvidenceMaps) and gate == "none":
        return _with_evidence(editor, editor.maps)
    return editor


def _with_evidence(editor: LayerEditor, maps: EvidenceMaps) -> EvidenceEditor:
    """The same editor with its matrices; `EvidenceEditor` gives the formulas."""
    assert editor.joint is not None
    return EvidenceEditor(
        **vars(editor),
        columns=editor.joint.weights.flatten()[:, None] * maps.steepness,
        offsets=(editor.joint.bias - maps.start) * maps.steepness,
        shift=_unsplit(maps.shift, editor.heads, editor.n_heads).sum(0),
        rows=_unsplit(maps.slope, editor.heads, editor.n_heads),
    )


def _as_products(editor: LayerEditor, maps: RankOneMaps) -> RankOneEditor:
    """The same editor with its matrices; `RankOneEditor` gives the formulas."""
    n_heads = editor.n_heads
    scores, biases = _unsplit(editor.weights, editor.voting, n_heads), editor.biases
    if editor.joint is not None:
        n = len(editor.heads)
        scores = torch.cat([editor.joint.weights.flatten().expand(n, -1), scores])
        biases = torch.cat([editor.joint.bias.expand(n), biases])
    return RankOneEditor(
        **vars(editor),
        columns=torch.cat([_unsplit(maps.read, editor.heads, n_heads), _STEEP * scores]).T.contiguous(),
        # `_SURE`, as a score of 0 flags: its sigmoid must be 1, and it must lie above the bound of 1.
        offsets=torch.cat([maps.shift, _STEEP * biases + _SURE]),
        count=_vote_count(editor) if editor.gate in VOTING_GATES else None,
        rows=_unsplit(maps.write, editor.heads, n_heads),
    )


def _vote_count(editor: LayerEditor) -> _VoteCount:
    """The count of votes, as a product.

    The logit of a head is `_SURE * (weighted votes - votes needed)`, where the votes needed lie halfway between two
    whole numbers, so that the margin is never less than 1/2:

    - "layer": the count of flags, threshold - 1/2 needed;
    - "vote": the count of flags plus `veto` times its own, threshold - 1/2 + veto needed.
    """
    n_voting, n = len(editor.voting), len(editor.heads)
    own, votes = torch.eye(n_voting, n).to(editor.weights), editor.weights.new_ones(n_voting, n)
    needed = editor.threshold - 0.5
    if editor.gate == "vote":
        # The veto is more than all votes beyond the threshold together, so a head without its own flag stays shut. It
        # is a power of 2 because an accelerator may round the factors of a product to 11 significant bits (TF32): the
        # entry `veto + 1` is exact up to 1,023 voting heads.
        veto = 2.0 ** max(n_voting - editor.threshold, 0).bit_length()
        votes, needed = votes + veto * own, needed + veto
    strengths = torch.cat([torch.eye(n).to(own), own.new_zeros(n_voting, n)])
    logits = _SURE * torch.cat([own.new_zeros(n, n), votes])
    unbounded, zeros = own.new_full((n,), torch.inf), own.new_zeros(n_voting)
    return _VoteCount(
        least=torch.cat([-unbounded, zeros]),
        most=torch.cat([unbounded, zeros + 1]),
        opening=torch.cat([strengths, logits], dim=1),
        closing=torch.cat([own.new_zeros(n), own.new_full((n,), -_SURE * needed)]),
    )


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
    # In single precision at least: the sum is rounded, not what is added.
    real = torch.promote_types(z.dtype, edit.displacement.dtype)
    return z.to(real).index_add(-2, edit.heads, edit.displacement.to(real)).to(z.dtype)


def mask_edit(edit: LayerEdit, mask: Bool[Tensor, "batch pos"]) -> LayerEdit:
    """The edit at the positions of `mask` alone."""
    mask = mask.to(edit.gated.device)[:, :, None]
    return edit._replace(
        gated=edit.gated & mask, untrusted=edit.untrusted & mask, displacement=edit.displacement * mask[..., None]
    )
