"""Tables of a report: steerings compared, side effects, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.side_effects import SideEffects
from radiant_lens.evaluation.side_effects.metrics import METRICS
from radiant_lens.viz import _style as style
from radiant_lens.viz.report.answers import cut
from radiant_lens.viz.report.content import ReportInputs

COMPARED = (
    "correct",
    "correct/bare",
    "correct/after_undesirable",
    "correct/after_desirable",
    "other",
    "kl",
    "edited_share",
)
N_CHANGED = 3
"""Changed answers to harmless requests that are shown."""


def steered_name(evaluations: Mapping[str, Evaluation], steered: str | None) -> str | None:
    """Name of the steering's evaluation: `steered`, else the second; None where there is only one."""
    names = list(evaluations)
    if steered is not None:
        _checks.known("evaluation", steered, names[1:], hint="The first is the unsteered model.")
        return steered
    return names[1] if len(names) > 1 else None


def comparison(evaluations: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """A row for each steering: the main metrics with their intervals."""
    columns = [m for m in COMPARED if any(m in e.metrics for e in evaluations.values())]
    if not columns:
        return None
    rows = [[name, *(_interval(e, metric) for metric in columns)] for name, e in evaluations.items()]
    return {"columns": ["steering", *map(style.metric_words, columns)], "rows": rows}


def _interval(evaluation: Evaluation, metric: str) -> str:
    if metric not in evaluation.metrics:
        return "not measured"
    text = format(evaluation.metrics[metric], ".3f" if metric == "kl" else ".0%")
    # A space that does not break keeps both ends of an interval on one line.
    return text.replace(", ", ",\u00a0")


def side_effects(measured: SideEffects | None) -> dict[str, Any] | None:
    """The metrics of side effects, and the first answers to harmless requests that the steering changes."""
    if measured is None:
        return None
    rows = [
        [
            METRICS[name].words,
            f"{effect.plain.value:.3f}",
            f"{effect.steered.value:.3f}",
            f"{effect.difference:+.3f}".replace(", ", ",\u00a0"),
            effect.reading,
        ]
        for name, effect in measured.metrics.items()
    ]
    changed = measured.changed_answers()
    shown = changed.head(N_CHANGED)[["request", "plain", "steered"]].itertuples(index=False)
    return {
        "metrics": {"columns": ["metric", "plain", "steered", "difference [95% interval]", "reading"], "rows": rows},
        "answers": {
            "columns": ["request", "plain", "steered"],
            "rows": [[cut(text) for text in row] for row in shown],
        },
        "n_changed": len(changed),
        "n_answers": len(measured.answers),
    }


def frame(table: pd.DataFrame) -> dict[str, Any]:
    """A data frame as columns and rows of text."""
    rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    return {"columns": list(table.columns), "rows": rows}


def settings(inputs: ReportInputs) -> dict[str, dict[str, str]]:
    """Settings of the steering, its detector and the evaluation: heading to names and values."""
    values: dict[str, Mapping[str, Any]] = {}
    if inputs.steering is not None:
        meta = inputs.steering.meta
        values |= {name.capitalize(): meta[name] for name in ("policy", "detector", "model") if name in meta}
        values["Steering"] = {
            "heads": ", ".join(map(str, inputs.steering.sites)),
            "gate": inputs.steering.gate,
            "data": meta.get("data"),
            "positions": meta.get("positions"),
            **{f"made with {k}": v for k, v in meta.get("versions", {}).items()},
        }
    elif inputs.detector is not None:
        values["Detector"] = inputs.detector.get_params()
    if inputs.evaluations:
        first = next(iter(inputs.evaluations.values()))
        values["Evaluation"] = {k: v for k, v in first.settings.items() if k != "policy"}
    return {heading: {k: _rounded(v) for k, v in pairs.items()} for heading, pairs in values.items()}


def _rounded(value: Any) -> str:
    """A setting as text: numbers with 3 significant digits, also inside lists and mappings; whole numbers in full."""
    # `bool` and `int` are no `float`: seeds and counts stay in full.
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_rounded(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_rounded, value))
    return str(value)
