"""Palette, template and shared rules of all figures.

Every figure keeps these rules:

- Dark means more. A darker cell of a heat map has more of the plotted quantity: more risk, a longer displacement, a
  larger effect. `SEQUENTIAL` runs from nearly white at zero to dark blue. Effects of either sign use `DIVERGING`, which
  is white at zero and darkens to both sides, to blue where the effect is positive and to orange where it is negative.
- An axis or colour scale starts at zero where zero means "nothing", such as no errors, no KL or no displacement.
- Axis titles are words, with the unit in brackets.
- A figure without anything to draw says so in words, see `empty`.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted

# Okabe and Ito (2008), safe for colour-blind readers. Traces differ in symbol or dash as well, for print in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")
BLUE, ORANGE, GREEN = COLORS[:3]
# Visible on white and on black paper, so boundaries and reference lines need no second colour for the dark scheme.
GREY = COLORS[-1]
SEQUENTIAL = "Blues"
DIVERGING = [[0.0, "#7a3e00"], [0.25, "#E69F00"], [0.5, "#ffffff"], [0.75, "#56B4E9"], [1.0, "#08306b"]]
MIN_PIXELS = 100


def _template(ink: str, grid: str, paper: str) -> go.layout.Template:
    axis = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "automargin": True, "title": {"standoff": 12}}
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


class Size(NamedTuple):
    """Size of a figure in pixels; None leaves the width to the page and the height to the figure."""

    width: int | None = None
    height: int | None = None

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a size that leaves no room for axes."""
        for name, pixels in self._asdict().items():
            if pixels is not None:
                _checks.whole(name, pixels, MIN_PIXELS)


def styled(
    figure: go.Figure,
    title: str,
    size: Size,
    *,
    note: str = "",
    x: str = "",
    y: str = "",
    height: int = 440,
    **layout: Any,
) -> go.Figure:
    """Apply the template, the size, the title and a smaller note below the title.

    Long titles and notes are broken into lines. Figures of several panels name their axes themselves and leave out `x`
    and `y`.

    Args:
        figure: changed in place.
        title: of the figure.
        size: as the caller of the public function asked for it.
        note: HTML of the smaller text.
        x, y: titles of the axes.
        height: where `size` has none.
        layout: further properties of the layout.

    Raises:
        InvalidArgumentError: a width or height below 100 pixels.
    """
    size.check()
    # A character of the title is about 9 pixels wide, one of the note 6.5; half a report page holds 55 and 76 of them.
    wide = size.width or 500
    lines = textwrap.wrap(title, max(12, wide // 9))
    small = [f"<span style='font-size:12px'>{line}</span>" for line in textwrap.wrap(note, max(16, int(wide / 6.5)))]
    height = size.height or height
    figure.update_layout(
        template=LIGHT,
        title_text="<br>".join([*lines, *small]),
        title_y=1 - 14 / height,
        width=size.width,
        height=height,
        **layout,
    )
    # The margin must be computed: Plotly lets a title of several lines run into the axes.
    # Titles of panels lie between the figure's title and its panels.
    panels = 24 if "xaxis2" in figure.to_dict()["layout"] else 0
    figure.update_layout(margin_t=34 + 21 * len(lines) + 17 * len(small) + panels)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def legend_below(figure: go.Figure) -> go.Figure:
    """Move the legend to the foot of the figure, where long names have room."""
    # `yref="container"` measures from the edge of the figure; the default, from the axes, would move with the height.
    foot = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.0, "x": 0}
    figure.update_layout(legend=foot, margin_b=100)
    return figure


def empty(title: str, words: str, size: Size) -> go.Figure:
    """A figure that says in words why it shows nothing."""
    figure = go.Figure()
    wide = 70 if size.width is None else max(16, size.width // 8)
    figure.add_annotation(text="<br>".join(textwrap.wrap(escaped(words), wide)), showarrow=False, font_size=14)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, title, size, height=220)


def escaped(text: str) -> str:
    """Text as Plotly shows it literally; unescaped, Plotly reads labels as HTML and a token like "<s>" vanishes."""
    return html.escape(text, quote=False)


def token_label(token: str) -> str:
    """A token as the label of an axis: visible spaces and line ends, escaped."""
    return escaped(token.replace("\n", "⏎").replace(" ", "␣") if not token.strip() else token.strip())


def require_risks(detector: RiskAwareDetector) -> None:
    """Raise unless `detector` is a fitted detector with finite risks.

    Raises:
        InvalidArgumentError: another object, such as the steering, in the detector's place.
        NotFittedError: the detector is not fitted.
        DataError: risks that are not finite.
    """
    hint = "the detector comes first, as in `head_risk(detector, steering)`"
    require_fitted(detector, hint=hint)
    # Layers that were not collected have infinite risk by definition; figures leave them blank.
    _checks.finite("detector.head_risk_", detector.head_risk_[list(detector.collected_layers_)])


def missing_layers(detector: RiskAwareDetector) -> str:
    """A sentence for the note of a figure of all layers, or "" where every layer was collected."""
    n = len(detector.head_risk_) - len(detector.collected_layers_)
    return f" Blank: {n} layer{'s' * (n > 1)} that {'were' if n > 1 else 'was'} not collected." if n else ""


def finite_or_none(values: Tensor) -> list[Any]:
    """Nested lists of a tensor's values; None, which Plotly leaves blank, in place of NaN and infinity."""
    if values.ndim > 1:
        return [finite_or_none(row) for row in values]
    return [value if math.isfinite(value) else None for value in values.tolist()]


def risk_words(fnr_weight: float) -> str:
    """The risk as a sum in words.

    Example:
        >>> risk_words(3.0)
        'false alarm rate + 3 × miss rate'
    """
    return "false alarm rate + " + ("" if fnr_weight == 1 else f"{fnr_weight:g} × ") + "miss rate"


# Words and unit of each metric; conditions ("correct/bare") come after a comma.
_METRICS = {
    "correct": ("correct answers", "share"),
    "incorrect": ("incorrect answers", "share"),
    "other": ("other answers", "share"),
    "informative": ("informative answers", "share"),
    "true_informative": ("true and informative answers", "share"),
    "true_times_informative": ("true share × informative share", "share"),
    "undesirable_probability": ("prompts with an undesirable answer", "share"),
    "edited_share": ("edited tokens", "share"),
    "mc1": ("MC1", "share of questions"),
    "mc2": ("MC2", "mean probability of true answers"),
    "kl": ("KL from the unsteered model", "nats per token"),
    "cross_entropy": ("cross-entropy of desirable text", "nats per token"),
    "log_odds": ("log-odds of correct answers", "nats"),
    "displacement": ("displacement of an edited head", "Euclidean length"),
}
# At zero of these nothing is lost or gained; cross-entropy, log-odds, perplexity and scores have no such zero.
_ZERO_IS_NOTHING = frozenset(_METRICS) - {"cross_entropy", "log_odds"}


def metric_words(metric: str) -> str:
    """A metric in words, without its unit.

    Example:
        >>> metric_words("correct/after_undesirable")
        'correct answers, after undesirable context'
    """
    kind, _, condition = metric.partition("/")
    words = _METRICS.get(kind, (kind.replace("_", " "), ""))[0]
    context = " context" if condition.startswith("after_") else ""
    return f"{words}, {condition.replace('_', ' ')}{context}" if condition else words


def metric_axis(metric: str) -> dict[str, Any]:
    """Title and range of an axis that shows a metric.

    Example:
        >>> metric_axis("kl")
        {'title': 'KL from the unsteered model<br>(nats per token)', 'rangemode': 'tozero'}
    """
    kind = metric.partition("/")[0]
    unit = _METRICS.get(kind, ("", ""))[1]
    # In short lines: vertical titles have no more room than the height of the axis.
    lines = [*textwrap.wrap(metric_words(metric), 30), *([f"({unit})"] if unit else [])]
    title = "<br>".join(map(escaped, lines))
    return {"title": title, "rangemode": "tozero" if kind in _ZERO_IS_NOTHING else "normal"}


def head_axes(n_layers: int, n_heads: int) -> dict[str, Any]:
    """Axes and legend of a heat map with a row for each layer, the first on top, and a column for each head."""
    return {
        "xaxis": {"title": "head", "dtick": max(1, n_heads // 8), "range": [-0.55, n_heads - 0.45], "showgrid": False},
        "yaxis": {
            "title": "layer",
            "dtick": max(1, n_layers // 8),
            "range": [n_layers - 0.45, -0.55],
            "showgrid": False,
        },
        # Above the axes: below them is the title of the horizontal axis.
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1.0},
    }


def cell_text(n_layers: int, n_heads: int) -> str | None:
    """Template of the number in each cell of a heat map; None where cells are too small for numbers."""
    return "%{z:.2f}" if n_layers <= 12 and n_heads <= 12 else None


def frame_heads(figure: go.Figure, sites: Iterable[tuple[int, int]]) -> None:
    """Draw a frame around the cells of heads that a steering edits."""
    cells = sorted(sites)
    if cells:
        x, y = outline(cells)
        line = {"color": ORANGE, "width": 3}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name="steered", showlegend=True)


def outline(cells: list[tuple[int, int]]) -> tuple[list[float | None], list[float | None]]:
    """Points of one line around each cell `(row, column)` of a heat map."""
    # One trace with gaps, not a shape for each cell: shapes have no legend, and hundreds of them draw slowly.
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row, column in cells:
        xs += [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5, None]
        ys += [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5, None]
    return xs, ys


def thinned(x: Tensor, y: Tensor, most: int = 200) -> tuple[list[float], list[float]]:
    """At most `most` points of a curve, its two ends among them."""
    # Both ends must stay, so that a ROC curve still begins at (0, 0) and ends at (1, 1).
    index = torch.linspace(0, len(x) - 1, min(len(x), most)).round().long()
    return x[index].tolist(), y[index].tolist()
