"""Collections whose passes vLLM runs, in one engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens.capture.shards import Batch, ShardedRun
from radiant_lens.capture.tokenized import TokenizedTexts
from radiant_lens.serving.head_reader import HeadReader

SHARD_BYTES = 2**26
"""Size of a shard of a store that vLLM fills: larger than others, since an engine runs empty at the end of each."""

_TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class EngineRun(ShardedRun):
    """One collection with vLLM; its engine starts at the first shard that is missing.

    Args:
        path: folder or Hub id of the model.
        heads: layers of the model, heads of a layer, and length of an activation.
        precision: of the model.
        texts: tokenized, with the positions to keep of each.
        layers: layers to keep, ascending.
        options: further arguments of `vllm.LLM`.
    """

    path: str
    heads: tuple[int, int, int]
    precision: torch.dtype
    texts: TokenizedTexts
    layers: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Axes `example layer head d_head` of all activations."""
        return int(self.texts.counts.sum()), *self.heads

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return self.precision

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as a store records them; those of the engine change no more than the order of sums."""
        return {"engine": "vllm", "shard_bytes": self.shard_bytes, "steering": None}

    @property
    def shard_bytes(self) -> int:
        """Size of a shard."""
        return SHARD_BYTES

    @cached_property
    def _reader(self) -> HeadReader:
        return HeadReader(self.path, self.precision, self.layers, int(self.texts.lengths.max()), self.options)

    def close(self) -> None:
        """End the engine, if it has started."""
        if "_reader" in vars(self):
            vars(self).pop("_reader").close()

    def _batches(self) -> list[Batch]:
        # In the order of the data: vLLM packs texts of any length, and answers to one prompt find it in the prefix
        # cache while they are neighbours.
        return list(torch.arange(len(self.texts)).split(_TEXTS_AT_ONCE))

    def _fill(
        self, z: Float[Tensor, "kept chosen head d_head"], batches: Iterable[Batch], examples: Int[Tensor, " kept"]
    ) -> None:
        texts = torch.cat(list(batches)).tolist()
        self._reader.read([self.texts.tokens(i) for i in texts], [self.texts.kept(i) for i in texts], z)
