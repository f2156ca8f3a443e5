"""Scores of all heads at tokens of the data: error rates, and the tokens that excite a head most."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE, Statement
from radiant_lens.models.lengths import fit_context
from radiant_lens.models.tokens import AnswerBatch, AnswerRow, answer_batches, answer_rows, pad_token
from radiant_lens.sites import HeadSite, head_hook
from radiant_lens.steering.gates import HeadScores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_TEXTS, N_KL_TEXTS = 96, 32
"""Statements that are drawn from the data for the scores of heads, and desirable ones for the KL."""

TOKENS_AT_ONCE = 256
"""Tokens of one pass, padding included: a request of the user waits for one pass at most."""

N_TOP = 8
BEFORE, AFTER = 8, 3
"""Tokens around a top token that are shown with it."""


@dataclass(frozen=True)
class TopToken:
    """A token of the data at which a head's score is among the largest."""

    score: float
    before: str
    token: str
    after: str
    label: int


@dataclass
class DataScores:
    """Scores at the answers' tokens of some statements; they grow pass by pass.

    Attributes:
        statements: that are read.
        n_read: number of them that have been read.
    """

    statements: Sequence[Statement]
    scores: HeadScores
    n_read: int = 0
    _values: list[Float[Tensor, "token layer head"]] = field(default_factory=list[Tensor])
    _labels: list[Int[Tensor, " token"]] = field(default_factory=list[Tensor])
    _places: list[tuple[Sequence[int], int, int]] = field(default_factory=list[Any])

    @property
    def complete(self) -> bool:
        """True once all statements have been read."""
        return self.n_read == len(self.statements)

    @property
    def n_tokens(self) -> int:
        """Number of tokens that have scores."""
        return len(self._places)

    def read(self, model: TransformerBridge) -> Iterator[int]:
        """Read the statements, one pass at a step; yields the number of those that have been read.

        A generator that is left in the middle cannot be taken up: each call reads what is still missing.
        """
        rows = list(answer_rows(model, self.statements))[self.n_read :]
        first = self.n_read
        # Statement by statement in their order, so that those which have been read are the first ones.
        for chunk in _chunks(rows):
            for batch in answer_batches(chunk, pad_token(model), max_tokens=TOKENS_AT_ONCE):
                self._add(model, batch, first)
            first += len(chunk)
            self.n_read = first
            yield first

    def _add(self, model: TransformerBridge, batch: AnswerBatch, first: int) -> None:
        edited = batch.edited
        by_layer = _scores(model, batch, self.scores)
        self._values.append(by_layer[edited])
        for row, position in edited.nonzero().tolist():
            statement = self.statements[first + batch.rows[row]]
            length = int(batch.mask[row].sum())
            self._places.append((batch.tokens[row, :length].tolist(), position, statement.label))
        self._labels.append(
            torch.tensor([self.statements[first + i].label for i in batch.rows]).repeat_interleave(edited.sum(1))
        )

    def rates(self) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """False positive and false negative rate of every head at these tokens; NaN where a class is missing."""
        flags, labels = torch.cat(self._values) >= 0, torch.cat(self._labels).bool()
        return flags[~labels].double().mean(0), (~flags[labels]).double().mean(0)

    def top(self, site: HeadSite, tokenizer: Any) -> tuple[TopToken, ...]:
        """Tokens with the largest scores of a head, each kind of context once."""
        if not self._values:
            return ()
        scores = torch.cat([values[:, site.layer, site.head] for values in self._values])
        chosen: dict[tuple[str, str], TopToken] = {}
        for i in scores.argsort(descending=True, stable=True).tolist():
            ids, position, label = self._places[i]
            before, token, after = _in_context(ids, position, tokenizer)
            chosen.setdefault((before, token), TopToken(float(f"{scores[i]:.4g}"), before, token, after, label))
            if len(chosen) == N_TOP:
                break
        return tuple(chosen.values())


def _in_context(ids: Sequence[int], position: int, tokenizer: Any) -> tuple[str, str, str]:
    """Text before a token, of the token, and after it."""
    first = max(0, position - BEFORE)
    # Decoded alone, a token may lose the blank before it.
    ends = [len(tokenizer.decode(ids[first : position + n])) for n in (0, 1)]
    text = tokenizer.decode(ids[first : position + 1 + AFTER])
    return text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]


def _chunks(rows: Sequence[AnswerRow]) -> Iterator[list[AnswerRow]]:
    """Rows in their order, as many at a time as one pass holds."""
    chunk: list[AnswerRow] = []
    for row in rows:
        width = max(len(r.ids) for r in [*chunk, row])
        if chunk and width * (len(chunk) + 1) > TOKENS_AT_ONCE:
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


def _scores(model: TransformerBridge, batch: AnswerBatch, scores: HeadScores) -> Float[Tensor, "batch pos layer head"]:
    """Scores `bias + weight . z` of every head at every token."""
    by_layer: list[Tensor] = []
    points = [head_hook(model, layer) for layer in range(model.cfg.n_layers)]

    def record(z: Tensor, hook: object) -> Tensor:
        layer = len(by_layer)
        weights, bias = scores.weights[layer].float(), scores.biases[layer].float()
        by_layer.append((z.detach().float().cpu() * weights).sum(-1) + bias)
        return z

    level, device = id(by_layer), model.cfg.device
    for point in points:
        point.add_hook(record, level=level)
    try:
        with torch.no_grad():
            model(batch.tokens.to(device), attention_mask=batch.mask.long().to(device))
    finally:
        for point in points:
            point.remove_hooks(level=level)
    return torch.stack(by_layer, dim=2)


def draw_statements(model: TransformerBridge, data: Dataset, *, seed: int = 0) -> tuple[Statement, ...]:
    """Draw statements whose heads are scored; texts beyond the model's context are left out."""
    statements = data.statements
    drawn = random.Random(seed).sample(statements, min(N_TEXTS, len(statements)))
    return tuple(fit_context(model, drawn, "skip").records) if drawn else ()


def kl_sample(data: Dataset, *, seed: int = 0) -> Dataset | None:
    """Draw desirable statements on which the KL is measured; None where the data have none."""
    statements = [s for s in data.statements if s.label == DESIRABLE]
    if not statements:
        return None
    drawn = random.Random(seed).sample(statements, min(N_KL_TEXTS, len(statements)))
    # The statements have their context and earlier turns already.
    return replace(data, atoms=tuple(drawn), bare_prompts=(), contexts=None, few_shot=None)
