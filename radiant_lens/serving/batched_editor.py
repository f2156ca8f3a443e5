"""The edits of several steerings in one layer, each row of a pass by its own, as dense algebra of static shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.serving.handed_scores import HandedScores
from radiant_lens.steering.gates import VOTING_GATES, TrustRegion
from radiant_lens.steering.maps import DenseMaps, HeadMaps, RankOneMaps
from radiant_lens.steering.steering import Steering

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share the heads of a layer."""


class EditedRows(NamedTuple):
    """Rows after the edits of a layer.

    Attributes:
        z: activations.
        is_open: edited heads.
        votes: heads that flag, of each ballot, or its joint score; None where nothing in the layer asks for either.
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
        heads: their heads, numbered within the shard; None where they are all heads of the shard in their order.
        maps: of these heads.
        trust: trust region, or None.
        ballot: the one that holds their layer's joint score, for maps that need it, else None.
    """

    sites: slice
    heads: Int[Tensor, " site"] | None
    maps: HeadMaps
    trust: TrustRegion | None
    ballot: int | None

    def displacement(
        self, z: Float[Tensor, "row head d_head"], votes: Float[Tensor, "row ballot"] | None
    ) -> tuple[Float[Tensor, "row site d_head"], Bool[Tensor, "row site"] | None]:
        """Displacements, and where the trust region allows them."""
        edited = z if self.heads is None else z.index_select(1, self.heads)
        trusted = None if self.trust is None else self.trust.contains(edited)
        if not isinstance(self.maps, DenseMaps):
            joint = None if votes is None or self.ballot is None else votes[:, self.ballot, None]
            return self.maps.displacement(edited, joint), trusted
        # One product for each head. `DenseMaps.displacement`, which takes any axes, makes copies for it.
        shift, change = self.maps.shift[:, None], self.maps.change
        return torch.baddbmm(shift, edited.transpose(0, 1), change.mT).transpose(0, 1), trusted

    def add_to(
        self, change: Float[Tensor, "row d_in"] | None, own: Float[Tensor, "row site d_head"], n_heads: int
    ) -> Float[Tensor, "row d_in"]:
        """The changes of all heads (None: 0) with those of these heads added."""
        if self.heads is None:
            return own.flatten(1) if change is None else change.add_(own.flatten(1))
        n_rows, _, d_head = own.shape
        change = own.new_zeros(n_rows, n_heads * d_head) if change is None else change
        change.unflatten(1, (n_heads, d_head)).index_add_(1, self.heads, own)
        return change


@dataclass(frozen=True)
class BatchedEditor:
    """Detectors, gates and maps of all steerings that edit a layer, for the heads of one process.

    Every row is computed for every steering and then kept for its own alone. This costs little, because the products
    are thin, and it needs no choice in Python, so the shapes are the same for every batch and a CUDA graph can hold it:

        scores, strengths = z columns + offsets             of all voting heads, of edited heads, `read . a + shift`
        votes = (scores >= 0) ballots                       counted for each steering, summed over the processes; of a
                                                            joint score the score itself
        open = own flag, enough votes, or both              by each edited head's gate
        z' = z + (strengths * open * row strength) writes   for the rows of this steering, 0 for all others

    What no steering of the layer needs is left out: votes, own scores, or strengths. A condition that some edited heads
    have and others do not is written so that it always holds for these others.

    Attributes:
        layer: index of the layer.
        d_head: length of an activation.
        n_voting: number of the first columns, which give scores of voting heads, and joint scores.
        n_own: number of the next columns, which give each edited head's own score, or 0 if no gate asks for it; a head
            whose gate does not has zeros, and a score of 0 is a flag.
        columns, offsets: give the scores, then the strengths.
        ballots: 1 where a voting column belongs to a steering; None where nothing in the layer counts votes or needs a
            joint score.
        joint: voting column that gives the joint score of each ballot, -1 for ballots that count votes; None where
            nothing in the layer needs a joint score.
        handed: joint scores among the ballots, which may depend on the layer below; None where nothing needs one.
        heads: number of each edited head in its layer.
        owner: number of each edited head's steering.
        ballot: column of each edited head's votes in `ballots`.
        needs_votes: gates "vote" and "layer"; a joint score is no count, and not traced.
        thresholds: least number of votes of each edited head's layer, or least joint score; minus infinity where the
            gate asks for neither.
        writes: write vector of each edited head at its place in `z`; 0 for maps that are not of rank one. Without maps
            of rank one there are neither strengths nor writes.
        others: maps that are not of rank one, or have a trust region.
        reduce: sums votes and joint scores over processes.
    """

    layer: int
    d_head: int
    n_voting: int
    n_own: int
    columns: Float[Tensor, "d_in column"]
    offsets: Float[Tensor, " column"]
    ballots: Float[Tensor, "voting ballot"] | None
    joint: Int[Tensor, " ballot"] | None
    handed: HandedScores | None
    heads: Int[Tensor, " site"]
    owner: Int[Tensor, " site"]
    ballot: Int[Tensor, " site"]
    needs_votes: Bool[Tensor, " site"]
    thresholds: Float[Tensor, " site"]
    writes: Float[Tensor, "strength d_in"]
    others: tuple[_OtherMaps, ...]
    reduce: Reduce

    def apply(
        self,
        z: Float[Tensor, "row d_in"],
        steering: Int[Tensor, " row"],
        strength: Float[Tensor, " row"],
        running: Float[Tensor, "row steering"] | None = None,
    ) -> EditedRows:
        """The activations after the edits, which heads were edited, and the votes.

        Args:
            z: activations of the heads of this process, not split into heads.
            steering: number of the steering of each row; any other number for none.
            strength: factor of each row's displacements.
            running: joint scores of the layer below, by steering, in whose place those of this layer are written; None
                where no steering depends on other layers.
        """
        # In single precision at least: sums are rounded, not what is added.
        real = z.to(self.columns.dtype)
        n_scores = self.n_voting + self.n_own
        # Rows of padding may hold NaN, which stays in its row.
        products = torch.addmm(self.offsets, real, self.columns) if len(self.offsets) else real[:, :0]
        is_open = self.owner == steering[:, None]
        votes = self._close(is_open, products[:, :n_scores], running) if n_scores else None
        if not len(self.owner):
            # Read for the layers above.
            return EditedRows(z, is_open, votes)
        split = real.unflatten(1, (-1, self.d_head))
        displacements = [(other, *other.displacement(split, votes)) for other in self.others]
        for other, _, trusted in displacements:
            if trusted is not None:
                is_open[:, other.sites] &= trusted
        factors = torch.where(is_open, strength[:, None], 0)
        change = None
        if len(self.writes):
            amounts = products[:, n_scores:] * factors
            if not displacements:
                return EditedRows(torch.addmm(real, amounts, self.writes).to(z.dtype), is_open, votes)
            change = amounts @ self.writes
        for other, displacement, _ in displacements:
            change = other.add_to(change, displacement.mul_(factors[:, other.sites, None]), split.shape[1])
        return EditedRows(z.clone() if change is None else (real + change).to(z.dtype), is_open, votes)

    def _close(
        self, is_open: Bool[Tensor, "row site"], scores: Float[Tensor, "row score"], running: Tensor | None
    ) -> Float[Tensor, "row ballot"] | None:
        """Set heads whose gate is closed to False, and return the votes."""
        flags = scores >= 0
        if self.n_own:
            is_open &= flags[:, self.n_voting :]
        if self.ballots is None:
            return None
        # Every process must take part in the sum, also one whose heads are not edited.
        votes = flags[:, : self.n_voting].to(self.ballots.dtype) @ self.ballots
        if self.joint is not None:
            # Not by a product: an accelerator may round its factors, and votes are whole numbers, but scores are not.
            votes = torch.where(self.joint >= 0, scores.index_select(1, self.joint.clamp_min(0)), votes)
        votes = self.reduce(votes)
        if self.handed is not None and (running is not None or self.handed.depends):
            assert running is not None, "joint scores of the layer below"
            votes = self.handed.over(votes, running)
        # One column serves all heads.
        own = votes if votes.shape[1] == 1 else votes.index_select(1, self.ballot)
        is_open &= own >= self.thresholds
        return votes


def make_batched_editor(
    steerings: Sequence[Steering],
    layer: int,
    *,
    like: Tensor,
    shard: HeadShard | None = None,
    reduce: Reduce = lambda counts: counts,
) -> BatchedEditor | None:
    """The editor of a layer; None where no steering edits it, nor reads it for the layers above.

    Args:
        steerings: of models with the same shape; their places are their numbers.
        layer: index of the layer.
        like: activations; the editor is on their device, in their precision or single precision.
        shard: heads of this process; None: all.
        reduce: sums votes over the processes that share the heads.
    """
    editing = [(number, s) for number, s in enumerate(steerings) if layer in s.hooked_layers]
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
    ballot: int
    needs_votes: bool
    threshold: float


class _Columns:
    """Linear functions of a layer's activations, collected one by one."""

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []
        self.offsets: list[Tensor] = []
        self.n = 0

    def add(self, vectors: Float[Tensor, "column d_in"], offsets: Float[Tensor, " column"]) -> None:
        """Add some."""
        self.vectors.append(vectors)
        self.offsets.append(offsets)
        self.n += len(offsets)


class _Builder:
    """Collects the columns and sites of one layer, steering by steering."""

    def __init__(self, layer: int, shard: HeadShard, like: Tensor) -> None:
        self._layer, self._shard = layer, shard
        # Half precision is too coarse to decide a gate in.
        self._real = torch.zeros((), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        self._voting, self._own, self._strengths = _Columns(), _Columns(), _Columns()
        self._ballots: list[int] = []
        self._joint: list[int] = []
        self._handed: list[tuple[int, int, float]] = []
        self._writes: list[Tensor] = []
        self._sites: list[_Site] = []
        self._others: list[_OtherMaps] = []
        self._needs_own = self._needs_strengths = False
        self._n_ballots = 0

    def add(self, number: int, steering: Steering) -> None:
        """Add the edits of one steering."""
        first, n = self._shard
        index = [i for i, site in enumerate(steering.sites) if site.layer == self._layer and 0 <= site.head - first < n]
        heads = [steering.sites[i].head - first for i in index]
        by_votes = steering.gate in VOTING_GATES
        ballot, threshold = 0, -math.inf
        joint: int | None = None
        if steering.needs_joint:
            self._voting.add(*self._joint_score(steering))
            joint = self._end_ballot(1, joint=True)
            assert steering.scores.joint is not None
            self._handed.append((joint, number, float(steering.scores.joint.carry[self._layer])))
        if by_votes:
            # All heads of the layer vote.
            self._voting.add(*self._scores(steering, list(range(n))))
            ballot, threshold = self._end_ballot(n, joint=False), float(steering.scores.thresholds[self._layer])
        elif steering.gate == "joint":
            assert joint is not None
            ballot, threshold = joint, 0.0
        self._add_own(steering, heads)
        self._sites += [_Site(head + first, number, ballot, by_votes, threshold) for head in heads]
        self._add_maps(steering, torch.tensor(index, dtype=torch.long), torch.tensor(heads, dtype=torch.long), joint)

    def _end_ballot(self, n: int, *, joint: bool) -> int:
        """The last `n` voting columns are one steering's ballot; returns its number."""
        self._ballots += [self._n_ballots] * n
        self._joint.append(self._voting.n - 1 if joint else -1)
        self._n_ballots += 1
        return self._n_ballots - 1

    def _joint_score(self, steering: Steering) -> tuple[Tensor, Tensor]:
        """This process's part of the joint score; the first process adds the bias."""
        joint, (first, n) = steering.scores.joint, self._shard
        assert joint is not None
        bias = joint.biases[self._layer, None].to(self._real)
        return joint.weights[self._layer, first : first + n].to(self._real).reshape(1, -1), bias * (first == 0)

    def _scores(self, steering: Steering, heads: list[int]) -> tuple[Tensor, Tensor]:
        places = torch.tensor(heads, dtype=torch.long)
        scores, own = steering.scores, places + self._shard.first
        weights = self._unsplit(scores.weights[self._layer, own], places)
        return weights, scores.biases[self._layer, own].to(self._real)

    def _add_own(self, steering: Steering, heads: list[int]) -> None:
        weights, biases = self._scores(steering, heads)
        needs_own = steering.gate in ("head", "vote")
        self._needs_own |= needs_own
        self._own.add(weights if needs_own else 0 * weights, biases if needs_own else 0 * biases)

    def _add_maps(self, steering: Steering, index: Tensor, heads: Tensor, joint: int | None) -> None:
        maps = steering.head_maps.take(index).to(self._real)
        trust = None if steering.trust is None else steering.trust.take(index).to(self._real)
        d_head = steering.scores.weights.shape[2]
        empty = self._real.new_zeros(len(index), d_head)
        if isinstance(maps, RankOneMaps) and trust is None:
            self._needs_strengths = True
            read, shift, write = maps.read, maps.shift, maps.write
        else:
            read, shift, write = empty, empty.sum(1), empty
            sites = slice(len(self._sites) - len(index), len(self._sites))
            every = heads.tolist() == list(range(self._shard.n))
            own_heads = None if every else heads.to(self._real.device)
            self._others.append(_OtherMaps(sites, own_heads, maps, trust, joint if maps.needs_joint else None))
        self._strengths.add(self._unsplit(read, heads), shift)
        self._writes.append(self._unsplit(write, heads))

    def _unsplit(self, vectors: Tensor, heads: Tensor) -> Float[Tensor, "site d_in"]:
        """Each head's vector at its place among the heads of the shard, 0 elsewhere."""
        placed = self._real.new_zeros(len(vectors), self._shard.n, vectors.shape[1])
        placed[torch.arange(len(vectors)), heads] = vectors.to(self._real)
        return placed.flatten(1)

    def build(self, reduce: Reduce) -> BatchedEditor:
        """The editor."""
        n_voting, n_own = self._voting.n, self._own.n if self._needs_own else 0
        n_strengths = self._strengths.n if self._needs_strengths else 0
        writes = torch.cat(self._writes)
        groups = [g for g, n in ((self._voting, n_voting), (self._own, n_own), (self._strengths, n_strengths)) if n]
        return BatchedEditor(
            layer=self._layer,
            d_head=writes.shape[1] // self._shard.n,
            n_voting=n_voting,
            n_own=n_own,
            columns=torch.cat([writes[:0], *(v for group in groups for v in group.vectors)]).T.contiguous(),
            offsets=torch.cat([self._real.new_zeros(0), *(o for group in groups for o in group.offsets)]),
            ballots=self._ballot_matrix(),
            joint=torch.tensor(self._joint, device=self._real.device) if max(self._joint, default=-1) >= 0 else None,
            handed=self._handed_scores(),
            heads=self._column("head", torch.long),
            owner=self._column("owner", torch.long),
            ballot=self._column("ballot", torch.long),
            needs_votes=self._column("needs_votes", torch.bool),
            thresholds=self._column("threshold", self._real.dtype),
            writes=writes[:n_strengths],
            others=tuple(self._others),
            reduce=reduce,
        )

    def _handed_scores(self) -> HandedScores | None:
        if not self._handed:
            return None
        ballots, steerings, carry = zip(*self._handed)
        places, owners = (
            torch.tensor(numbers, dtype=torch.long, device=self._real.device) for numbers in (ballots, steerings)
        )
        return HandedScores(places, owners, torch.tensor(carry).to(self._real), any(carry))

    def _ballot_matrix(self) -> Float[Tensor, "voting ballot"] | None:
        if not self._n_ballots:
            return None
        ballots = self._real.new_zeros(self._voting.n, self._n_ballots)
        ballots[torch.arange(self._voting.n), torch.tensor(self._ballots)] = 1
        return ballots

    def _column(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(site, name) for site in self._sites], dtype=dtype, device=self._real.device)
