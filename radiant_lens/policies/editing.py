"""One layer's edit: constants prepared once, a handful of tensor operations at every token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.policies.gates import HeadScores, TrustRegion, opens
from radiant_lens.policies.maps import HeadMaps, RankOneMaps


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


@dataclass(frozen=True)
class RankOneEditor(LayerEditor):
    """Rank-one maps of all heads as two thin products with the unsplit activation.

    Attributes:
        columns, offsets: give the voting heads' scores, then each edited head's strength `read . a + shift`.
        rows: what each edited head writes.
    """

    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    rows: Float[Tensor, "site d_in"]

    def _gated(self, flat: Float[Tensor, "row d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """Flags and gates of the edited heads, and their strengths: 0 where the gate is shut."""
        # Few and plain operations: this is what every token waits for.
        products = torch.addmm(self.offsets, flat, self.columns)
        scores, strengths = products.split_with_sizes(self._sizes, 1)
        flagged, gated = self._gate(scores)
        return flagged, gated, strengths * gated

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        return len(self.biases), len(self.heads)

    def look(self, z: Float[Tensor, "*batch head d_head"]) -> LayerEdit:
        """What would be added to each edited head; 0 where its gate is shut."""
        found = self._gated(z.to(self.rows.dtype).reshape(-1, len(self.columns)))
        flagged, gated, strength = (value.reshape(*z.shape[:-2], -1) for value in found)
        assert isinstance(self.maps, RankOneMaps)
        displacement = strength[..., None] * self.maps.write
        return LayerEdit(self.layer, self.heads, flagged, gated, torch.zeros_like(gated), displacement)

    def edited(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The activations after the edit: all heads', split (`*batch head d_head`) or not (`*batch d_in`)."""
        flat, rows = z.reshape(-1, self.rows.shape[1]), self.rows
        if flat.dtype == rows.dtype:
            return torch.addmm(flat, self._gated(flat)[2], rows).view_as(z)
        change = self._gated(flat.to(rows.dtype))[2] @ rows
        return (flat + change.to(flat.dtype)).view_as(z)


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
    return RankOneEditor(
        **vars(editor),
        columns=torch.cat(
            [_unsplit(editor.weights, editor.voting, n_heads), _unsplit(on_device.read, editor.heads, n_heads)]
        ).T.contiguous(),
        offsets=torch.cat([editor.biases, on_device.shift]),
        rows=_unsplit(on_device.write, editor.heads, n_heads),
    )


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
