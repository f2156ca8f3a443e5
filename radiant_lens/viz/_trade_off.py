"""Figure of the gain of several steerings against their cost."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation import Evaluation
from radiant_lens.statistics.bounds import Interval
from radiant_lens.viz import _style as style


def trade_off(
    evaluations: Mapping[str, Evaluation],
    *,
    x: str = "kl",
    y: str = "correct",
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot the gain of each steering against its cost, with 95% intervals.

    Names that agree up to ", " are strengths of one method, such as "RADIANT, gamma 0.1" and "RADIANT, gamma 0.01". A
    line joins them in the order of their cost.

    Args:
        evaluations: by name, such as those of `studies.compare`, or `{row.name: row.pooled for row in result.rows}`
            of a study.
        x: metric of the cost.
        y: metric of the gain.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no evaluation, something else than evaluations, or a size below 100 pixels.
        UnknownNameError: a metric that none of the evaluations has.

    Example:
        >>> trade_off({"none": plain, "RADIANT": steered}).show()  # doctest: +SKIP
    """
    size = style.Size(width, height)
    _require_evaluations(evaluations)
    known = sorted({metric for e in evaluations.values() for metric in e.metrics})
    for metric in (x, y):
        _checks.known("metric", metric, known)
    measured = {n: (e.metrics[x], e.metrics[y]) for n, e in evaluations.items() if {x, y} <= set(e.metrics)}
    title = f"{style.metric_words(y)[:1].upper()}{style.metric_words(y)[1:]} against {style.metric_words(x)}"
    if not measured:
        return style.empty(title, "No steering was measured in both.", size)
    figure = go.Figure()
    for i, (name, members) in enumerate(_families(measured).items()):
        figure.add_trace(_curve(name, members, i))
    style.legend_below(figure)
    figure.update_layout(xaxis=style.metric_axis(x), yaxis=style.metric_axis(y))
    # Away from the axes, where the marker of a steering without cost would hide the zero.
    figure.update_xaxes(ticklabelstandoff=6)
    figure.update_yaxes(ticklabelstandoff=8)
    missing = sorted(set(evaluations) - set(measured))
    note = "Bars: 95% intervals over groups." + (f" Not measured in both: {', '.join(missing)}." if missing else "")
    return style.styled(figure, title, size, note=style.escaped(note))


def _require_evaluations(evaluations: Mapping[str, Evaluation]) -> None:
    _checks.instance("evaluations", evaluations, Mapping, hint="evaluations by name, such as {'steered': evaluation}")
    if not evaluations:
        raise InvalidArgumentError("`evaluations` must hold at least one; got none.")
    for name, evaluation in evaluations.items():
        _checks.instance(f"evaluations[{name!r}]", evaluation, Evaluation, hint="`rl.evaluate` returns one")


Point = tuple[Interval, Interval]


def _families(measured: Mapping[str, Point]) -> dict[str, dict[str, Point]]:
    """Strengths of each method by their names, in the order of their cost; a method alone goes by its full name."""
    # In the order of the evaluations, so that a method keeps its colour when another metric is drawn.
    families: dict[str, dict[str, Point]] = {name.partition(", ")[0]: {} for name in measured}
    for name in sorted(measured, key=lambda n: measured[n][0].value):
        families[name.partition(", ")[0]][name] = measured[name]
    return {family if len(members) > 1 else next(iter(members)): members for family, members in families.items()}


def _curve(name: str, members: Mapping[str, Point], i: int) -> go.Scatter:
    across, up = zip(*members.values())
    return go.Scatter(
        x=[p.value for p in across],
        y=[p.value for p in up],
        error_x=_bars(across),
        error_y=_bars(up),
        mode="lines+markers" if len(members) > 1 else "markers",
        name=style.escaped(name),
        text=[style.escaped(member) for member in members],
        line={"color": style.COLORS[i % len(style.COLORS)]},
        # A steering without cost lies on the axis, which would hide half of its marker.
        cliponaxis=False,
        marker={"symbol": style.SYMBOLS[i % len(style.SYMBOLS)], "size": 11},
        hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    )


def _bars(intervals: tuple[Interval, ...]) -> dict[str, object]:
    highs, lows = [p.high - p.value for p in intervals], [p.value - p.low for p in intervals]
    return {"type": "data", "array": highs, "arrayminus": lows, "thickness": 1}
