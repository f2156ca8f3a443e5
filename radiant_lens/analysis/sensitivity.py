"""Sensitivity of what the model says to displacements of its heads: gradients of a gain, and Fisher information.

Both are taken at `hook_z` for a displacement that is the same at all edited positions of a text, so the gradients of a
text's positions are added up. One backward pass serves all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import Progress
from torch import Tensor

from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError
from radiant_lens.hooks._steer import steer
from radiant_lens.models.tokens import (
    AnswerBatch,
    AnswerRow,
    answer_batches,
    answer_rows,
    pad_rows,
    pad_token,
    pass_tokens,
)
from radiant_lens.sites import hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Objective = Callable[[Float[Tensor, "predicted vocab"]], Tensor]
"""From log-probabilities at the positions that predict answers' tokens, row by row, to a number to differentiate."""


@dataclass(frozen=True)
class GainGradient:
    """The gradient of the mean log-share of correct answers.

    Attributes:
        gradient: for each head.
        value: the mean of `log(sum_correct p / sum_all p)`, in nats.
        mc2: the mean of `sum_correct p / sum_all p`.
        n_prompts: prompts that were averaged over.
    """

    gradient: Float[Tensor, "layer head d_head"]
    value: float
    mc2: float
    n_prompts: int


@dataclass(frozen=True)
class FisherScores:
    """Scores of texts: gradients of the log-probability of tokens that are drawn from the model.

    Their second moment is the Fisher information of a displacement `d` of all heads: `KL = mean over tokens of
    (s . d)^2 / 2` to second order.

    Attributes:
        scores: one row for each text and draw.
        n_tokens: of each row's answer.
    """

    scores: Float[Tensor, "text layer head d_head"]
    n_tokens: Int[Tensor, " text"]


def gain_gradient(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    steering: Steering | None = None,
    *,
    max_tokens: int | None = None,
    progress: bool = False,
) -> GainGradient:
    """Differentiate the log-share of probability that the correct answers have among all answers.

    Args:
        model: from `load_model`.
        prompts: those with correct and incorrect answers are used.
        steering: edits under which the gradient is taken.
        max_tokens: tokens in one pass, padding included; a prompt's answers always go together.
        progress: show a progress bar.

    Raises:
        DataError: no prompt has both kinds of answers.
    """
    used = [p for p in prompts if p.correct_answers and p.incorrect_answers]
    if not used:
        raise DataError("No prompt has both correct and incorrect answers: there is no gain to differentiate.")
    total = torch.zeros(_head_shape(model), dtype=torch.float64)
    value = mc2 = 0.0
    batches = list(_prompt_batches(model, used, pass_tokens(model, max_tokens)))
    with Progress(transient=True, disable=not progress) as bar:
        for batch, prompt_of, correct in bar.track(batches, description="gradient of the gain"):
            share = _LogShare(batch, prompt_of, correct)
            total += _text_gradients(model, batch, share, steering).sum(0)
            value, mc2 = value + float(share.log_share.sum()), mc2 + float(share.log_share.exp().sum())
    return GainGradient(total / len(used), value / len(used), mc2 / len(used), len(used))


def fisher_scores(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering | None = None,
    *,
    n_draws: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> FisherScores:
    """Differentiate the log-probability of tokens that are drawn from the model, for each text by itself.

    Tokens are drawn at every position of the answer, never taken from the text: the text's own tokens would give
    another matrix, which is not the second derivative of the KL.

    Args:
        model: from `load_model`.
        statements: texts; their answers' positions count.
        steering: edits under which the scores are taken.
        n_draws: draws of tokens for each text.
        seed: of the draws.
        max_tokens: tokens in one pass, padding included.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = list(answer_rows(model, statements))
    lengths = torch.tensor([len(row.ids) - 1 - row.start for row in rows])
    scores = torch.zeros((n_draws, len(rows), *_head_shape(model)))
    batches = list(answer_batches(rows, pad_token(model), max_tokens=pass_tokens(model, max_tokens)))
    with Progress(transient=True, disable=not progress) as bar:
        for i, batch in bar.track([(i, b) for i in range(n_draws) for b in batches], description="Fisher information"):
            scores[i, batch.rows] = _text_gradients(model, batch, _DrawnTokens(generator), steering)
    return FisherScores(scores.flatten(0, 1), lengths.repeat(n_draws))


class _LogShare:
    """Sum over prompts of the log-share of the correct answers; `log_share` holds each prompt's after a call."""

    def __init__(self, batch: AnswerBatch, prompt_of: Int[Tensor, " batch"], correct: Bool[Tensor, " batch"]) -> None:
        predicted = _predicted(batch)
        self._target, self._row = batch.tokens[:, 1:][predicted], predicted.nonzero()[:, 0]
        self._correct = correct
        # Prompt by answer: which answers are a prompt's own.
        self._own = prompt_of == torch.arange(int(prompt_of.max()) + 1)[:, None]
        self.log_share = torch.zeros(0)

    def __call__(self, log_probs: Float[Tensor, "predicted vocab"]) -> Tensor:
        chosen = log_probs.gather(1, self._target.to(log_probs.device)[:, None])[:, 0].cpu()
        answers = torch.zeros(len(self._correct)).index_add(0, self._row, chosen)
        every, right = (
            answers.expand_as(self._own).masked_fill(~mask, -torch.inf).logsumexp(1)
            for mask in (self._own, self._own & self._correct)
        )
        self.log_share = (right - every).detach()
        return (right - every).sum()


class _DrawnTokens:
    """Sum of the log-probabilities of tokens that are drawn from the model at each answer position."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, log_probs: Float[Tensor, "predicted vocab"]) -> Tensor:
        uniform = torch.rand((len(log_probs), 1), generator=self._generator).to(log_probs.device)
        heights = log_probs.detach().exp().cumsum(-1)
        drawn = torch.searchsorted(heights, uniform * heights[:, -1:], right=True).clamp_max(heights.shape[1] - 1)
        return log_probs.gather(1, drawn).sum()


def _predicted(batch: AnswerBatch) -> Tensor:
    """Positions that predict a token of the answer, the last column left out."""
    return batch.edited[:, :-1] & batch.mask[:, 1:]


def _text_gradients(
    model: TransformerBridge, batch: AnswerBatch, objective: Objective, steering: Steering | None
) -> Float[Tensor, "batch layer head d_head"]:
    """Gradient of the objective in a displacement of each head, for each text by itself."""
    device = model.cfg.device
    layers = range(model.cfg.n_layers)
    captured: list[Tensor] = []

    def capture(z: Tensor, hook: object) -> Tensor:
        # Below the first hook nothing needs a gradient.
        captured.append(z if z.requires_grad else z.detach().requires_grad_())
        return captured[-1]

    edits: AbstractContextManager[object] = nullcontext()
    if steering is not None:
        edits = steer(model, steering, start=batch.starts, allow_mismatch=True)
    tokens, mask, edited = (part.to(device) for part in (batch.tokens, batch.mask, batch.edited))
    with torch.enable_grad(), edits, model.hooks(fwd_hooks=[(hook_name(layer), capture) for layer in layers]):
        logits = model(tokens, attention_mask=mask.long())
        # Only where the answer is predicted: the softmax over the vocabulary costs as much as several layers.
        value = objective(logits[:, :-1][_predicted(batch).to(logits.device)].float().log_softmax(-1))
        gradients = torch.autograd.grad(value, captured)
    summed = [torch.einsum("bphd,bp->bhd", g.float(), edited.float()) for g in gradients]
    return torch.stack([g.cpu() for g in summed], dim=1)


def _prompt_batches(
    model: TransformerBridge, prompts: Sequence[Prompt], max_tokens: int
) -> Iterator[tuple[AnswerBatch, Int[Tensor, " batch"], Tensor]]:
    """Batches of whole prompts with all their answers: rows, which prompt each belongs to, which are correct."""
    texts = [[p.answered(a) for a in (*p.correct_answers, *p.incorrect_answers)] for p in prompts]
    rows = list(answer_rows(model, [s for answers in texts for s in answers]))
    labels = [a < len(p.correct_answers) for p, answers in zip(prompts, texts) for a in range(len(answers))]
    ends = torch.tensor([len(answers) for answers in texts]).cumsum(0).tolist()
    spans = [range(end - len(answers), end) for end, answers in zip(ends, texts)]
    # Longest first, and prompts of like length together, so that little is padded.
    spans.sort(key=lambda span: -max(len(rows[i].ids) for i in span))
    group: list[range] = []
    for span in spans:
        widest = max(len(rows[i].ids) for i in (group or [span])[0])
        if group and widest * sum(map(len, [*group, span])) > max_tokens:
            yield _joined_batch(group, rows, labels, pad_token(model))
            group = []
        group.append(span)
    if group:
        yield _joined_batch(group, rows, labels, pad_token(model))


def _joined_batch(
    group: Sequence[range], rows: Sequence[AnswerRow], labels: Sequence[bool], pad: int
) -> tuple[AnswerBatch, Int[Tensor, " batch"], Tensor]:
    index = [i for span in group for i in span]
    tokens, mask = pad_rows([rows[i].ids for i in index], pad)
    batch = AnswerBatch(index, tokens, mask, torch.tensor([rows[i].start for i in index]))
    prompt_of = torch.arange(len(group)).repeat_interleave(torch.tensor([len(span) for span in group]))
    return batch, prompt_of, torch.tensor([labels[i] for i in index])


def _head_shape(model: TransformerBridge) -> tuple[int, int, int]:
    return int(model.cfg.n_layers), int(model.cfg.n_heads), int(model.cfg.d_head)
