"""Forward passes that keep heads' activations and end after the last layer that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.errors import RankError
from radiant_lens.ranks import Rank
from radiant_lens.sites import hook_name
from radiant_lens.stores import CacheStore
from radiant_lens.tokens import TokenBatch, batch_rows, pad_id, padded

SHARD_BYTES = 2**25

Hooks = Sequence[tuple[str, HookFunction]]


class Shard(NamedTuple):
    """Batches of texts that are written together, and their examples in ascending order."""

    batches: list[list[int]]
    examples: Int[Tensor, " kept"]


class _LastLayerDone(Exception):  # noqa: N818 - no error: it ends a pass early
    """Everything wanted of a pass is kept."""


@dataclass(frozen=True)
class Run:
    """What to run the model over, and what to keep.

    Args:
        model: from `load_model`.
        rows: tokens of each text.
        chosen: positions of each text to keep.
        layers: to keep, ascending.
        max_tokens: tokens in one forward pass, padding included.
        edits: hooks that are on for a batch of texts, after its activations are kept; None for none.
        before: hooks that are on before anything is kept; with them passes run to their end.
    """

    model: TransformerBridge
    rows: Sequence[Sequence[int]]
    chosen: Sequence[Sequence[int]]
    layers: tuple[int, ...]
    max_tokens: int
    edits: Callable[[Sequence[int]], list[tuple[str, HookFunction]]] | None = None
    before: Hooks = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Axes `example layer head d_head` of all activations."""
        config = self.model.cfg
        return sum(len(c) for c in self.chosen), config.n_layers, config.n_heads, config.d_head

    def in_memory(self, progress: bool) -> Float[Tensor, "example layer head d_head"]:
        """All activations; zero at layers that are not wanted."""
        whole = Shard(self._batches(), torch.arange(self.shape[0]))
        with Progress(transient=True, disable=not progress) as bar:
            kept = self._room(len(whole.examples))
            self._keep(whole, bar.track(whole.batches, description="collecting activations"), kept)
        if len(self.layers) == self.shape[1]:
            z = kept
        else:
            z = torch.zeros(self.shape, dtype=kept.dtype)
            z[:, list(self.layers)] = kept
        _checks.finite("activations", z)
        return z

    def into(self, store: CacheStore, described: Mapping[str, Any], progress: bool, rank: Rank) -> None:
        """Write what the store does not hold yet, every rank its share; then finish it."""
        shards = [] if store.complete else list(enumerate(self._shards()))
        if store.complete and rank.number == 0:
            # Whoever completed it may have been killed before the last mark was gone.
            store.tidy()
        done = store.done
        missing = [shard for shard in shards if shard[0] not in done]
        # One for all shards: memory that is given back and taken anew grows all the same.
        room = self._room(max((len(shard.examples) for _, shard in missing), default=0))
        # Nobody may write before all have seen what is missing.
        rank.wait()
        with Progress(transient=True, disable=not progress or rank.number > 0) as bar:
            for i, shard in bar.track(missing[rank.number :: rank.n], description="collecting activations"):
                kept = room[: len(shard.examples)]
                self._keep(shard, shard.batches, kept)
                _checks.finite(f"activations of shard {i}", kept)
                store.write(i, shard.examples, self.layers, kept)
        rank.wait()
        if rank.number == 0 and shards:
            if len(store.done) < len(shards):
                raise RankError(
                    f"Rank 0 sees {len(store.done)} of the {len(shards)} shards of {str(store.path)!r}: it must "
                    "stand in a folder that all machines share."
                )
            store.finish(described)
        rank.wait()

    def _batches(self) -> list[list[int]]:
        return batch_rows(self.rows, max_tokens=self.max_tokens)

    def _shards(self) -> list[Shard]:
        """Batches one after the other until a shard is full; the same ones in every run."""
        starts = self._starts()
        size = len(self.layers) * self.shape[2] * self.shape[3] * self.model.cfg.dtype.itemsize
        shards, batches, n_kept = [], [], 0
        for batch in self._batches():
            n = sum(len(self.chosen[i]) for i in batch)
            if batches and (n_kept + n) * size > SHARD_BYTES:
                shards.append(batches)
                batches, n_kept = [], 0
            batches, n_kept = [*batches, batch], n_kept + n
        return [Shard(group, self._examples(group, starts)) for group in [*shards, batches]]

    def _examples(self, batches: list[list[int]], starts: Int[Tensor, " text"]) -> Int[Tensor, " kept"]:
        texts = sorted(i for batch in batches for i in batch)
        return torch.cat([starts[i] + torch.arange(len(self.chosen[i])) for i in texts])

    def _starts(self) -> Int[Tensor, " text"]:
        """Number of each text's first example."""
        counts = torch.tensor([len(c) for c in self.chosen])
        return counts.cumsum(0) - counts

    def _room(self, n: int) -> Float[Tensor, "kept chosen head d_head"]:
        return torch.empty((n, len(self.layers), *self.shape[2:]), dtype=self.model.cfg.dtype)

    def _keep(self, shard: Shard, batches: Any, z: Float[Tensor, "kept chosen head d_head"]) -> None:
        """Run the model over the batches of a shard, and write to `z`."""
        config = self.model.cfg
        keeper = _Keeper(z, self.layers, stops=not self.before)
        starts, pad = self._starts(), pad_id(self.model)
        # Hooks are put on once: finding their points costs more than a short pass.
        with torch.no_grad(), self.model.hooks(fwd_hooks=[*self.before, *keeper.hooks()]):
            for index in batches:
                batch = padded(self.rows, index, pad)
                keeper.turn_to(batch, self.chosen, starts, shard.examples, config.device)
                edited = self.model.hooks(fwd_hooks=self.edits(index)) if self.edits else nullcontext()
                with edited, suppress(_LastLayerDone):
                    self.model(batch.tokens.to(config.device), attention_mask=batch.mask.long().to(config.device))


class _Keeper:
    """Hooks that copy the wanted positions of a batch to their rows of `z`."""

    def __init__(self, z: Tensor, layers: tuple[int, ...], *, stops: bool) -> None:
        self._z, self._layers, self._stops = z, layers, stops
        self._rows = self._columns = self._target = torch.zeros(0, dtype=torch.long)

    def turn_to(
        self,
        batch: TokenBatch,
        chosen: Sequence[Sequence[int]],
        starts: Int[Tensor, " text"],
        examples: Int[Tensor, " kept"],
        device: torch.device | str | None,
    ) -> None:
        """Row and column of each kept position of a batch, and which row of `z` it is."""
        counts = torch.tensor([len(chosen[i]) for i in batch.texts])
        self._rows = torch.arange(len(batch.texts)).repeat_interleave(counts).to(device)
        self._columns = torch.tensor([p for i in batch.texts for p in chosen[i]]).to(device)
        first = starts[batch.texts].repeat_interleave(counts)
        within = torch.arange(len(first)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        self._target = torch.searchsorted(examples, first + within)

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """One for each wanted layer."""
        return [(hook_name(layer), self._keeper(place)) for place, layer in enumerate(self._layers)]

    def _keeper(self, place: int) -> HookFunction:
        ends = self._stops and place == len(self._layers) - 1

        def keep(value: Tensor, hook: object) -> Tensor:
            rows, columns = self._rows.to(value.device), self._columns.to(value.device)
            self._z[self._target, place] = value[rows, columns].detach().to(self._z)
            if ends:
                raise _LastLayerDone
            return value

        return keep
