"""Figures of studies: gain against cost, and heads knocked out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation import Evaluation
from radiant_lens.viz import _style as style

N_LABELS = 6
"""Points of a scatter figure that carry their name."""


class StudyRow(Protocol):
    """One steering of a study, such as a `radiant_lens.studies.results.Row`."""

    @property
    def name(self) -> str:
        """Name of the row."""
        ...

    @property
    def baseline(self) -> str | None:
        """Name of the unsteered row; None for that row itself."""
        ...

    @property
    def evaluations(self) -> Mapping[int, Sequence[Evaluation]]:
        """Runs by seed; a run that edited nothing has the reason in its settings, as `note`."""
        ...


class PooledResult(Protocol):
    """Result of a study that `study` can draw, such as a `radiant_lens.studies.StudyResult`."""

    @property
    def name(self) -> str:
        """Title of the figure."""
        ...

    @property
    def n_seeds(self) -> int:
        """Number of seeds that were pooled."""
        ...

    @property
    def rows(self) -> Sequence[StudyRow]:
        """The unsteered model, the arms and their controls."""
        ...

    def metrics(self) -> list[str]:
        """Names of the metrics."""
        ...

    def pooled(self) -> pd.DataFrame:
        """One line for each `row` and `metric`: `value`, `low`, `high`."""
        ...


class HeadTable(Protocol):
    """Effects of heads that `knock_out` can draw, such as a `radiant_lens.studies.HeadKnockOut`."""

    @property
    def kind(self) -> str:
        """Name of the ablation, such as "mean"."""
        ...

    @property
    def metric(self) -> str:
        """Name of the metric."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """One line for each `layer` and `head`, with the `effect`."""
        ...


def study(
    result: PooledResult,
    *,
    x: str = "kl",
    y: str | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot each row of a study as a point with its 95% intervals, pooled over seeds.

    A study in which no arm edited anything has no figure: the reasons take its place.

    Args:
        result: from `Study.run`.
        x: metric of the cost.
        y: metric of the gain; default correct answers after undesirable context where there are any, else correct ones.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: something else than the result of a study, or a size below 100 pixels.
        UnknownNameError: a metric that was not measured.

    Example:
        >>> study(result).show()  # doctest: +SKIP
    """
    size = style.Size(width, height)
    _require(result, "pooled", "`Study.run` returns one")
    known = result.metrics()
    y = y or next((m for m in ("correct/after_undesirable", "correct") if m in known), known[0] if known else x)
    for metric in (x, y):
        _checks.known("metric", metric, known)
    failure = _failure(result.rows)
    if failure:
        return style.empty(result.name, failure, size)
    pooled: Any = result.pooled()
    table, n_seeds = pooled.set_index(["row", "metric"]), result.n_seeds
    figure = go.Figure()
    for i, row in enumerate(result.rows):
        if (row.name, x) in table.index and (row.name, y) in table.index:
            figure.add_trace(_point(_label(row), table.loc[(row.name, x)], table.loc[(row.name, y)], i))
    if not figure.data:
        words = f"No row was measured in both {style.metric_words(x)} and {style.metric_words(y)}."
        return style.empty(result.name, words, size)
    style.legend_below(figure)
    figure.update_layout(xaxis=style.metric_axis(x), yaxis=style.metric_axis(y))
    note = f"Pooled over {n_seeds} seed{'s' * (n_seeds > 1)}, 95% intervals{' given these fits' * (n_seeds < 3)}."
    return style.styled(figure, style.escaped(result.name), size, note=note)


def _require(result: object, attribute: str, hint: str) -> None:
    """Raise unless an object has the attribute that only results of a kind have."""
    # Not `isinstance`: studies are on a higher floor, and results of one's own may be drawn as well.
    if not hasattr(result, attribute):
        raise InvalidArgumentError(f"`result` must be a result to draw; got {type(result).__name__}: {hint}.")


def _failure(rows: Sequence[StudyRow]) -> str:
    """The reasons why no arm edited anything, or "" where one did."""
    steered = [row for row in rows if row.baseline is not None]
    if not steered:
        return "The study has no arm but the unsteered model: there is nothing to compare."
    notes = [note for row in steered for note in _notes(row)]
    # An arm that edits nothing repeats the unsteered model: its point would look like a measured effect of zero.
    if not all(notes):
        return ""
    return f"Nothing was edited in any of the {len(steered)} steered rows. {' '.join(sorted(set(notes)))}"


def _notes(row: StudyRow) -> list[str]:
    """The reason why nothing was edited for each run of a row; "" for runs that did edit."""
    runs = [evaluation for evaluations in row.evaluations.values() for evaluation in evaluations]
    return [str(evaluation.settings.get("note") or "") for evaluation in runs]


def _label(row: StudyRow) -> str:
    notes = _notes(row)
    idle = sum(map(bool, notes))
    runs = "" if idle == len(notes) else f" in {idle} of {len(notes)} runs"
    return style.escaped(row.name) + (f" (nothing edited{runs})" if idle else "")


def _point(name: str, x: Any, y: Any, index: int) -> go.Scatter:
    return go.Scatter(
        x=[x["value"]],
        y=[y["value"]],
        error_x=_bar(x),
        error_y=_bar(y),
        mode="markers",
        # The unsteered model lies on the axis, which would hide half of its marker.
        cliponaxis=False,
        name=name,
        marker={
            "color": style.COLORS[index % len(style.COLORS)],
            "symbol": style.SYMBOLS[index % len(style.SYMBOLS)],
            "size": 11,
        },
    )


def _bar(line: Any) -> dict[str, Any]:
    return {"type": "data", "array": [line["high"] - line["value"]], "arrayminus": [line["value"] - line["low"]]}


def knock_out(result: HeadTable, *, width: int | None = None, height: int | None = None) -> go.Figure:
    """Heat map of the effect of knocking out each head; darker cells have larger effects, blue up and orange down.

    Args:
        result: from `radiant_lens.studies.knock_out`.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: something else than such a result, or a size below 100 pixels.
    """
    _require(result, "table", "`radiant_lens.studies.knock_out` returns one")
    size, metric = style.Size(width, height), style.escaped(style.metric_words(result.metric))
    title = f"Effect of the {result.kind} ablation of each head on {metric}"
    table = result.table.pivot(index="layer", columns="head", values="effect")
    largest = float(table.abs().max().max())
    if math.isnan(largest):
        return style.empty(title, "No effect was measured.", size)
    if largest == 0:
        return style.empty(title, f"No single head changes {metric}: all effects are 0.", size)
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy().tolist(),
            x=table.columns.tolist(),
            y=table.index.tolist(),
            colorscale=style.DIVERGING,
            zmin=-largest,
            zmax=largest,
            colorbar_title="effect",
            texttemplate=style.cell_text(*table.shape),
            hovertemplate="L%{y}H%{x}<br>effect %{z:.3f}<extra></extra>",
        )
    )
    return style.styled(
        figure,
        title,
        size,
        note="Blue: the metric is higher without the head; orange: lower. Darker heads matter more.",
        # The table may hold some heads alone, so the axes follow its numbers.
        xaxis={"title": "head", "dtick": max(1, table.shape[1] // 8), "showgrid": False},
        yaxis={"title": "layer", "dtick": max(1, table.shape[0] // 8), "autorange": "reversed", "showgrid": False},
    )


def knock_out_estimates(result: HeadTable, *, width: int | None = None, height: int | None = None) -> go.Figure:
    """Plot the measured effect of each knock-out against its first-order estimate, with the same scale on both axes.

    Heads on the dotted line are estimated exactly. Up to six heads carry their names: those of largest measured effect,
    if it is at least a fifth of the largest of all.

    Args:
        result: from `radiant_lens.studies.knock_out` with the metric "log_odds", which has estimates.
        width, height: in pixels; default the page's width, and 540.

    Raises:
        InvalidArgumentError: something else than such a result, one without estimates, or a size below 100 pixels.

    Example:
        >>> knock_out_estimates(studies.knock_out(experiment)).show()  # doctest: +SKIP
    """
    _require(result, "table", "`radiant_lens.studies.knock_out` returns one")
    size = style.Size(width, height)
    if "estimated" not in result.table:
        raise InvalidArgumentError(
            f"`result` must have first-order estimates; the metric {result.metric!r} has none. Use "
            '`studies.knock_out(experiment, metric="log_odds")`.'
        )
    title = f"The {result.kind} ablation of one head: estimate and measurement"
    table: Any = result.table.dropna(subset=["effect", "estimated"])
    if table.empty:
        return style.empty(title, "No effect was measured.", size)
    ends = [float(table[["effect", "estimated"]].min().min()), float(table[["effect", "estimated"]].max().max())]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": style.GREY, "dash": "dot"}, name="equal", hoverinfo="skip"
    )
    for i, (layer, rows) in enumerate(table.groupby("layer")):
        names = [f"L{int(layer)}H{head}" for head in rows["head"]]
        marker = {"color": style.COLORS[i % 6], "symbol": style.SYMBOLS[i % len(style.SYMBOLS)], "size": 9}
        figure.add_scatter(
            x=rows["estimated"].tolist(),
            y=rows["effect"].tolist(),
            mode="markers",
            name=f"layer {int(layer)}",
            text=names,
            marker=marker,
            hovertemplate="%{text}<br>estimated %{x:.3f}, measured %{y:.3f}<extra></extra>",
        )
    largest = table.sort_values("effect", key=lambda e: e.abs(), ascending=False, kind="stable").head(N_LABELS)
    # Smaller effects crowd around zero, where names would cover one another.
    for row in largest[largest["effect"].abs() >= 0.2 * largest["effect"].abs().max()].itertuples():
        name = f"L{row.layer}H{row.head}"
        figure.add_annotation(x=row.estimated, y=row.effect, text=name, showarrow=False, xshift=8, xanchor="left")
    style.legend_below(figure)
    square = {"scaleanchor": "x", "scaleratio": 1, "constrain": "domain"}
    return style.styled(
        figure,
        title,
        size,
        note="Dotted line: the estimate is exact.",
        x="first-order estimate (nats)",
        y="measured (nats)",
        xaxis={"constrain": "domain"},
        yaxis=square,
        height=540,
    )
