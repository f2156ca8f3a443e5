"""Collections that are written shard by shard, whatever runs the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.capture.store import CacheStore
from radiant_lens.capture.tokenized import TokenizedTexts
from radiant_lens.distributed import Rank, progress_bar
from radiant_lens.errors import RankError

Batch = Int[Tensor, " text"]
"""Numbers of the texts that are read together."""


class ShardedRun(ABC):
    """One collection: the texts to run a model over, and the activations to keep.

    Attributes:
        texts: tokenized, with the positions to keep of each.
        layers: layers to keep, ascending.
    """

    texts: TokenizedTexts
    layers: tuple[int, ...]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Axes `example layer head d_head` of all activations."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of the activations."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings on which activations, or the examples of each shard, depend; a store records them."""

    @property
    @abstractmethod
    def shard_bytes(self) -> int:
        """Size of a shard: what an interruption loses at most, and what a run holds in memory."""

    @abstractmethod
    def _batches(self) -> list[Batch]:
        """All texts, in batches; a shard is made of whole ones."""

    @abstractmethod
    def _fill(
        self, z: Float[Tensor, "kept chosen head d_head"], batches: Iterable[Batch], examples: Int[Tensor, " kept"]
    ) -> None:
        """Run the model over batches, and copy the activations of their `examples` (ascending) to the rows of `z`."""

    def into(self, store: CacheStore, fields: Mapping[str, Any], progress: bool, rank: Rank) -> None:
        """Write the shards that the store lacks, each rank its share; then finish the store with the given fields.

        Ranks meet three times, and each meeting prevents one mistake:

        1. before the first write: a rank that reads the marks of shards late would take another rank's new shards for
           old ones, and two ranks would divide different lists;
        2. before the store is finished: `meta.json` must not declare a store complete whose shards are still written;
        3. at the end: no rank may load the store before it is finished.

        If a rank dies, the others get a `RankError` at the next meeting, and the marks that are there stay valid.
        """
        if store.complete and rank.number == 0:
            # The run that completed it may have been killed before it had removed the last mark.
            store.tidy()
        unfinished = not store.complete
        missing = self.missing(store)
        # One buffer for all shards: memory that is freed and allocated again for each of them would grow.
        buffer = self._buffer(max((self._n_examples(torch.cat(self.shards[i])) for i in missing), default=0))
        rank.wait()
        with progress_bar(shown=progress and rank.number == 0) as bar:
            for i in bar.track(missing[rank.number :: rank.n], description="collecting activations"):
                self.write(store, i, buffer)
        rank.wait()
        if rank.number == 0 and unfinished:
            self.finish(store, fields)
        rank.wait()

    def missing(self, store: CacheStore) -> list[int]:
        """Numbers of the shards that a store lacks."""
        if store.complete:
            return []
        done = store.done
        return [i for i in range(len(self.shards)) if i not in done]

    def write(self, store: CacheStore, shard: int, buffer: Tensor | None = None) -> None:
        """Collect one shard and write it.

        Args:
            store: to write to.
            shard: its number.
            buffer: memory of at least its size, to be used again.

        Raises:
            DataError: activations that are not finite.
            OutputError: the store cannot be written.
        """
        batches = self.shards[shard]
        examples = self._examples(torch.cat(batches).sort().values)
        activations = self._buffer(len(examples)) if buffer is None else buffer[: len(examples)]
        self._fill(activations, batches, examples)
        _checks.finite(f"activations of shard {shard}", activations)
        store.write(shard, examples, self.layers, activations)

    def finish(self, store: CacheStore, fields: Mapping[str, Any]) -> None:
        """Complete a store whose shards are all written.

        Raises:
            RankError: a shard is not there, so that another process wrote it to another folder.
        """
        n_done, n_shards = len(store.done), len(self.shards)
        if n_done < n_shards:
            raise RankError(
                f"Rank 0 sees {n_done} of the {n_shards} shards of {str(store.path)!r}: it must be in a folder that "
                "all machines share."
            )
        store.finish(fields)

    @cached_property
    def shards(self) -> Sequence[list[Batch]]:
        """Consecutive batches, grouped into shards of at most `shard_bytes`, or one batch if that is larger.

        They depend on the settings of the run alone, all of which are in the store's plan: another process, or a later
        run, gets the same shards by the same numbers.
        """
        size = len(self.layers) * self.shape[2] * self.shape[3] * self.dtype.itemsize
        shards: list[list[Batch]] = []
        batches: list[Batch] = []
        n_examples = 0
        for batch in self._batches():
            n = self._n_examples(batch)
            if batches and (n_examples + n) * size > self.shard_bytes:
                shards.append(batches)
                batches, n_examples = [], 0
            batches.append(batch)
            n_examples += n
        return [*shards, batches]

    def _n_examples(self, texts: Batch) -> int:
        return int(self.texts.counts[texts].sum())

    @cached_property
    def _ends(self) -> Int[Tensor, " text"]:
        """Number of examples of all texts up to each text, that text included."""
        return self.texts.counts.cumsum(0)

    def _examples(self, texts: Batch) -> Int[Tensor, " kept"]:
        """Numbers of the examples of some texts, one text after the other."""
        # Counted within the chosen texts, then shifted for each text by what its last example lacks to its number.
        counts = self.texts.counts[texts]
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1])) + (self._ends[texts] - ends).repeat_interleave(counts)

    def _buffer(self, n: int) -> Float[Tensor, "kept chosen head d_head"]:
        return torch.empty((n, len(self.layers), *self.shape[2:]), dtype=self.dtype)
