"""`evaluate`: what a model says, and what a steering costs, with intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens import _checks
from radiant_lens._errors import DataError, InvalidArgumentError
from radiant_lens.datasets.examples import Dataset
from radiant_lens.datasets.records import DESIRABLE, Statement
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.judges import VERDICTS, Judge, get_judge
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.hooks import steer
from radiant_lens.policies.steering import Steering
from radiant_lens.risks import Interval, bootstrap_ratio, group_sums


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        metrics: name to value with the ends of its 95% interval (bootstrap over groups). Of generated
            answers: "correct", "incorrect", "other", and each as "correct/CONDITION". Of desirable text, in
            nats per answer token: "kl" (unsteered || steered) and "cross_entropy"; and "edited_share", of
            its answer tokens.
        table: one row for each generated answer: prompt, condition, group, sample, answer, verdict.
        settings: what was asked for.
    """

    metrics: dict[str, Interval]
    table: pd.DataFrame
    settings: dict[str, Any]

    def gain(self, baseline: Evaluation, verdict: str = "correct", condition: str | None = None) -> Interval:
        """Paired difference of a verdict's share against another evaluation of the same prompts.

        Args:
            baseline: of the same data, samples and seed.
            verdict: "correct", "incorrect" or "other".
            condition: one condition alone; None for all prompts.

        Raises:
            InvalidArgumentError: the evaluations are not of the same prompts.
        """
        _checks.choice("verdict", verdict, VERDICTS)
        key = ["prompt", "sample"]
        if not self.table[key].equals(baseline.table[key]):
            raise InvalidArgumentError("Paired differences need evaluations of the same prompts and samples.")
        difference = (self.table["verdict"] == verdict).astype(float) - (baseline.table["verdict"] == verdict)
        return _by_group(self.table.assign(value=difference), condition)

    def to_markdown(self) -> str:
        """The metrics as a table."""
        lines = ["| metric | value | 95% interval |", "|-|-|-|"]
        lines += [f"| {name} | {m.value:.3f} | {m.low:.3f} to {m.high:.3f} |" for name, m in self.metrics.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The main metrics, in one line."""
        main = ", ".join(f"{name} {m.value:.3f}" for name, m in self.metrics.items() if "/" not in name)
        return f"Evaluation({len(self.table)} answers: {main})"


def evaluate(
    model: TransformerBridge,
    data: Dataset,
    steering: Steering | None = None,
    *,
    n_samples: int = 1,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
    judge: str | Judge | None = None,
) -> Evaluation:
    """Judge generated answers, and measure what the steering does to desirable text.

    Args:
        model: from `load_model`.
        data: with prompts, desirable statements, or both.
        steering: None for the model as it is.
        n_samples: answers to each prompt.
        max_new_tokens, temperature, seed: of the generation; temperature 0 is greedy.
        judge: default the data's own.

    Raises:
        InvalidArgumentError: a number out of its range.
        ModelMismatchError: a steering for another model.
        DataError: neither prompts nor desirable statements, or a prompt beyond the context.
    """
    desirable = [s for s in data.statements if s.label == DESIRABLE]
    if not data.prompts and not desirable:
        raise DataError(f"Data set {data.name!r} has neither prompts nor desirable statements to evaluate on.")
    judged = get_judge(data.judge if judge is None else judge)
    with nullcontext() if steering is None else steer(model, steering):
        answers = generate_answers(
            model,
            [p.text for p in data.prompts],
            n_samples=n_samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop=data.stop,
            seed=seed,
        )
    table = _table(data, answers, judged)
    metrics = _answer_metrics(table) | (_text_metrics(model, desirable, steering) if desirable else {})
    settings = {
        "data": data.name,
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "policy": None if steering is None else steering.meta.get("policy"),
    }
    return Evaluation(metrics, table, settings)


def _table(data: Dataset, answers: list[list[str]], judge: Judge) -> pd.DataFrame:
    columns = ["prompt", "condition", "group", "sample", "answer", "verdict"]
    rows = [
        (prompt.text, prompt.condition, prompt.group, sample, answer, judge(prompt, answer))
        for prompt, given in zip(data.prompts, answers)
        for sample, answer in enumerate(given)
    ]
    return pd.DataFrame(rows, columns=columns)


def _answer_metrics(table: pd.DataFrame) -> dict[str, Interval]:
    if table.empty:
        return {}
    conditions = table["condition"].unique()
    wanted = [None, *conditions] if len(conditions) > 1 else [None]
    return {
        verdict if condition is None else f"{verdict}/{condition}": _by_group(
            table.assign(value=(table["verdict"] == verdict).astype(float)), condition
        )
        for condition in wanted
        for verdict in VERDICTS
    }


def _by_group(table: pd.DataFrame, condition: str | None) -> Interval:
    chosen = np.ones(len(table), dtype=bool) if condition is None else (table["condition"] == condition).to_numpy()
    return _ratio(
        table["value"].to_numpy(float)[chosen], chosen[chosen].astype(float), table["group"].to_numpy()[chosen]
    )


def _ratio(numerators: np.ndarray, denominators: np.ndarray, names: np.ndarray) -> Interval:
    """Ratio of sums with its bootstrap interval over the named groups."""
    codes = torch.as_tensor(np.unique(names.astype(str), return_inverse=True)[1])
    return bootstrap_ratio(*(group_sums(torch.tensor(values), codes) for values in (numerators, denominators)))


def _text_metrics(
    model: TransformerBridge, desirable: Sequence[Statement], steering: Steering | None
) -> dict[str, Interval]:
    scored = score_statements(model, desirable, steering)
    names = np.array([s.group for s in desirable])
    sums = {"kl": scored.kl, "cross_entropy": -scored.log_prob, "edited_share": scored.n_edited}
    return {name: _ratio(values.numpy(), scored.n_tokens.numpy(), names) for name, values in sums.items()}
