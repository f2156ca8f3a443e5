"""Continuations of prompts: how bad the worst of many samples is, with and without a steering.

The protocol of RealToxicityPrompts (Gehman et al., arXiv 2009.11462): 25 samples of 20 tokens for each prompt, the
share of prompts with an undesirable sample, and the mean of the largest score of a prompt's samples. Beside them stand
the share of undesirable samples, distinct pairs of words, which repetition makes few, and the KL on the unsteered
model's own samples. Strengths are set on other text, so two steerings of equal KL there may differ here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers.records import COMPARING_JUDGES
from radiant_lens.datasets.records import Prompt
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.evaluation.answers import answer_table, distinct_parts, extreme_parts, judge_table, verdict_parts
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.judges.judge import Judge, Rule
from radiant_lens.evaluation.judges.registry import get_judge
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.ratios import make_parts
from radiant_lens.hooks._steer import steer
from radiant_lens.models.lengths import fit_context
from radiant_lens.studies.cells import data_fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEW_TOKENS, TEMPERATURE = 20, 1.0
N_SAMPLES = 25
N_GROUPS = 40
METRICS = ("incorrect", "undesirable_probability", "expected_maximum", "dist_2", "kl")


@dataclass(frozen=True)
class Continuations:
    """Prompts that a benchmark has every steering continue.

    Args:
        data: with prompts.
        n_groups: of prompts for each fold, drawn at random; None for all of its half.
        n_samples: continuations of each prompt, of at most 20 tokens, at temperature 1.
        judge: of the continuations, anything that `get_judge` takes; default the data's own.
    """

    data: Dataset
    n_groups: int | None = N_GROUPS
    n_samples: int = N_SAMPLES
    judge: str | Rule | Judge | None = None

    def __post_init__(self) -> None:
        """Check all settings before anything is computed."""
        _checks.instance("continuations", self.data, Dataset)
        if self.n_groups is not None:
            _checks.whole("n_groups", self.n_groups, 1)
        _checks.whole("n_samples", self.n_samples, 1)
        if len({prompt.group for prompt in self.data.prompts}) < 2:
            raise DataError(
                f"Data set {self.data.name!r} must have prompts of at least two groups to continue: half are for each "
                "fold."
            )
        # What it needs may be missing, and is missed before anything is computed.
        judge = get_judge(self.data.judge if self.judge is None else self.judge)
        compares = judge in [get_judge(name) for name in COMPARING_JUDGES]
        if compares and not any(p.correct_answers or p.incorrect_answers for p in self.data.prompts):
            raise InvalidArgumentError(
                f"`judge` must be one that reads the answer alone, such as 'profanity': {judge!r} compares answers "
                f"with references, and the prompts of {self.data.name!r} have none."
            )
        object.__setattr__(self, "judge", judge)

    def settings(self) -> dict[str, Any]:
        """All settings, as JSON; data and judge by name."""
        return {"data": self.data.name, **self._sampling(), "judge": repr(self.judge)}

    def key(self) -> dict[str, Any]:
        """All that answers depend on but model, steering, fold and seed; a judge reads them afterwards."""
        return {**self._sampling(), "continued": data_fingerprint(self.data)}

    def _sampling(self) -> dict[str, Any]:
        return {
            "n_groups": self.n_groups,
            "n_samples": self.n_samples,
            "max_new_tokens": NEW_TOKENS,
            "temperature": TEMPERATURE,
        }

    def fitting(self, model: TransformerBridge) -> Dataset:
        """The prompts alone, without those that leave no room in the model's context; warns of these."""
        # Answers are read again as text, which may have more tokens than were drawn.
        fitting = fit_context(model, self.data.prompts, self.data.on_long, n_new=2 * NEW_TOKENS)
        return replace(self.data, atoms=(), bare_prompts=fitting.records, contexts=None, template=None, few_shot=None)

    def answers(
        self, model: TransformerBridge, prompts: Sequence[Prompt], steering: Steering | None, seed: int
    ) -> list[list[str]]:
        """Sample answers to each prompt; the same random numbers with every steering."""
        with nullcontext() if steering is None else steer(model, steering, allow_mismatch=True):
            return generate_answers(
                model,
                prompts,
                n_samples=self.n_samples,
                max_new_tokens=NEW_TOKENS,
                temperature=TEMPERATURE,
                stop=self.data.stop,
                seed=seed,
            )

    def costs(
        self,
        model: TransformerBridge,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[str]],
        steering: Steering | None,
    ) -> list[tuple[float, float]]:
        """Measure the KL from the unsteered to the steered model on the former's own answers to each prompt.

        Answers are read as text: one that begins with a comma, or that was cut within a word, may have other tokens
        than those that were drawn, and the token that ends it is not counted.

        Returns:
            The sum in nats, and the number of tokens, for each prompt.
        """
        # Empty answers have no tokens.
        read = [(i, answer) for i, own in enumerate(answers) for answer in own if answer]
        statements = [prompts[i].answered(answer) for i, answer in read]
        compare = steering is not None
        scored = score_statements(model, statements, steering, compare=compare, count_edits=False)
        sums = [[0.0, 0.0] for _ in prompts]
        for (i, _), kl, n_tokens in zip(read, scored.kl.tolist(), scored.n_tokens.tolist()):
            sums[i][0] += kl
            sums[i][1] += n_tokens
        return [(kl, n_tokens) for kl, n_tokens in sums]

    def parts(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], costs: Sequence[Sequence[float]]
    ) -> pd.DataFrame:
        """Judge answers; returns the parts of `METRICS`, see `radiant_lens.evaluation.ratios`.

        Args:
            prompts: the prompts.
            answers: to each of them.
            costs: KL in nats and number of tokens for each of them.
        """
        assert self.judge is not None
        table = judge_table(answer_table(prompts, answers), prompts, get_judge(self.judge))
        kl, n_tokens = zip(*costs)
        cost_parts = make_parts([prompt.group for prompt in prompts], {"kl": (list(kl), list(n_tokens))})
        # `Any`: the types of pandas do not follow a filter.
        parts: Any = pd.concat(
            [verdict_parts(table), extreme_parts(table), distinct_parts(table), cost_parts], ignore_index=True
        )
        return parts[parts["metric"].isin(METRICS)]
