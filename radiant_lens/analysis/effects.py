"""Effects of the edit of each head on the probabilities of correct and incorrect answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.families import Family
from radiant_lens.analysis.sensitivity import log_odds_gradient
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.models.identity import require_fitting
from radiant_lens.models.lengths import fit_context, long_rule
from radiant_lens.models.tokens import pass_tokens
from radiant_lens.notebook import card, html_table
from radiant_lens.sites import HeadSite
from radiant_lens.statistics.bounds import Interval, bootstrap_ratio, group_sums

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class _Answers(NamedTuple):
    """Every answer of every prompt, with its weight in the prompt's log-odds; `groups` index `names`."""

    statements: list[Statement]
    weights: Float[Tensor, " answer"]
    prompts: Int[Tensor, " answer"]
    groups: Int[Tensor, " prompt"]
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
        max_tokens: tokens in one forward pass, padding included, or of one prompt with all of its answers; None: 1024
            on the CPU, else 4096.
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
    # First-order estimate: the log-odds as a linear function of the strength of each head's edit.
    slopes = log_odds_gradient(
        model, answers.statements, answers.weights, answers.prompts, Family("strength", steering),
        max_tokens=max_tokens, progress=progress,
    )[..., 0]  # fmt: skip
    sums = group_sums(slopes, answers.groups)
    intervals = tuple(bootstrap_ratio(sums[:, i], answers.n_prompts) for i in range(len(steering.sites)))

    @cache
    def plain() -> Tensor:
        return score_statements(model, answers.statements, max_tokens=max_tokens).log_prob

    def measure(site: HeadSite) -> float:
        edited = score_statements(
            model, answers.statements, steering.select([site]), compare=False, max_tokens=max_tokens
        )
        return float(((edited.log_prob - plain()) * answers.weights).sum() / answers.n_prompts.sum())

    estimated = torch.tensor([interval.value for interval in intervals], dtype=torch.float64)
    unmeasured = torch.full_like(estimated, torch.nan)
    return HeadEffects(steering.sites, estimated, intervals, unmeasured, measure, answers.names)


def _answers(prompts: Sequence[Prompt], name: str) -> _Answers:
    if not prompts:
        raise DataError(f"Data set {name!r} has no prompt with both correct and incorrect answers.")
    statements: list[Statement] = []
    weights: list[float] = []
    prompt_of: list[int] = []
    for i, prompt in enumerate(prompts):
        for answers, sign in ((prompt.correct_answers, 1.0), (prompt.incorrect_answers, -1.0)):
            statements += [prompt.answered(answer) for answer in answers]
            weights += [sign / len(answers)] * len(answers)
            prompt_of += [i] * len(answers)
    names = sorted({p.group for p in prompts})
    code = {group: i for i, group in enumerate(names)}
    groups = torch.tensor([code[p.group] for p in prompts])
    n_prompts = torch.bincount(groups, minlength=len(names)).double()
    return _Answers(
        statements,
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(prompt_of),
        groups,
        n_prompts,
        tuple(names),
    )
