"""The edits of several steerings in one layer, each row of a pass by its own, as dense algebra of static shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.steering.gates import TrustRegion
from radiant_lens.steering.maps import HeadMaps, RankOneMaps
from radiant_lens.steering.steering import Steering

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share the heads of a layer."""


class EditedRows(NamedTuple):
    """Rows after the edits of a layer.

    Attributes:
        z: activations.
        is_open: edited heads.
        votes: heads that flag, of each ballot; None where no gate of the layer counts votes.
    """

    z: Float[Tensor, "row d_in"]
    is_open: Bool[Tensor, "row site"]
    votes: Float[Tensor, "row ballot"] | None


class HeadShard(NamedTuple):
    """The heads of a layer that one process has: `n` of them, from `first` on."""

    first: int
    n: int


@dataclass(frozen=True)
class _OtherMaps:
    """Maps that are not of rank one, or have a trust region, of one steering.

    Attributes:
        sites: their places among all edited heads of the layer.
        heads: their heads, numbered within the shard.
        maps: of these heads.
        trust: trust region, or None.
    """

    sites: slice
    heads: Int[Tensor, " site"]
    maps: HeadMaps
    trust: TrustRegion | None

    def displacement(
        self, z: Float[Tensor, "row head d_head"]
    ) -> tuple[Float[Tensor, "row site d_head"], Bool[Tensor, "row site"] | None]:
        """Displacements, and where the trust region allows them."""
        edited = z[:, self.heads]
        return self.maps.displacement(edited), None if self.trust is None else self.trust.contains(edited)


@dataclass(frozen=True)
class BatchedEditor:
    """Detectors, gates and maps of all steerings that edit a layer, for the heads of one process.

    Every row is computed for every steering and then kept for its own alone. This costs little, because the products
    are thin, and it needs no choice in Python, so the shapes are the same for every batch and a CUDA graph can hold it:

        scores, strengths = z columns + offsets             of all voting heads, and `read . a + shift` of edited heads
        votes = (scores >= 0) ballots                       counted for each steering, summed over the processes
        open = own flag, enough votes, or both              by each edited head's gate
        z' = z + (strengths * open * row strength) writes   for the rows of this steering, 0 for all others

    Attributes:
        layer: index of the layer.
        d_head: length of an activation.
        n_voting: number of columns that are scores.
        columns, offsets: give the scores, then the strengths.
        ballots: 1 where a voting head belongs to a steering; None where no gate of the layer counts votes.
        heads: number of each edited head in its layer.
        owner: number of each edited head's steering.
        own: column of each edited head's own score.
        needs_own: gates "head" and "vote".
        ballot: column of each edited head's votes in `ballots`.
        needs_votes: gates "vote" and "layer".
        thresholds: least number of votes of each edited head's layer.
        writes: write vector of each edited head at its place in `z`; 0 for maps that are not of rank one.
        others: maps that are not of rank one, or have a trust region.
        reduce: sums votes over processes.
    """

    layer: int
    d_head: int
    n_voting: int
    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    ballots: Float[Tensor, "voting ballot"] | None
    heads: Int[Tensor, " site"]
    owner: Int[Tensor, " site"]
    own: Int[Tensor, " site"]
    needs_own: Bool[Tensor, " site"]
    ballot: Int[Tensor, " site"]
    needs_votes: Bool[Tensor, " site"]
    thresholds: Float[Tensor, " site"]
    writes: Float[Tensor, "site d_in"]
    others: tuple[_OtherMaps, ...]
    reduce: Reduce

    def apply(
        self, z: Float[Tensor, "row d_in"], steering: Int[Tensor, " row"], strength: Float[Tensor, " row"]
    ) -> EditedRows:
        """The activations after the edits, which heads were edited, and the votes.

        Args:
            z: activations of the heads of this process, not split into heads.
            steering: number of the steering of each row; any other number for none.
            strength: factor of each row's displacements.
        """
        real = z.to(self.columns.dtype)
        products = torch.addmm(self.offsets, real, self.columns)
        is_open, votes = self._open(products[:, : self.n_voting] >= 0)
        is_open &= self.owner == steering[:, None]
        split = real.unflatten(1, (-1, self.d_head))
        displacements: list[tuple[_OtherMaps, Tensor]] = []
        for other in self.others:
            displacement, trusted = other.displacement(split)
            displacements.append((other, displacement))
            if trusted is not None:
                is_open[:, other.sites] &= trusted
        # `where`, not a product: rows of padding may hold NaN, and 0 * NaN is NaN.
        factors = torch.where(is_open, strength[:, None], 0)
        amounts = torch.where(is_open, products[:, self.n_voting :] * strength[:, None], 0)
        if not displacements and z.dtype == real.dtype:
            return EditedRows(torch.addmm(real, amounts, self.writes), is_open, votes)
        # Half precision: the change is rounded, not the activation that it is added to.
        change = amounts @ self.writes
        for other, displacement in displacements:
            scaled = torch.where(is_open[:, other.sites, None], displacement * factors[:, other.sites, None], 0)
            change.unflatten(1, (-1, self.d_head)).index_add_(1, other.heads, scaled)
        return EditedRows(z + change.to(z.dtype), is_open, votes)

    def _open(
        self, flags: Bool[Tensor, "row voting"]
    ) -> tuple[Bool[Tensor, "row site"], Float[Tensor, "row ballot"] | None]:
        """True where the gate of an edited head is open, and the votes."""
        # Every process must take part in the sum, also one whose heads are not edited.
        own = flags[:, self.own] | ~self.needs_own
        if self.ballots is None:
            return own, None
        votes = self.reduce(flags.to(self.ballots.dtype) @ self.ballots)
        return own & ((votes[:, self.ballot] >= self.thresholds) | ~self.needs_votes), votes


def make_batched_editor(
    steerings: Sequence[Steering],
    layer: int,
    *,
    like: Tensor,
    shard: HeadShard | None = None,
    reduce: Reduce = lambda counts: counts,
) -> BatchedEditor | None:
    """The editor of a layer; None where no steering edits it.

    Args:
        steerings: of models with the same shape; their places are their numbers.
        layer: index of the layer.
        like: activations; the editor is on their device, in their precision or single precision.
        shard: heads of this process; None: all.
        reduce: sums votes over the processes that share the heads.
    """
    editing = [(number, s) for number, s in enumerate(steerings) if any(site.layer == layer for site in s.sites)]
    if not editing:
        return None
    n_heads = steerings[0].scores.weights.shape[1]
    builder = _Builder(layer, shard or HeadShard(0, n_heads), like)
    for number, steering in editing:
        builder.add(number, steering)
    return builder.build(reduce)


class _Site(NamedTuple):
    """An edited head; `BatchedEditor` documents the entries."""

    head: int
    owner: int
    own: int
    needs_own: bool
    ballot: int
    needs_votes: bool
    threshold: int


class _Builder:
    """Collects the columns and sites of one layer, steering by steering."""

    def __init__(self, layer: int, shard: HeadShard, like: Tensor) -> None:
        self._layer, self._shard = layer, shard
        # Half precision is too coarse to decide a gate in.
        self._real = torch.zeros((), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        self._scores: list[Tensor] = []
        self._biases: list[Tensor] = []
        self._ballots: list[int | None] = []
        self._reads: list[Tensor] = []
        self._shifts: list[Tensor] = []
        self._writes: list[Tensor] = []
        self._sites: list[_Site] = []
        self._others: list[_OtherMaps] = []
        self._n_ballots = self._n_voting = 0

    def add(self, number: int, steering: Steering) -> None:
        """Add the edits of one steering."""
        first, n = self._shard
        index = [i for i, site in enumerate(steering.sites) if site.layer == self._layer and 0 <= site.head - first < n]
        heads = [steering.sites[i].head - first for i in index]
        by_votes = steering.gate in ("vote", "layer")
        # All heads of the layer vote; without votes, only an edited head's own score counts.
        voting = list(range(n)) if by_votes else heads
        self._add_scores(steering, voting, by_votes=by_votes)
        own = {head: self._n_voting - len(voting) + column for column, head in enumerate(voting)}
        threshold, ballot = int(steering.scores.thresholds[self._layer]), max(self._n_ballots - 1, 0)
        needs_own = steering.gate in ("head", "vote")
        self._sites += [
            _Site(head + first, number, own[head], needs_own, ballot, by_votes, threshold) for head in heads
        ]
        self._add_maps(steering, torch.tensor(index, dtype=torch.long), torch.tensor(heads, dtype=torch.long))

    def _add_scores(self, steering: Steering, voting: list[int], *, by_votes: bool) -> None:
        heads = torch.tensor(voting, dtype=torch.long)
        scores, voters = steering.scores, heads + self._shard.first
        self._scores.append(self._unsplit(scores.weights[self._layer, voters], heads))
        self._biases.append(scores.biases[self._layer, voters].to(self._real))
        self._ballots += [self._n_ballots if by_votes else None] * len(voting)
        self._n_ballots += by_votes
        self._n_voting += len(voting)

    def _add_maps(self, steering: Steering, index: Tensor, heads: Tensor) -> None:
        maps = steering.head_maps.take(index).to(self._real)
        trust = None if steering.trust is None else steering.trust.take(index).to(self._real)
        d_head = steering.scores.weights.shape[2]
        empty = self._real.new_zeros(len(index), d_head)
        if isinstance(maps, RankOneMaps) and trust is None:
            read, shift, write = maps.read, maps.shift, maps.write
        else:
            read, shift, write = empty, empty.sum(1), empty
            end = len(self._sites)
            self._others.append(_OtherMaps(slice(end - len(index), end), heads.to(self._real.device), maps, trust))
        self._reads.append(self._unsplit(read, heads))
        self._writes.append(self._unsplit(write, heads))
        self._shifts.append(shift)

    def _unsplit(self, vectors: Tensor, heads: Tensor) -> Float[Tensor, "site d_in"]:
        """Each head's vector at its place among the heads of the shard, 0 elsewhere."""
        placed = self._real.new_zeros(len(vectors), self._shard.n, vectors.shape[1])
        placed[torch.arange(len(vectors)), heads] = vectors.to(self._real)
        return placed.flatten(1)

    def build(self, reduce: Reduce) -> BatchedEditor:
        """The editor."""
        ballots = None
        if self._n_ballots:
            ballots = self._real.new_zeros(self._n_voting, self._n_ballots)
            for column, ballot in enumerate(self._ballots):
                if ballot is not None:
                    ballots[column, ballot] = 1
        return BatchedEditor(
            layer=self._layer,
            d_head=self._reads[0].shape[1] // self._shard.n,
            n_voting=self._n_voting,
            columns=torch.cat([*self._scores, *self._reads]).T.contiguous(),
            offsets=torch.cat([*self._biases, *self._shifts]),
            ballots=ballots,
            heads=self._column("head", torch.long),
            owner=self._column("owner", torch.long),
            own=self._column("own", torch.long),
            needs_own=self._column("needs_own", torch.bool),
            ballot=self._column("ballot", torch.long),
            needs_votes=self._column("needs_votes", torch.bool),
            thresholds=self._column("threshold", self._real.dtype),
            writes=torch.cat(self._writes),
            others=tuple(self._others),
            reduce=reduce,
        )

    def _column(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(site, name) for site in self._sites], dtype=dtype, device=self._real.device)
