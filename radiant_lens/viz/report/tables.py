"""Tables of a report: answers side by side, steerings compared, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.evaluation import Evaluation
from radiant_lens.viz.report.content import Parts

COMPARED = (
    "correct",
    "correct/bare",
    "correct/after_undesirable",
    "correct/after_desirable",
    "other",
    "kl",
    "edited_share",
)
LONGEST = 2000


def steered_name(evaluations: Mapping[str, Evaluation], steered: str | None) -> str | None:
    """Name of the evaluation that is the steering: the one asked for, else the second; None where there is none."""
    names = list(evaluations)
    if steered is not None:
        _checks.known("evaluation", steered, names[1:], hint="The first is the unsteered model.")
        return steered
    return names[1] if len(names) > 1 else None


def examples(evaluations: Mapping[str, Evaluation], steered: str | None, n: int) -> dict[str, Any] | None:
    """The first prompts of each condition in turn, whatever their answers became, with both first answers.

    None where there are not two evaluations.
    """
    _checks.whole("n_examples", n, 0)
    if steered is None or n == 0:
        return None
    before, after = (_first_answers(evaluations[name]) for name in (next(iter(evaluations)), steered))
    if before.empty or after.empty:
        return None
    joined = before.assign(answer_after=after["answer"], verdict_after=after["verdict"]).dropna(subset="answer_after")
    # Prompts of a condition stand together: one of each in turn shows them all.
    turn = joined.groupby("condition").cumcount()
    rows = joined.loc[turn.sort_values(kind="stable").index[:n]]
    return {
        "names": (next(iter(evaluations)), steered),
        "n": len(joined),
        "rows": [
            {
                "prompt": _cut(row.prompt),
                "condition": str(row.condition).replace("_", " "),
                "answers": ((_cut(row.answer), row.verdict), (_cut(row.answer_after), row.verdict_after)),
            }
            for row in rows.itertuples()
        ],
    }


def _first_answers(evaluation: Evaluation) -> pd.DataFrame:
    table: Any = evaluation.table
    return table[table["sample"] == 0].set_index("prompt_index")


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else "..." + text[-LONGEST:]


def comparison(evaluations: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """A row for each steering: the main metrics with their intervals."""
    columns = [m for m in COMPARED if any(m in e.metrics for e in evaluations.values())]
    if not columns:
        return None
    rows = [[name, *(_interval(e, metric) for metric in columns)] for name, e in evaluations.items()]
    return {"columns": ["steering", *(c.replace("_", " ").replace("/", ", ") for c in columns)], "rows": rows}


def _interval(evaluation: Evaluation, metric: str) -> str:
    if metric not in evaluation.metrics:
        return "not measured"
    return format(evaluation.metrics[metric], ".3f" if metric == "kl" else ".0%")


def frame(table: pd.DataFrame) -> dict[str, Any]:
    """A data frame as columns and rows of text."""
    rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    return {"columns": list(table.columns), "rows": rows}


def settings(parts: Parts) -> dict[str, dict[str, str]]:
    """What each part was made with: heading to names and values."""
    found: dict[str, Any] = {}
    if parts.steering is not None:
        meta = parts.steering.meta
        found |= {name.capitalize(): meta[name] for name in ("policy", "detector", "model") if name in meta}
        heads = ", ".join(map(str, parts.steering.sites))
        rest = {
            "heads": heads,
            "gate": parts.steering.gate,
            "data": meta.get("data"),
            "positions": meta.get("positions"),
        }
        found["Steering"] = {**rest, **{f"made with {k}": v for k, v in meta.get("versions", {}).items()}}
    elif parts.detector is not None:
        found["Detector"] = parts.detector.get_params()
    if parts.evaluations:
        found["Evaluation"] = {
            k: v for k, v in next(iter(parts.evaluations.values())).settings.items() if k != "policy"
        }
    return {heading: {k: str(v) for k, v in values.items()} for heading, values in found.items()}
