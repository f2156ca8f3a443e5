"""Figures of the mathematics in two dimensions: classes with a boundary, edits of them, and the cone of a guarantee."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.viz import _style as style

Points = Float[Tensor, "example 2"]
N_POINTS, N_EDITS = 150, 30


def planar_edits(
    desirable: Points,
    undesirable: Points,
    weight: Float[Tensor, " 2"],
    bias: float,
    *,
    edits: Mapping[str, tuple[Points, Points]] | None = None,
    title: str = "Two classes and the boundary of the detector",
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot two classes of two-dimensional activations with a detector's boundary, and edits of them in panels.

    One unit has the same length on both axes, so angles and lengths are right.

    Args:
        desirable, undesirable: the classes; the first 150 of each are drawn.
        weight, bias: of the detector, which flags `bias + weight . a >= 0`.
        edits: activations before and after, by name, one panel each; the first 30 are drawn. Default none: one panel
            with the classes alone.
        title: of the figure.
        width, height: in pixels; default the page's width, and 480, or 420 for several panels.

    Raises:
        InvalidArgumentError: activations or a weight that are not two-dimensional, a weight of zero, or a size below
            100 pixels.

    Example:
        >>> planar_edits(desirable, undesirable, theta, bias, edits={"ours": (before, after)}).show()  # doctest: +SKIP
    """
    edits = dict(edits or {})
    everything = {"desirable": desirable, "undesirable": undesirable}
    everything |= {f"edits[{name!r}]": points for name, pair in edits.items() for points in pair}
    for name, points in everything.items():
        _checks.shape(name, points, (None, 2), "example 2")
    _checks.shape("weight", weight, (2,), "2")
    if not bool(weight.any()):
        raise InvalidArgumentError("`weight` must not be zero: there is no boundary to draw.")
    names = list(edits) or [""]
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.03)
    both = torch.cat([desirable[:N_POINTS], undesirable[:N_POINTS]])
    low, high = (both.amin(0) - 0.3).tolist(), (both.amax(0) + 0.3).tolist()
    for i, name in enumerate(names, 1):
        place: dict[str, Any] = {"row": 1, "col": i, "showlegend": i == 1}
        _add_boundary(figure, weight.tolist(), float(bias), low, high, place)
        for label, color, symbol, points in (
            ("desirable", style.GREEN, "circle", desirable),
            ("undesirable", style.ORANGE, "diamond", undesirable),
        ):
            _add_points(figure, label, points[:N_POINTS], {"color": color, "size": 5, "symbol": symbol}, 0.5, place)
        if name:
            before, after = edits[name]
            _add_paths(figure, before[:N_EDITS], after[:N_EDITS], place)
            marker = {"color": style.BLUE, "size": 8, "symbol": "cross"}
            _add_points(figure, "edited", after[:N_EDITS], marker, 1.0, place)
        figure.update_xaxes(range=[low[0], high[0]], constrain="domain", title_text="first dimension", row=1, col=i)
        anchor = "x" if i == 1 else f"x{i}"
        # Towards the top, where the titles of the panels are.
        domain: dict[str, Any] = {"constrain": "domain", "constraintoward": "top", "scaleanchor": anchor}
        figure.update_yaxes(range=[low[1], high[1]], **domain, row=1, col=i)
    figure.update_yaxes(title_text="second dimension", col=1)
    style.legend_below(figure)
    return style.styled(figure, style.escaped(title), style.Size(width, height), height=480 if len(names) == 1 else 420)


def _add_boundary(
    figure: go.Figure, weight: list[float], bias: float, low: list[float], high: list[float], place: dict[str, Any]
) -> None:
    """Draw the line `bias + weight . a = 0` through its point nearest to the middle of the panel."""
    norm = math.hypot(*weight)
    unit = [w / norm for w in weight]
    middle = [(a + b) / 2 for a, b in zip(low, high)]
    distance = (bias + sum(w * c for w, c in zip(weight, middle))) / norm
    foot = [c - distance * u for c, u in zip(middle, unit)]
    reach = math.hypot(*(b - a for a, b in zip(low, high)))
    # Along the boundary, at a right angle to the weight; long enough to leave the panel on both sides.
    x = [foot[0] - reach * unit[1], foot[0] + reach * unit[1]]
    y = [foot[1] + reach * unit[0], foot[1] - reach * unit[0]]
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": style.GREY}, name="boundary", hoverinfo="skip", **place)


def _add_points(
    figure: go.Figure, name: str, points: Points, marker: dict[str, Any], opacity: float, place: dict[str, Any]
) -> None:
    x, y = points.T.tolist()
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, opacity=opacity, name=name, **place)


def _add_paths(figure: go.Figure, before: Points, after: Points, place: dict[str, Any]) -> None:
    # One trace for all lines: a gap after each pair of ends lifts the pen.
    xs: list[float | None] = []
    ys: list[float | None] = []
    for (x0, y0), (x1, y1) in zip(before.tolist(), after.tolist()):
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    line = {"color": style.BLUE, "width": 0.8}
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", **{**place, "showlegend": False})


def score_cone(
    moments: Mapping[str, tuple[float, float]],
    kappa: float,
    *,
    floor: float | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot means and standard deviations of a detector's score, and the cone in which the guarantee holds.

    The guarantee is `mean + kappa * standard deviation <= 0`.

    Args:
        moments: mean and standard deviation, by name.
        kappa: of the guarantee, above 0.
        floor: the least standard deviation that an edit may leave, as a dotted line.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no moments, `kappa` of 0 or below, or a size below 100 pixels.

    Example:
        >>> score_cone({"flagged": (4.8, 2.6), "edited": (-4.8, 2.9)}, kappa=1.64).show()  # doctest: +SKIP
    """
    _checks.between("kappa", kappa, 0.0)
    if not moments:
        raise InvalidArgumentError("`moments` must hold at least one mean and standard deviation; got none.")
    means = [mean for mean, _ in moments.values()]
    deviations = [deviation for _, deviation in moments.values()]
    top = 1.3 * max([*deviations, floor or 0.0, 1e-9])
    side = 1.3 * max([*map(abs, means), kappa * top / 1.3, 1e-9])
    figure = go.Figure()
    figure.add_scatter(
        x=[-kappa * top, 0, -side, -side, -kappa * top],
        y=[top, 0, 0, top, top],
        fill="toself",
        mode="none",
        fillcolor="rgba(0, 158, 115, 0.18)",
        name="the guarantee holds",
        hoverinfo="skip",
    )
    if floor is not None:
        figure.add_scatter(
            x=[-side, side],
            y=[floor, floor],
            mode="lines",
            line={"color": style.GREY, "dash": "dot"},
            name="floor: spread of desirable text",
            hoverinfo="skip",
        )
    for i, (name, (mean, deviation)) in enumerate(moments.items()):
        marker = {"color": style.COLORS[(i + 1) % 6], "size": 13, "symbol": style.SYMBOLS[i % len(style.SYMBOLS)]}
        hover = f"{style.escaped(name)}<br>mean %{{x:.2f}}, standard deviation %{{y:.2f}}<extra></extra>"
        figure.add_scatter(
            x=[mean],
            y=[deviation],
            mode="markers",
            marker=marker,
            name=style.escaped(name),
            hovertemplate=hover,
            cliponaxis=False,
        )
    style.legend_below(figure)
    return style.styled(
        figure,
        "Mean and standard deviation of the score",
        style.Size(width, height),
        note="Scores of at least 0 are flagged.",
        x="mean of the score",
        y="standard deviation of the score",
        xaxis_range=[-side, side],
        yaxis_range=[0, top],
    )
