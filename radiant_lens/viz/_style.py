"""Palette and template of all figures, and what they do where there is nothing to draw."""

from __future__ import annotations

import html
import textwrap
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import NotFittedError

# Okabe and Ito (2008): told apart by colour-blind people; symbols and dashes differ as well.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")
BLUE, ORANGE, GREEN = COLORS[:3]
# Stands out from white and from black.
GREY = COLORS[-1]
SEQUENTIAL, DIVERGING = "Cividis", "RdBu"


def _template(ink: str, grid: str, paper: str) -> go.layout.Template:
    axis = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "automargin": True}
    return go.layout.Template(
        layout={
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "font": {"color": ink, "family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13},
            "title": {
                "x": 0.01,
                "xanchor": "left",
                "yref": "container",
                "yanchor": "top",
                "font": {"size": 15},
            },
            "colorway": list(COLORS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"align": "left"},
            "margin": {"l": 60, "r": 20, "t": 70, "b": 50},
        }
    )


LIGHT = _template("#1b1f24", "#d9dde2", "#ffffff")
DARK = _template("#e6e8eb", "#3a4048", "#16191d")


def styled(figure: go.Figure, title: str, *, note: str = "", x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """The figure with the template, its title (broken where it is long) and a smaller note under it.

    Figures of several panels, whose axes are named by themselves, leave out `x` and `y`.
    """
    lines = textwrap.wrap(title, 62)
    small = [f"<span style='font-size:12px'>{line}</span>" for line in textwrap.wrap(note, 88)]
    layout = {"height": 440, **layout}
    layout["title_y"] = 1 - 14 / layout["height"]
    figure.update_layout(template=LIGHT, title_text="<br>".join([*lines, *small]), **layout)
    # Titles of panels stand above them.
    panels = 24 if "xaxis2" in figure.to_dict()["layout"] else 0
    figure.update_layout(margin_t=34 + 21 * len(lines) + 17 * len(small) + panels)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def legend_below(figure: go.Figure) -> go.Figure:
    """The legend at the foot of the figure, where long names have room."""
    foot = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.0, "x": 0}
    figure.update_layout(legend=foot, margin_b=100)
    return figure


def empty(title: str, words: str) -> go.Figure:
    """A figure that says in words why it shows nothing."""
    figure = go.Figure()
    figure.add_annotation(text="<br>".join(textwrap.wrap(escaped(words), 70)), showarrow=False, font_size=14)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, title, height=220)


def escaped(text: str) -> str:
    """Text as it is: Plotly reads labels as HTML, so that a token like "<s>" would vanish."""
    return html.escape(text, quote=False)


def token_label(token: str) -> str:
    """A token to be read on an axis: spaces and line ends seen, nothing read as HTML."""
    return escaped(token.replace("\n", "⏎").replace(" ", "␣") if not token.strip() else token.strip())


def require_fitted(detector: RiskAwareDetector) -> None:
    """Raise where a detector is not fitted, or its figures are not finite."""
    if not hasattr(detector, "head_risk_"):
        raise NotFittedError("The detector is not fitted yet: call `detector.fit(cache, validation=...)` first.")
    _checks.finite("detector.head_risk_", detector.head_risk_)


def outline(cells: list[tuple[int, int]]) -> tuple[list[float | None], list[float | None]]:
    """Points of one line around each cell `(row, column)` of a heatmap."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row, column in cells:
        xs += [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5, None]
        ys += [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5, None]
    return xs, ys


def thinned(x: Tensor, y: Tensor, most: int = 200) -> tuple[list[float], list[float]]:
    """At most so many points of a curve, its ends among them."""
    kept = torch.linspace(0, len(x) - 1, min(len(x), most)).round().long()
    return x[kept].tolist(), y[kept].tolist()
