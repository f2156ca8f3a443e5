"""Rows of one test part: an arm's scores of each question, with its own answers and with those of others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import desirable_statements, text_kl
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.judges.judge import judge_answers
from radiant_lens.evaluation.judges.registry import get_judge
from radiant_lens.evaluation.likelihood import KeptLogits, ScoredText, score_statements
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.hooks._steer import steer
from radiant_lens.studies.benchmark.style import with_swapped_answers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEW_TOKENS = 30
UNSTEERED = "none"
"""Name of the unsteered model among the arms."""
BY_CONDITION = "mc2/"
"""Begins the name of the MC2 under one condition, such as "mc2/after_undesirable"."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Scorer:
    """Scores a test part once for each steering.

    Args:
        model: from `load_model`.
        test: prompts with both kinds of answers, and desirable statements.
        n_answered: groups whose generated answers are judged, drawn at random.
        seed: of this draw.
        unsteered: logits on its desirable statements, shared by all steerings; None: computed for each.
    """

    model: TransformerBridge
    test: Dataset
    n_answered: int
    seed: int
    unsteered: KeptLogits | None = None

    def steered(self, steering: Steering | None) -> Rows:
        """One row for each test question; None for the unsteered model."""
        own = score_choices(self.model, self.test.prompts, steering)
        swapped = score_choices(self.model, with_swapped_answers(self.test).prompts, steering)
        text = score_statements(self.model, desirable_statements(self.test), steering, kept=self.unsteered)
        return self._joined(own, swapped, text, self._verdicts(self.test, steering))

    def changed(self, data: Dataset) -> Rows:
        """The same for the unsteered model after other text: `data` is the test part with it."""
        own = score_choices(self.model, data.prompts)
        swapped = score_choices(self.model, with_swapped_answers(data).prompts)
        text = score_statements(self.model, desirable_statements(data), compare=False)
        # The two models read different texts before the answers, and are compared on the answers' tokens.
        kl = text_kl(self.model, desirable_statements(self.test), desirable_statements(data))
        return self._joined(own, swapped, text._replace(kl=kl), self._verdicts(data, None))

    def _verdicts(self, data: Dataset, steering: Steering | None) -> dict[str, str]:
        """The judge's verdict on a greedy answer to the first prompt of each group that is drawn."""
        if not self.n_answered:
            return {}
        drawn = data.sample(self.n_answered, seed=self.seed)
        by_group = {prompt.group: prompt for prompt in reversed(drawn.prompts)}
        prompts = list(by_group.values())
        with nullcontext() if steering is None else steer(self.model, steering, allow_mismatch=True):
            answers = generate_answers(self.model, prompts, max_new_tokens=NEW_TOKENS, temperature=0, stop=data.stop)
        verdicts = judge_answers(get_judge(data.judge), prompts, [samples[0] for samples in answers])
        return {prompt.group: verdict.verdict for prompt, verdict in zip(prompts, verdicts)}

    def _joined(self, own: pd.DataFrame, swapped: pd.DataFrame, text: ScoredText, verdicts: Mapping[str, str]) -> Rows:
        # `Any`: the types of pandas do not follow a chain of tables.
        sums: Any = pd.DataFrame(
            {
                "group": [s.group for s in desirable_statements(self.test)],
                "kl": text.kl,
                "log_prob": text.log_prob,
                "edited": text.n_edited,
                "tokens": text.n_tokens,
            }
        )
        scores: Any = own.assign(swapped_mc2=swapped["mc2"])
        table = scores.groupby("group")[["mc1", "mc2", "swapped_mc2"]].mean()
        # A question without desirable statements has no text to be compared on.
        table = table.join(sums.groupby("group").sum().reindex(table.index, fill_value=0.0))
        if scores["condition"].nunique() > 1:
            by_condition = scores.pivot_table(index="group", columns="condition", values="mc2")
            table = table.join(by_condition.add_prefix(BY_CONDITION))
        table = table.reset_index()
        rows: Rows = table.assign(verdict=[verdicts.get(g, "") for g in table["group"]]).to_dict("records")
        return rows


def without_model(scores: pd.DataFrame) -> Rows:
    """Rows of an arm that reads answers alone; it has no text to be compared on."""
    table: Any = scores
    means = table.groupby("group")[["mc1", "mc2"]].mean().reset_index()
    nothing = dict.fromkeys(("kl", "log_prob", "edited", "tokens"), 0.0)
    # It gives the answers of other questions what it gives these: it has nothing but style.
    rows: Rows = means.assign(swapped_mc2=means["mc2"], **nothing, verdict="").to_dict("records")
    return rows
