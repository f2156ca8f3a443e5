"""Forward passes that keep heads' activations and end after the last layer that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.capture.store import CacheStore
from radiant_lens.capture.tokenized import TokenizedTexts
from radiant_lens.distributed import Rank
from radiant_lens.errors import RankError
from radiant_lens.models.tokens import batch_rows, pad_rows, pad_token
from radiant_lens.sites import hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARD_BYTES = 2**23

Hooks = Sequence[tuple[str, HookFunction]]


class _LastLayerDone(Exception):  # noqa: N818 - no error: it ends a pass early
    """Everything wanted of a pass is kept."""


@dataclass(frozen=True)
class Run:
    """What to run the model over, and what to keep.

    Args:
        model: from `load_model`.
        texts: what they are, and what to keep of each.
        layers: to keep, ascending.
        max_tokens: tokens in one forward pass, padding included.
        steering: on from each answer's first edited position on, after a layer's activations are kept.
        before: hooks that are on before anything is kept; with them passes run to their end.
    """

    model: TransformerBridge
    texts: TokenizedTexts
    layers: tuple[int, ...]
    max_tokens: int
    steering: Steering | None = None
    before: Hooks = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Axes `example layer head d_head` of all activations."""
        config = self.model.cfg
        return int(self.texts.counts.sum()), config.n_layers, config.n_heads, config.d_head

    def in_memory(self, progress: bool) -> Float[Tensor, "example layer head d_head"]:
        """All activations; zero at layers that are not wanted."""
        with Progress(transient=True, disable=not progress) as bar:
            kept = self._room(self.shape[0])
            batches = bar.track(self._batches(), description="collecting activations")
            self._keep(batches, torch.arange(len(kept)), kept)
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
        room = self._room(max((self._n_examples(torch.cat(batches)) for _, batches in missing), default=0))
        # Nobody may write before all have seen what is missing.
        rank.wait()
        with Progress(transient=True, disable=not progress or rank.number > 0) as bar:
            for i, batches in bar.track(missing[rank.number :: rank.n], description="collecting activations"):
                examples = self._examples(torch.cat(batches).sort().values)
                kept = room[: len(examples)]
                self._keep(batches, examples, kept)
                _checks.finite(f"activations of shard {i}", kept)
                store.write(i, examples, self.layers, kept)
        rank.wait()
        if rank.number == 0 and shards:
            if len(store.done) < len(shards):
                raise RankError(
                    f"Rank 0 sees {len(store.done)} of the {len(shards)} shards of {str(store.path)!r}: it must "
                    "stand in a folder that all machines share."
                )
            store.finish(described)
        rank.wait()

    def _batches(self) -> list[Int[Tensor, " _"]]:
        return batch_rows(self.texts.lengths, max_tokens=self.max_tokens)

    def _shards(self) -> list[list[Int[Tensor, " _"]]]:
        """Batches one after the other until a shard is full, which is written as one; the same ones in every run."""
        size = len(self.layers) * self.shape[2] * self.shape[3] * self.model.cfg.dtype.itemsize
        shards, batches, n_kept = [], [], 0
        for batch in self._batches():
            n = self._n_examples(batch)
            if batches and (n_kept + n) * size > SHARD_BYTES:
                shards.append(batches)
                batches, n_kept = [], 0
            batches.append(batch)
            n_kept += n
        return [*shards, batches]

    def _n_examples(self, texts: Int[Tensor, " some"]) -> int:
        return int(self.texts.counts[texts].sum())

    @cached_property
    def _ends(self) -> Int[Tensor, " text"]:
        """Number of examples up to and with each text."""
        return self.texts.counts.cumsum(0)

    def _examples(self, texts: Int[Tensor, " some"]) -> Int[Tensor, " kept"]:
        """Numbers of the examples of some texts, one text after the other."""
        counts = self.texts.counts[texts]
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1])) + (self._ends[texts] - ends).repeat_interleave(counts)

    def _room(self, n: int) -> Float[Tensor, "kept chosen head d_head"]:
        return torch.empty((n, len(self.layers), *self.shape[2:]), dtype=self.model.cfg.dtype)

    def _keep(
        self,
        batches: Iterable[Int[Tensor, " _"]],
        examples: Int[Tensor, " kept"],
        z: Float[Tensor, "kept chosen head d_head"],
    ) -> None:
        """Run the model over some batches, and write their `examples` (ascending) to `z`."""
        config = self.model.cfg
        keeper = _Keeper(z, self.layers, stops=not self.before)
        pad = pad_token(self.model)
        # Hooks are put on once: finding their points costs more than a short pass.
        with torch.no_grad(), self.model.hooks(fwd_hooks=[*self.before, *keeper.hooks()]):
            for batch in batches:
                index = batch.tolist()
                tokens, mask = pad_rows([self.texts.tokens(i) for i in index], pad)
                target = torch.searchsorted(examples, self._examples(batch))
                keeper.turn_to([self.texts.kept(i) for i in index], tokens.shape[1], target, config.device)
                with self._steered(batch), suppress(_LastLayerDone):
                    self.model(tokens.to(config.device), attention_mask=mask.long().to(config.device))

    def _steered(self, texts: Int[Tensor, " some"]) -> AbstractContextManager[object]:
        if self.steering is None:
            return nullcontext()
        return self.model.hooks(fwd_hooks=self.steering.hooks(self.texts.starts[texts]))


class _Keeper:
    """Hooks that copy the wanted positions of a batch to their rows of `z`."""

    def __init__(self, z: Tensor, layers: tuple[int, ...], *, stops: bool) -> None:
        self._z, self._layers, self._stops = z, layers, stops
        self._tokens = self._target = torch.zeros(0, dtype=torch.long)

    def turn_to(
        self,
        chosen: Sequence[Sequence[int]],
        width: int,
        target: Int[Tensor, " kept"],
        device: torch.device | str | None,
    ) -> None:
        """The positions to keep in each row of the next batch, `width` tokens wide, and which rows of `z` they are."""
        self._tokens = torch.tensor([width * row + p for row, kept in enumerate(chosen) for p in kept]).to(device)
        self._target = target

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """One for each wanted layer."""
        return [(hook_name(layer), self._keeper(place)) for place, layer in enumerate(self._layers)]

    def _keeper(self, place: int) -> HookFunction:
        ends = self._stops and place == len(self._layers) - 1

        def keep(value: Tensor, hook: object) -> Tensor:
            kept = value.detach().flatten(0, 1).index_select(0, self._tokens.to(value.device))
            self._z[:, place].index_copy_(0, self._target, kept.to(self._z))
            if ends:
                raise _LastLayerDone
            return value

        return keep
