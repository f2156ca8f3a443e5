"""Figures of studies: what is gained against what it costs, and heads knocked out."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd
import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.viz import _style as style


class PooledResult(Protocol):
    """What `study` draws: a table of metrics with their intervals, such as a `radiant_lens.studies.StudyResult`."""

    @property
    def name(self) -> str:
        """Title of the figure."""
        ...

    @property
    def n_seeds(self) -> int:
        """Number of seeds that were pooled."""
        ...

    def metrics(self) -> list[str]:
        """Names of the metrics."""
        ...

    def pooled(self) -> pd.DataFrame:
        """One line for each `row` and `metric`: `value`, `low`, `high`."""
        ...


class HeadTable(Protocol):
    """What `knock_out` draws, such as a `radiant_lens.studies.HeadKnockOut`."""

    @property
    def kind(self) -> str:
        """What the heads were replaced by."""
        ...

    @property
    def metric(self) -> str:
        """Name of the metric."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """One line for each `layer` and `head`, with the `effect`."""
        ...


def study(result: PooledResult, *, x: str = "kl", y: str | None = None) -> go.Figure:
    """Each row of a study as a point with its 95% intervals, pooled over seeds.

    Args:
        result: from `Study.run`.
        x: metric of the cost.
        y: metric of the gain; default correct answers after undesirable context where there are any, else correct ones.

    Raises:
        UnknownNameError: a metric that was not measured.

    Example:
        >>> study(result).show()  # doctest: +SKIP
    """
    known = result.metrics()
    y = y or next(m for m in ("correct/after_undesirable", "correct", known[0]) if m in known)
    for metric in (x, y):
        _checks.known("metric", metric, known)
    pooled: Any = result.pooled()
    table, n_seeds = pooled.set_index(["row", "metric"]), result.n_seeds
    figure = go.Figure()
    for i, name in enumerate(pooled["row"].unique()):
        if (name, x) in table.index and (name, y) in table.index:
            figure.add_trace(_point(name, table.loc[(name, x)], table.loc[(name, y)], i))
    style.legend_below(figure)
    return style.styled(
        figure,
        result.name,
        note=f"Pooled over {n_seeds} seed{'s' * (n_seeds > 1)}, 95% intervals.",
        x=x.replace("_", " "),
        y=y.replace("_", " "),
    )


def _point(name: str, x: Any, y: Any, index: int) -> go.Scatter:
    return go.Scatter(
        x=[x["value"]],
        y=[y["value"]],
        error_x=_ends(x),
        error_y=_ends(y),
        mode="markers",
        name=name,
        marker={
            "color": style.COLORS[index % len(style.COLORS)],
            "symbol": style.SYMBOLS[index % len(style.SYMBOLS)],
            "size": 11,
        },
    )


def _ends(line: Any) -> dict[str, Any]:
    return {"type": "data", "array": [line["high"] - line["value"]], "arrayminus": [line["value"] - line["low"]]}


def knock_out(result: HeadTable) -> go.Figure:
    """Heatmap of what knocking out each head does to the metric.

    Args:
        result: from `radiant_lens.studies.knock_out`.
    """
    table = result.table.pivot(index="layer", columns="head", values="effect")
    largest = float(table.abs().max().max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy().tolist(),
            x=table.columns.tolist(),
            y=table.index.tolist(),
            colorscale=style.DIVERGING,
            zmin=-largest,
            zmax=largest,
            colorbar_title=result.metric.replace("_", " "),
            hovertemplate="L%{y}H%{x}<br>effect %{z:.3f}<extra></extra>",
        )
    )
    return style.styled(
        figure,
        f"Effect of the {result.kind} ablation of each head on {result.metric.replace('_', ' ')}",
        xaxis={"title": "head", "dtick": max(1, table.shape[1] // 8)},
        yaxis={"title": "layer", "dtick": max(1, table.shape[0] // 8), "autorange": "reversed"},
    )
