"""Forward passes that keep heads' activations and end after the last layer that is kept."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens._typing import HookFunction
from radiant_lens.capture.shards import ShardedRun
from radiant_lens.capture.store import SEPARATE_ROWS, SHARED_ROWS, SHORT_ROWS, TRANSFORMERS
from radiant_lens.capture.tokenized import TokenizedTexts
from radiant_lens.distributed import progress_bar
from radiant_lens.models.packing import (
    PackedRow,
    fill_rows,
    forward,
    joined_row,
    make_pass,
    may_share,
    row_limit,
)
from radiant_lens.models.tokens import AnswerRow, batch_rows, pad_token
from radiant_lens.sites import hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARD_BYTES = 2**23
"""Size of a shard of a store: what an interruption loses at most, and what a run holds in memory."""

Hooks = Sequence[tuple[str, HookFunction]]


class _LastLayerDone(Exception):  # noqa: N818 - not an error: it ends a pass early
    """Raised from the hook of the last kept layer: everything that is kept of the pass has been copied.

    An exception is the only way out of a forward pass. It saves the layers above and the logits, and it cannot hide an
    error: `_fill` catches this class alone, and no one else raises it.
    """


@dataclass(frozen=True)
class Run(ShardedRun):
    """One collection: the texts to run the model over, and the activations to keep.

    Args:
        model: from `load_model`.
        texts: tokenized, with the positions to keep of each.
        layers: layers to keep, ascending.
        max_tokens: tokens in one forward pass, padding included.
        steering: applied from each answer's first edited position on, after a layer's activations are kept.
        before: hooks that run before activations are kept; with them passes run to their end.
        rows: "short" lets answers to one prompt share its tokens where that saves time, the model allows it, and
            nothing acts on the passes; "shared" wherever they fit a pass, and "separate" nowhere, as in stores that
            earlier versions have begun.
    """

    model: TransformerBridge
    texts: TokenizedTexts
    layers: tuple[int, ...]
    max_tokens: int
    steering: Steering | None = None
    before: Hooks = ()
    rows: str = SHORT_ROWS

    @cached_property
    def shares(self) -> bool:
        """True if answers to one prompt share its tokens (see `radiant_lens.models.packing`)."""
        acted_on = self.steering is not None or len(self.before) > 0
        if self.rows == SEPARATE_ROWS or acted_on or self.texts.positions != "answer":
            return False
        return may_share(self.model, int(self.texts.lengths.max()))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of passes and shards, as a store records them."""
        return {
            "engine": TRANSFORMERS,
            "max_tokens": self.max_tokens,
            "shard_bytes": self.shard_bytes,
            "rows": self.rows if self.shares else SEPARATE_ROWS,
            "steering": None if self.steering is None else steering_digest(self.steering),
        }

    @property
    def shard_bytes(self) -> int:
        """Size of a shard."""
        return SHARD_BYTES

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return self.model.cfg.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Axes `example layer head d_head` of all activations."""
        config = self.model.cfg
        return int(self.texts.counts.sum()), config.n_layers, config.n_heads, config.d_head

    def in_memory(self, progress: bool) -> Float[Tensor, "example layer head d_head"]:
        """All activations; zero at layers that are not kept."""
        with progress_bar(shown=progress) as bar:
            activations = self._buffer(self.shape[0])
            batches = bar.track(self._batches(), description="collecting activations")
            self._fill(activations, batches, torch.arange(len(activations)))
        if len(self.layers) == self.shape[1]:
            z = activations
        else:
            z = torch.zeros(self.shape, dtype=activations.dtype)
            z[:, list(self.layers)] = activations
        _checks.finite("activations", z)
        return z

    def _shared_rows(self) -> list[list[int]]:
        """Numbers of the texts that share a row, for each row; a text with a prompt of its own is alone in one."""
        limit = row_limit(self.model, self.max_tokens)
        if self.rows == SHARED_ROWS:
            limit = limit._replace(width=None)
        rows: list[list[int]] = []
        for texts in self.texts.by_prompt():
            n_prompt = int(self.texts.starts[texts[0]]) + 1
            answers = (self.texts.lengths[texts] - n_prompt).tolist()
            rows += [[texts[i] for i in part] for part in fill_rows(n_prompt, answers, limit)]
        return rows

    @cached_property
    def _row_of(self) -> Sequence[int]:
        """Number of each text's row."""
        if not self.shares:
            return range(len(self.texts))
        numbers = array("q", bytes(8 * len(self.texts)))
        for number, texts in enumerate(self._shared_rows()):
            for text in texts:
                numbers[text] = number
        return numbers

    def _batches(self) -> list[Int[Tensor, " _"]]:
        if not self.shares:
            return batch_rows(self.texts.lengths, max_tokens=self.max_tokens)
        rows, starts, ends = self._shared_rows(), self.texts.starts.tolist(), self.texts.lengths.tolist()
        n_prompts = [starts[texts[0]] + 1 for texts in rows]
        lengths = [n + sum(ends[i] - n for i in texts) for n, texts in zip(n_prompts, rows)]
        batches = batch_rows(torch.tensor(lengths), max_tokens=self.max_tokens)
        return [torch.tensor([text for i in batch.tolist() for text in rows[i]]) for batch in batches]

    def _fill(
        self,
        z: Float[Tensor, "kept chosen head d_head"],
        batches: Iterable[Int[Tensor, " _"]],
        examples: Int[Tensor, " kept"],
    ) -> None:
        """Run the model over batches, and copy the activations of their `examples` (ascending) to the rows of `z`."""
        config = self.model.cfg
        keeper = _Keeper(z, self.layers, stops=not self.before)
        # Before the hooks are there: with hooks of others on the model, texts share nothing.
        row_of = self._row_of
        # Hooks are added once for all batches: looking their points up takes longer than a short pass.
        with torch.no_grad(), self.model.hooks(fwd_hooks=[*self.before, *keeper.hooks()]):
            for batch in batches:
                answers = [AnswerRow(list(self.texts.tokens(i)), int(self.texts.starts[i])) for i in batch.tolist()]
                numbers = [row_of[i] for i in batch.tolist()]
                rows = [joined_row(answers, list(own)) for _, own in groupby(range(len(batch)), numbers.__getitem__)]
                together = make_pass(rows, pad_token(self.model))
                tokens = self._kept_tokens(batch.tolist(), rows, together.tokens.shape[1])
                keeper.set_batch(tokens.to(config.device), torch.searchsorted(examples, self._examples(batch)))
                with self._steered(batch), suppress(_LastLayerDone):
                    forward(self.model, together)

    def _kept_tokens(self, texts: Sequence[int], rows: Sequence[PackedRow], width: int) -> Int[Tensor, " kept"]:
        """Tokens of a pass to keep, in the order of its texts, counted through its rows of `width` columns."""
        tokens: list[list[int]] = [[] for _ in texts]
        for r, row in enumerate(rows):
            # Positions before the end of the prompt are where they were; an answer's are moved by those before it.
            n_prompt, shift = len(row.prompt), width * r
            for i, answer in zip(row.texts, row.answers):
                tokens[i] = [width * r + p if p < n_prompt else shift + p for p in self.texts.kept(texts[i])]
                shift += len(answer)
        return torch.tensor([token for places in tokens for token in places])

    def _steered(self, texts: Int[Tensor, " some"]) -> AbstractContextManager[object]:
        if self.steering is None:
            return nullcontext()
        return self.model.hooks(fwd_hooks=self.steering.hooks(self.texts.starts[texts]))


class _Keeper:
    """Hooks that copy the activations at the kept positions of a batch to their rows of `z`."""

    def __init__(self, z: Tensor, layers: tuple[int, ...], *, stops: bool) -> None:
        self._z, self._layers, self._stops = z, layers, stops
        self._tokens = self._target = torch.zeros(0, dtype=torch.long)

    def set_batch(self, tokens: Int[Tensor, " kept"], target: Int[Tensor, " kept"]) -> None:
        """Set the tokens to keep of the next batch, and their rows in `z`."""
        self._tokens, self._target = tokens, target

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """One hook for each kept layer."""
        return [(hook_name(layer), self._keeper(place)) for place, layer in enumerate(self._layers)]

    def _keeper(self, place: int) -> HookFunction:
        ends = self._stops and place == len(self._layers) - 1

        def keep(value: Tensor, hook: object) -> Tensor:
            activations = value.detach().flatten(0, 1).index_select(0, self._tokens.to(value.device))
            self._z[:, place].index_copy_(0, self._target, activations.to(self._z))
            if ends:
                raise _LastLayerDone
            return value

        return keep


def steering_digest(steering: Steering) -> str:
    """Hash of a steering's heads, gate and tensors."""
    scores = steering.scores
    trust = {} if steering.trust is None else steering.trust.tensors()
    tensors = [t for group in (steering.head_maps.tensors(), trust) for t in group.values()]
    tensors += scores.used(joint=steering.needs_joint)
    header = f"{steering.sites} {steering.gate}".encode()
    return sha256([header, *(t.detach().cpu().double().numpy().tobytes() for t in tensors)])[:16]
