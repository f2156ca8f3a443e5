"""The table of generated answers with their verdicts, and the metrics that are read off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens.datasets.records import Prompt
from radiant_lens.evaluation.judges.judge import VERDICTS, Judge, judge_answers
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.ratios import condition_parts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_DTYPES = {"prompt_index": "int64", "sample": "int64", "run": "int64", "score": "float64", "informative": "boolean"}
ANSWER_COLUMNS = ("prompt_index", "prompt", "condition", "group", "sample", "answer")
JUDGED = (*VERDICTS, "score", "informative", "true_informative", "undesirable_probability", "expected_maximum")
"""Metrics that a judge decides; each may have a condition behind a slash."""


def as_table(columns: Mapping[str, Any]) -> pd.DataFrame:
    """A table whose columns have the types of answers and verdicts."""
    return pd.DataFrame(columns).astype({name: kind for name, kind in _DTYPES.items() if name in columns})


def answer_table(prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> pd.DataFrame:
    """One row for each generated answer; `prompt_index` is the prompt's place."""
    rows = [
        (index, prompt.text, prompt.condition, prompt.group, sample, answer)
        for index, (prompt, given) in enumerate(zip(prompts, answers))
        for sample, answer in enumerate(given)
    ]
    return as_table({name: [row[i] for row in rows] for i, name in enumerate(ANSWER_COLUMNS)})


def judge_table(table: pd.DataFrame, prompts: Sequence[Prompt], judge: Judge) -> pd.DataFrame:
    """The table with the verdicts of a judge in place of any other; scores where the judge gives them."""
    asked = [prompts[i] for i in table["prompt_index"]]
    verdicts = judge_answers(judge, asked, table["answer"].tolist())
    said = {name: [getattr(v, name) for v in verdicts] for name in ("verdict", "score", "informative")}
    given = {name: values for name, values in said.items() if name == "verdict" or set(values) - {None}}
    return as_table(table.drop(columns=list(said), errors="ignore").to_dict("list") | given)


def verdict_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of each verdict; where the judge says more: mean score, shares informative, and true and informative."""
    sums: dict[str, tuple[Any, Any]] = {verdict: (table["verdict"] == verdict, 1) for verdict in VERDICTS}
    if "score" in table:
        score: Any = table["score"]
        sums["score"] = (score.fillna(0), score.notna())
    if "informative" in table:
        given: Any = table["informative"]
        said, informs = given.notna(), given.fillna(False)
        sums["informative"] = (informs, said)
        sums["true_informative"] = (informs & (table["verdict"] == "correct"), said)
    return condition_parts(table, sums)


def extreme_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts: whether any sample is undesirable, and the largest score of its samples."""
    prompts = table.assign(bad=table["verdict"] == "incorrect").groupby("prompt_index")
    rows = prompts.first()
    sums: dict[str, tuple[Any, Any]] = {"undesirable_probability": (prompts["bad"].any(), 1)}
    if "score" in table:
        worst: Any = prompts["score"].max()
        sums["expected_maximum"] = (worst.fillna(0), worst.notna())
    return condition_parts(rows, sums)


def distinct_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts of distinct n-grams of all samples, as a share of their words (dist-1, -2, -3).

    Prompts whose answers have no word are left out.
    """
    rows = table.groupby("prompt_index").agg({"group": "first", "condition": "first", "answer": list})
    said = [[answer.split() for answer in answers] for answers in rows["answer"]]
    told = [any(answers) for answers in said]
    return condition_parts(rows, {f"dist_{n}": ([_distinct(a, n) for a in said], told) for n in (1, 2, 3)})


def _distinct(answers: Sequence[Sequence[str]], n: int) -> float:
    grams = {gram for words in answers for gram in zip(*(words[i:] for i in range(n)))}
    return len(grams) / max(sum(map(len, answers)), 1)


def perplexity_parts(model: TransformerBridge, table: pd.DataFrame, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Nats per token of the answers given their prompts; empty answers have no tokens."""
    told = table[table["answer"] != ""]
    statements = [prompts[i].answered(answer) for i, answer in zip(told["prompt_index"], told["answer"])]
    scored = score_statements(model, statements, compare=False)
    rows = table.assign(nats=0.0, tokens=0.0)
    rows.loc[told.index, "nats"] = -scored.log_prob.numpy()
    rows.loc[told.index, "tokens"] = scored.n_tokens.numpy()
    return condition_parts(rows, {"perplexity": (rows["nats"], rows["tokens"])})
