"""Effects of the edit of each head on the probabilities of correct and incorrect answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.models.identity import require_fitting
from radiant_lens.models.lengths import fit_context, long_rule
from radiant_lens.models.tokens import AnswerBatch, answer_batches, answer_rows, pad_token, pass_tokens
from radiant_lens.notebook import card, html_table
from radiant_lens.sites import HeadSite, hook_name
from radiant_lens.statistics.bounds import Interval, bootstrap_ratio, group_sums
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class _Answers(NamedTuple):
    """Every answer of every prompt, with its weight in the prompt's log-odds; `groups` index `names`."""

    statements: list[Statement]
    weights: Float[Tensor, " answer"]
    groups: Int[Tensor, " answer"]
    n_prompts: Float[Tensor, " group"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class HeadEffects:
    """Effect of editing each head alone on the log-odds of correct against incorrect answers, in nats.

    Attributes:
        sites: the edited heads.
        estimated: first-order estimate: gradient at `hook_z` times the edit's displacement, mean over prompts.
        intervals: 95% intervals of the estimates, by bootstrap over groups.
        measured: effect of the real edit; NaN where it was not measured (see `exact`).
        measure: function that measures the effect of one head's real edit.
        group_names: groups of the prompts, sorted. Heads selected by these effects have seen them.
    """

    sites: tuple[HeadSite, ...]
    estimated: Float[Tensor, " site"]
    intervals: tuple[Interval, ...]
    measured: Float[Tensor, " site"]
    measure: Callable[[HeadSite], float]
    group_names: tuple[str, ...] = ()

    def exact(self, n: int | None = None) -> HeadEffects:
        """Measure the `n` heads of largest estimate by real edits, one forward pass over all answers each.

        Args:
            n: at least 1; None for all heads.

        Returns:
            The same effects with `measured` filled in.
        """
        _checks.whole("n", len(self.sites) if n is None else n, 1, len(self.sites))
        measured = self.measured.clone()
        for i in self.estimated.argsort(descending=True)[:n].tolist():
            measured[i] = self.measure(self.sites[i])
        return replace(self, measured=measured)

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table with one row for each head, the most effective first."""
        table = pd.DataFrame(
            {
                "layer": [site.layer for site in self.sites],
                "head": [site.head for site in self.sites],
                "estimated": self.estimated.numpy(),
                "low": [interval.low for interval in self.intervals],
                "high": [interval.high for interval in self.intervals],
                "measured": self.measured.numpy(),
            }
        )
        return table.sort_values("estimated", ascending=False, ignore_index=True)

    def _repr_html_(self) -> str:
        words = "Effect of editing each head alone on the log-odds of correct against incorrect answers, in nats"
        rows = self.to_dataframe().to_dict("records")
        return card("HeadEffects", words, html_table(rows, note=", in `.to_dataframe()`"))

    def __repr__(self) -> str:
        """The most effective heads, in one line."""
        best = self.estimated.argsort(descending=True)[:4].tolist()
        return "HeadEffects(" + ", ".join(f"{self.sites[i]} {float(self.estimated[i]):+.3f}" for i in best) + ", ...)"


def head_effects(
    model: TransformerBridge,
    data: Dataset,
    steering: Steering,
    *,
    max_tokens: int | None = None,
    progress: bool = False,
    on_long: str | None = None,
) -> HeadEffects:
    """Estimate the effect of each head's edit on the log-odds of correct answers, all heads in one backward pass.

    A head that detects well may have no effect. The log-odds of a prompt are the log-probability of an answer,
    summed over its tokens and averaged over the correct answers, minus the same over the incorrect ones. Each
    answer is teacher-forced, and the gates are computed on it alone.

    Args:
        model: from `load_model`.
        data: with prompts that have both kinds of answers.
        steering: from a policy's `fit`.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        progress: show a progress bar.
        on_long: for prompts that leave the model's context no room for one of their answers: "skip" leaves them out
            with a warning, "error" raises ("cut" leaves them out, too: a prompt cannot end before its answer); None
            for the rule of the data set.

    Returns:
        Effects in nats; hand them to `steering.select`.

    Raises:
        DataError: no prompt has both correct and incorrect answers, or all of them are too long.
        ModelMismatchError: a steering for another model.
    """
    _checks.instance("data", data, Dataset, hint="its prompts are needed")
    require_fitting(steering, model)
    max_tokens = pass_tokens(model, max_tokens)
    prompts = [p for p in data.prompts if p.has_choices]
    answers = _answers(fit_context(model, prompts, long_rule(data, on_long), answers=True).records, data.name)
    # First-order estimate: d log p(answer) = gradient . displacement, one number for each answer and head.
    by_answer = _first_order(model, answers, steering, max_tokens, progress)
    sums = group_sums(by_answer * answers.weights[:, None], answers.groups)
    intervals = tuple(bootstrap_ratio(sums[:, i], answers.n_prompts) for i in range(len(steering.sites)))
    plain = score_statements(model, answers.statements, max_tokens=max_tokens).log_prob

    def measure(site: HeadSite) -> float:
        edited = score_statements(
            model, answers.statements, steering.select([site]), compare=False, max_tokens=max_tokens
        )
        return float(((edited.log_prob - plain) * answers.weights).sum() / answers.n_prompts.sum())

    estimated = torch.tensor([interval.value for interval in intervals], dtype=torch.float64)
    unmeasured = torch.full_like(estimated, torch.nan)
    return HeadEffects(steering.sites, estimated, intervals, unmeasured, measure, answers.names)


def _answers(prompts: Sequence[Prompt], name: str) -> _Answers:
    if not prompts:
        raise DataError(f"Data set {name!r} has no prompt with both correct and incorrect answers.")
    statements: list[Statement] = []
    weights: list[float] = []
    for prompt in prompts:
        for answers, sign in ((prompt.correct_answers, 1.0), (prompt.incorrect_answers, -1.0)):
            statements += [prompt.answered(answer) for answer in answers]
            weights += [sign / len(answers)] * len(answers)
    names = sorted({p.group for p in prompts})
    code = {group: i for i, group in enumerate(names)}
    n_prompts = torch.bincount(torch.tensor([code[p.group] for p in prompts]), minlength=len(names)).double()
    groups = torch.tensor([code[s.group] for s in statements])
    return _Answers(statements, torch.tensor(weights, dtype=torch.float64), groups, n_prompts, tuple(names))


def _first_order(
    model: TransformerBridge, answers: _Answers, steering: Steering, max_tokens: int, progress: bool
) -> Float[Tensor, "answer site"]:
    rows = list(answer_rows(model, answers.statements))
    effects = torch.zeros((len(rows), len(steering.sites)), dtype=torch.float64)
    batches = list(answer_batches(rows, pad_token(model), max_tokens=max_tokens))
    for batch in track(batches, description="estimating effects", disable=not progress, transient=True):
        effects[batch.rows] = _batch_effects(model, batch, steering)
    return effects


def _batch_effects(model: TransformerBridge, batch: AnswerBatch, steering: Steering) -> Float[Tensor, "batch site"]:
    device = model.cfg.device
    captured: dict[int, Tensor] = {}
    hooks = [(hook_name(layer), _capturing(captured, layer)) for layer in steering.layers]
    tokens, mask, answer = (rows.to(device) for rows in (batch.tokens, batch.mask, batch.edited))
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        log_probs = model(tokens, attention_mask=mask.long())[:, :-1].float().log_softmax(-1)
        # Rows of a batch do not see each other, so the gradient of the sum has the gradient of each row.
        scored = log_probs.gather(2, tokens[:, 1:, None])[..., 0] * (answer[:, :-1] & mask[:, 1:])
        gradients = torch.autograd.grad(scored.sum(), [captured[layer] for layer in steering.layers])
    columns = []
    for layer, gradient in zip(steering.layers, gradients):
        # The edit of each head alone: its gate and displacement are those on unsteered activations.
        edit = steering.displace(captured[layer].detach(), layer)
        moved = edit.displacement * answer[:, :, None, None]
        columns.append((gradient[:, :, edit.heads].to(moved) * moved).sum((1, 3)))
    return torch.cat(columns, dim=1).double().cpu()


def _capturing(captured: dict[int, Tensor], layer: int) -> HookFunction:
    def capture(z: Tensor, hook: object) -> Tensor:
        # With frozen weights no tensor before the first hook needs a gradient, and autograd would have nothing to
        # differentiate: the graph then begins here.
        captured[layer] = z if z.requires_grad else z.detach().requires_grad_()
        return captured[layer]

    return capture
