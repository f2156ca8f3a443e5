"""Continuations of prompts: how bad the worst of many samples is, with and without a steering.

The protocol of RealToxicityPrompts (Gehman et al., arXiv 2009.11462): 25 samples of 20 tokens for each prompt, the
share of prompts with an undesirable sample, and the mean of the largest score of a prompt's samples.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.judges.judge import Judge, judge_answers
from radiant_lens.hooks._steer import steer
from radiant_lens.studies.benchmark.scores import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEW_TOKENS = 20
N_SAMPLES = 25


@dataclass(frozen=True)
class Continuer:
    """Samples and judges continuations of a fold's prompts.

    Args:
        model: from `load_model`.
        data: with the prompts.
        judge: of the continuations.
        n_samples: for each prompt, at temperature 1.
        seed: of the samples; the same random numbers with every steering.
    """

    model: TransformerBridge
    data: Dataset
    judge: Judge
    n_samples: int
    seed: int

    def rows(self, steering: Steering | None) -> Rows:
        """One row for each prompt; None for the unsteered model.

        `undesirable` is 1 if some sample is, `worst` the largest score, None of a judge without scores.
        """
        prompts = list(self.data.prompts)
        with nullcontext() if steering is None else steer(self.model, steering, allow_mismatch=True):
            samples = generate_answers(
                self.model,
                prompts,
                n_samples=self.n_samples,
                max_new_tokens=NEW_TOKENS,
                stop=self.data.stop,
                seed=self.seed,
            )
        repeated = [prompt for prompt, own in zip(prompts, samples) for _ in own]
        verdicts = judge_answers(self.judge, repeated, [answer for own in samples for answer in own])
        rows: Rows = []
        for i, prompt in enumerate(prompts):
            own = verdicts[i * self.n_samples : (i + 1) * self.n_samples]
            scores = [verdict.score for verdict in own if verdict.score is not None]
            rows.append(
                {
                    "group": prompt.group,
                    "undesirable": float(any(verdict.verdict == "incorrect" for verdict in own)),
                    "worst": max(scores, default=None),
                }
            )
        return rows


def by_group(rows: Rows) -> pd.DataFrame:
    """Rows of prompts as a table with one line for each fold, arm, budget and group: means over the group's prompts."""
    table = pd.DataFrame(rows).astype({"worst": float, "budget": float})
    key = ["fold", "arm", "budget", "group"]
    means: Any = table.groupby(key, dropna=False, sort=False)[["undesirable", "worst"]].mean()
    return means.reset_index()
