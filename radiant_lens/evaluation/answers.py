"""The table of generated answers with their verdicts, and the metrics that are computed from it."""

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
    """Build a table whose columns have the types of answers and verdicts."""
    return pd.DataFrame(columns).astype({name: kind for name, kind in _DTYPES.items() if name in columns})


def answer_table(prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Build a table with one row for each generated answer; `prompt_index` is the prompt's position in `prompts`."""
    rows = [
        (index, prompt.text, prompt.condition, prompt.group, sample, answer)
        for index, (prompt, samples) in enumerate(zip(prompts, answers))
        for sample, answer in enumerate(samples)
    ]
    return as_table({name: [row[i] for row in rows] for i, name in enumerate(ANSWER_COLUMNS)})


def judge_table(table: pd.DataFrame, prompts: Sequence[Prompt], judge: Judge) -> pd.DataFrame:
    """Replace the verdicts of a table by those of a judge, with scores if the judge gives them."""
    verdicts = judge_answers(judge, [prompts[i] for i in table["prompt_index"]], table["answer"].tolist())
    columns = {name: [getattr(v, name) for v in verdicts] for name in ("verdict", "score", "informative")}
    # A judge that gives no score at all has no column of scores, not one of missing values.
    filled = {name: values for name, values in columns.items() if name == "verdict" or set(values) - {None}}
    return as_table(table.drop(columns=list(columns), errors="ignore").to_dict("list") | filled)


def verdict_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of each verdict; if the judge gives them, also the mean score and the informative answers.

    "true_informative" is the share of answers that are both correct and informative. TruthfulQA's True*Info, the
    product of both shares, needs no parts: `ratios` computes it from those of "correct" and "informative".
    """
    sums: dict[str, tuple[Any, Any]] = {verdict: (table["verdict"] == verdict, 1) for verdict in VERDICTS}
    if "score" in table:
        score: Any = table["score"]
        sums["score"] = (score.fillna(0), score.notna())
    if "informative" in table:
        informative: Any = table["informative"]
        judged, informs = informative.notna(), informative.fillna(False)
        sums["informative"] = (informs, judged)
        sums["true_informative"] = (informs & (table["verdict"] == "correct"), judged)
    return condition_parts(table, sums)


def extreme_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts: share with an undesirable sample, and largest score of the samples."""
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
    words = [[answer.split() for answer in answers] for answers in rows["answer"]]
    has_words = [any(answers) for answers in words]
    return condition_parts(rows, {f"dist_{n}": ([distinct_share(w, n) for w in words], has_words) for n in (1, 2, 3)})


def distinct_share(answers: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams of all answers to a prompt, as a share of their words (Li et al., 2016)."""
    grams = {gram for words in answers for gram in zip(*(words[i:] for i in range(n)))}
    return len(grams) / max(sum(map(len, answers)), 1)


def perplexity_parts(model: TransformerBridge, table: pd.DataFrame, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Nats per token of the answers given their prompts; empty answers have no tokens."""
    spoken = table[table["answer"] != ""]
    statements = [prompts[i].answered(answer) for i, answer in zip(spoken["prompt_index"], spoken["answer"])]
    scored = score_statements(model, statements, compare=False)
    # Empty answers keep their rows with 0 / 0, so that every group stays in the table and pairs with a baseline.
    rows = table.assign(nats=0.0, tokens=0.0)
    rows.loc[spoken.index, "nats"] = -scored.log_prob.numpy()
    rows.loc[spoken.index, "tokens"] = scored.n_tokens.numpy()
    return condition_parts(rows, {"perplexity": (rows["nats"], rows["tokens"])})
