"""Sensitivity of what the model says to displacements of its heads: gradients of a gain, and Fisher information.

Both are taken at `hook_z` in the parameters of a family of displacements, which acts at all edited positions of a text,
so the gradients of a text's positions are added up. One backward pass serves all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.analysis.families import Family
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.distributed import ProgressBar, progress_bar
from radiant_lens.errors import DataError
from radiant_lens.evaluation.generation import are_numbers, require_numbers
from radiant_lens.hooks._steer import steer
from radiant_lens.models.packing import AnswerPass, answer_passes, predict
from radiant_lens.models.predictions import Predictions, token_kl
from radiant_lens.models.tokens import answer_rows, pass_tokens
from radiant_lens.sites import hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Objectives = Callable[[Predictions], Sequence[Tensor]]
"""From what a pass predicts of answers to numbers to differentiate, one after the other."""


@dataclass(frozen=True)
class GainGradient:
    """The gradient of the mean log-share of correct answers.

    Attributes:
        gradient: in the parameters of each head.
        value: the mean of `log(sum_correct p / sum_all p)`, in nats.
        mc2: the mean of `sum_correct p / sum_all p`.
        n_prompts: prompts that were averaged over.
    """

    gradient: Float[Tensor, "site parameter"]
    value: float
    mc2: float
    n_prompts: int


@dataclass(frozen=True)
class FisherScores:
    """Scores of rows of texts: gradients of the log-probability of tokens that are drawn from the model.

    Their second moment is the Fisher information of parameters `d` of all heads: `KL = sum over rows of (s . d)^2 / 2
    / n_tokens` to second order.

    Attributes:
        scores: of each row and draw.
        n_tokens: of each row's answers.
    """

    scores: Float[Tensor, "row site parameter"]
    n_tokens: Int[Tensor, " row"]


def gain_gradient(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    family: Family,
    steering: Steering | None = None,
    *,
    max_tokens: int | None = None,
    progress: bool = False,
) -> GainGradient:
    """Differentiate the log-share of probability that the correct answers have among all answers.

    Args:
        model: from `load_model`.
        prompts: those with correct and incorrect answers are used.
        family: displacements, in whose parameters the gradient is taken.
        steering: edits under which the gradient is taken.
        max_tokens: tokens in one pass, padding included; a prompt's answers always go together.
        progress: show a progress bar.

    Raises:
        DataError: no prompt has both kinds of answers.
    """
    used = require_gain(prompts)
    total = torch.zeros((len(family.sites), family.n_parameters), dtype=torch.float64)
    value = mc2 = 0.0
    answers = [[p.answered(a) for a in (*p.correct_answers, *p.incorrect_answers)] for p in used]
    correct = torch.tensor([a < len(p.correct_answers) for p, own in zip(used, answers) for a in range(len(own))])
    prompt_of = torch.arange(len(used)).repeat_interleave(torch.tensor([len(own) for own in answers]))
    rows = list(answer_rows(model, [statement for own in answers for statement in own]))
    passes = answer_passes(model, rows, max_tokens=pass_tokens(model, max_tokens), together=prompt_of.tolist())
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("gradient of the gain", total=len(rows))
        for batch in passes:
            share = _LogShare(batch, prompt_of, correct)
            total += next(_gradients(model, batch, share, family, steering)).sum(0)
            value, mc2 = value + float(share.log_share.sum()), mc2 + float(share.log_share.exp().sum())
            bar.advance(task, len(batch.texts.unique()))
    return GainGradient(total / len(used), value / len(used), mc2 / len(used), len(used))


def log_odds_gradient(
    model: TransformerBridge,
    statements: Sequence[Statement],
    weights: Float[Tensor, " text"],
    prompts: Int[Tensor, " text"],
    family: Family,
    *,
    max_tokens: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "prompt site parameter"]:
    """Differentiate, for each prompt, the weighted sum of the log-probabilities of its answers.

    Args:
        model: from `load_model`.
        statements: prompts with answers.
        weights: of the answers.
        prompts: number of the prompt that each answer belongs to, from 0 without gaps.
        family: displacements, in whose parameters the gradients are taken, at the unsteered model.
        max_tokens: tokens in one pass, padding included; a prompt's answers always go together.
        progress: show a progress bar.
    """
    total = torch.zeros((int(prompts.max()) + 1, len(family.sites), family.n_parameters), dtype=torch.float64)
    rows = list(answer_rows(model, statements))
    passes = answer_passes(model, rows, max_tokens=pass_tokens(model, max_tokens), together=prompts.tolist())
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("estimating effects", total=len(rows))
        for batch in passes:
            weighted = _WeightedTargets(batch.targets, weights[batch.texts])
            # Answers that share a row are those of one prompt.
            owners = torch.empty(len(batch.tokens), dtype=torch.long)
            owners[batch.rows] = prompts[batch.texts]
            total.index_add_(0, owners, next(_gradients(model, batch, weighted, family, None)).double())
            bar.advance(task, len(batch.texts.unique()))
    return total


def require_gain(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts with both kinds of answers.

    Raises:
        DataError: there are none.
    """
    used = [p for p in prompts if p.has_choices]
    if not used:
        raise DataError("No prompt has both correct and incorrect answers: there is no gain to differentiate.")
    return used


def fisher_scores(
    model: TransformerBridge,
    statements: Sequence[Statement],
    family: Family,
    steering: Steering | None = None,
    *,
    n_draws: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> FisherScores:
    """Differentiate the log-probability of tokens that are drawn from the model.

    Tokens are drawn at every position of the answer, never taken from the text: the text's own tokens would give
    another matrix, which is not the second derivative of the KL. Texts that share a row (see
    `radiant_lens.models.packing`) share a score, the sum of theirs. Its second moment is the sum of theirs too, because
    draws at different positions are independent and scores have mean 0.

    Args:
        model: from `load_model`.
        statements: texts; their answers' positions count.
        family: displacements, in whose parameters the scores are taken.
        steering: edits under which the scores are taken.
        n_draws: draws of tokens for each text; further draws cost a backward pass each, and no forward pass.
        seed: of the draws.
        max_tokens: tokens in one pass, padding included.
        progress: show a progress bar.
    """
    with progress_bar(shown=progress) as bar:
        scores = score_batches(
            model, statements, family, steering, n_draws=n_draws, seed=seed, max_tokens=max_tokens, bar=bar
        )
        batches = list(scores)
    return FisherScores(torch.cat([b.scores for b in batches]), torch.cat([b.n_tokens for b in batches]))


def score_batches(
    model: TransformerBridge,
    statements: Sequence[Statement],
    family: Family,
    steering: Steering | None = None,
    *,
    n_draws: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    bar: ProgressBar,
) -> Iterator[FisherScores]:
    """Yield the scores of each pass and draw, for sums that need not hold all of them; see `fisher_scores`."""
    generator = torch.Generator().manual_seed(seed)
    rows = list(answer_rows(model, statements))
    passes = answer_passes(model, rows, max_tokens=pass_tokens(model, max_tokens))
    task = bar.add_task("Fisher information", total=len(rows))
    for batch in passes:
        lengths = torch.bincount(batch.rows, minlength=len(batch.tokens))
        for scores in _gradients(model, batch, _DrawnTokens(generator, n_draws), family, steering):
            yield FisherScores(scores, lengths)
        bar.advance(task, len(batch.texts.unique()))


@dataclass(frozen=True)
class KLGradient:
    """The gradient of the KL from the unsteered to the steered model.

    Attributes:
        gradient: in the parameters of each head.
        value: the KL, in nats a token.
        n_tokens: tokens that were averaged over.
    """

    gradient: Float[Tensor, "site parameter"]
    value: float
    n_tokens: int


def kl_gradient(
    model: TransformerBridge,
    statements: Sequence[Statement],
    family: Family,
    steering: Steering,
    *,
    max_tokens: int | None = None,
) -> KLGradient:
    """Differentiate the KL over the answers of statements; it is 0 at the unsteered model.

    Args:
        model: from `load_model`.
        statements: texts; their answers' positions count.
        family: displacements, in whose parameters the gradient is taken.
        steering: edits under which it is taken.
        max_tokens: tokens in one pass, padding included.
    """
    rows = list(answer_rows(model, statements))
    total = torch.zeros((len(family.sites), family.n_parameters), dtype=torch.float64)
    value, n_tokens = 0.0, 0
    for batch in answer_passes(model, rows, max_tokens=pass_tokens(model, max_tokens)):
        with torch.no_grad():
            plain = predict(model, batch).place_log_probs()
        kl = _KLTo(plain)
        total += next(_gradients(model, batch, kl, family, steering)).sum(0)
        value, n_tokens = value + kl.value, n_tokens + len(batch.targets)
    return KLGradient(total / n_tokens, value / n_tokens, n_tokens)


class _KLTo:
    """Sum of the KL from plain log-probabilities; `value` holds it after a call."""

    def __init__(self, plain: Float[Tensor, "place vocab"]) -> None:
        self._plain, self.value = plain, 0.0

    def __call__(self, predictions: Predictions) -> Sequence[Tensor]:
        n_predicted = torch.bincount(predictions.place_of, minlength=len(self._plain)).to(self._plain)
        kl = (n_predicted * token_kl(self._plain, predictions.place_log_probs())).sum()
        self.value = float(kl.detach())
        return [kl]


class _LogShare:
    """Sum over prompts of the log-share of the correct answers; `log_share` holds each prompt's after a call."""

    def __init__(self, batch: AnswerPass, prompt_of: Int[Tensor, " text"], correct: Bool[Tensor, " text"]) -> None:
        texts, self._text = batch.texts.unique(return_inverse=True)
        self._target = batch.targets
        prompts, code = prompt_of[texts].unique(return_inverse=True)
        # Prompt by answer: which answers are a prompt's own.
        self._own = code == torch.arange(len(prompts))[:, None]
        self._correct = correct[texts]
        self.log_share = torch.zeros(0)

    def __call__(self, predictions: Predictions) -> Sequence[Tensor]:
        chosen = predictions.log_prob(self._target).cpu()
        answers = torch.zeros(len(self._correct)).index_add(0, self._text, chosen)
        every, right = (
            answers.expand_as(self._own).masked_fill(~mask, -torch.inf).logsumexp(1)
            for mask in (self._own, self._own & self._correct)
        )
        self.log_share = (right - every).detach()
        return [(right - every).sum()]


class _WeightedTargets:
    """Weighted sum of the log-probabilities of the answers' tokens."""

    def __init__(self, targets: Int[Tensor, " predicted"], weights: Float[Tensor, " predicted"]) -> None:
        self._targets, self._weights = targets, weights

    def __call__(self, predictions: Predictions) -> Sequence[Tensor]:
        chosen = predictions.log_prob(self._targets)
        return [(chosen * self._weights.to(chosen)).sum()]


class _DrawnTokens:
    """Sums of the log-probabilities of tokens that are drawn from the model at each answer position, a sum a draw."""

    def __init__(self, generator: torch.Generator, n_draws: int) -> None:
        self._generator, self._n_draws = generator, n_draws

    def __call__(self, predictions: Predictions) -> Sequence[Tensor]:
        n = len(predictions.place_of)
        uniform = torch.stack([torch.rand(n, generator=self._generator) for _ in range(self._n_draws)])
        return [predictions.log_prob(tokens).sum() for tokens in predictions.draw(uniform)]


def _gradients(
    model: TransformerBridge,
    batch: AnswerPass,
    objectives: Objectives,
    family: Family,
    steering: Steering | None,
) -> Iterator[Float[Tensor, "batch site parameter"]]:
    """Yield the gradient of each objective in the parameters of the family, for each row; all are from one pass."""
    layers, hooked = family.template.layers, family.hooked_layers
    before: list[Tensor] = []
    after: list[Tensor] = []

    def watch(z: Tensor, hook: object) -> None:
        before.append(z.detach())

    def capture(z: Tensor, hook: object) -> Tensor:
        # Below the first hook nothing needs a gradient.
        after.append(z if z.requires_grad else z.detach().requires_grad_())
        return after[-1]

    edits: AbstractContextManager[object] = nullcontext()
    if steering is not None:
        edits = steer(model, steering, start=batch.starts, allow_mismatch=True)
    edited = batch.edited.to(model.cfg.device)
    # Hooks act in the order in which they are set: gates and bases read activations before the edits.
    watching = [(hook_name(layer), watch) for layer in hooked]
    capturing = [(hook_name(layer), capture) for layer in layers]
    with torch.enable_grad(), model.hooks(fwd_hooks=watching), edits, model.hooks(fwd_hooks=capturing):
        predictions = predict(model, batch)
        require_numbers(are_numbers(predictions.logits.detach()))
        numbers = objectives(predictions)
    with torch.no_grad():
        read = dict(zip(hooked, zip(before, family.joint_scores(before))))
    for i, number in enumerate(numbers, start=1):
        with torch.enable_grad():
            gradients = torch.autograd.grad(number, after, retain_graph=i < len(numbers))
        with torch.no_grad():
            projected = [
                family.project(layer, gradient, z, edited, joint).cpu()
                for layer, gradient, (z, joint) in zip(layers, gradients, (read[layer] for layer in layers))
            ]
        yield torch.cat(projected, dim=1)
