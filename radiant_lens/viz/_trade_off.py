"""Truth against its cost."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation import Evaluation
from radiant_lens.statistics.bounds import Interval
from radiant_lens.viz import _style as style


def trade_off(evaluations: Mapping[str, Evaluation], *, x: str = "kl", y: str = "correct") -> go.Figure:
    """What each steering gains against what it costs, with 95% intervals.

    Names that agree up to ", " are strengths of one method and joined in the order of their cost, such as
    "RADIANT, gamma 0.1" and "RADIANT, gamma 0.01".

    Args:
        evaluations: by name, such as those of `studies.compare`, or `{row.name: row.pooled for row in result.rows}`
            of a study.
        x: metric of the cost.
        y: metric of the gain.

    Raises:
        InvalidArgumentError: no evaluation.
        UnknownNameError: a metric that none of them has.

    Example:
        >>> trade_off({"none": plain, "RADIANT": steered}).show()  # doctest: +SKIP
    """
    if not evaluations:
        raise InvalidArgumentError("`evaluations` must hold at least one; got none.")
    known = sorted({metric for e in evaluations.values() for metric in e.metrics})
    for metric in (x, y):
        _checks.known("metric", metric, known)
    measured = {n: (e.metrics[x], e.metrics[y]) for n, e in evaluations.items() if {x, y} <= set(e.metrics)}
    families: dict[str, list[str]] = {}
    for name in sorted(measured, key=lambda n: measured[n][0].value):
        families.setdefault(name.partition(", ")[0], []).append(name)
    title, missing = f"{_words(y)} against {_words(x)}", sorted(set(evaluations) - set(measured))
    if not measured:
        return style.empty(title, "No steering was measured in both.")
    figure = go.Figure()
    for i, family in enumerate(dict.fromkeys(n.partition(", ")[0] for n in measured)):
        names = families[family]
        name = family if len(names) > 1 else names[0]
        figure.add_trace(_curve(name, names, [measured[n] for n in names], i))
    style.legend_below(figure)
    note = "Bars: 95% intervals over groups." + (f" Not measured in both: {', '.join(missing)}." if missing else "")
    return style.styled(figure, title, note=style.escaped(note), x=_words(x), y=_words(y))


def _words(metric: str) -> str:
    return {"kl": "KL (nats per token)", "correct": "correct answers"}.get(metric, metric.replace("_", " "))


def _curve(name: str, names: list[str], points: list[tuple[Interval, Interval]], i: int) -> go.Scatter:
    across, up = zip(*points)
    label = style.escaped(name)
    return go.Scatter(
        x=[p.value for p in across],
        y=[p.value for p in up],
        error_x=_ends(across),
        error_y=_ends(up),
        mode="lines+markers" if len(names) > 1 else "markers",
        name=label,
        text=[style.escaped(name) for name in names],
        line={"color": style.COLORS[i % len(style.COLORS)]},
        marker={"symbol": style.SYMBOLS[i % len(style.SYMBOLS)], "size": 11},
        hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    )


def _ends(intervals: tuple[Interval, ...]) -> dict[str, object]:
    highs, lows = [p.high - p.value for p in intervals], [p.value - p.low for p in intervals]
    return {"type": "data", "array": highs, "arrayminus": lows, "thickness": 1}
