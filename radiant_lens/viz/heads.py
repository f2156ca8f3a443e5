"""Figures of all heads: how well each detects, and what editing it does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import plotly.graph_objects as go
import torch

from radiant_lens import _checks
from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.steering.steering import Steering
from radiant_lens.viz import _style as style

N_LABELS = 6
"""Points of a scatter figure that carry their name."""


def head_risk(
    detector: RiskAwareDetector,
    steering: Steering | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Heat map of every head's validation risk; darker heads err more, and heads that a steering edits are framed.

    Args:
        detector: fitted.
        steering: whose heads to frame.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: another object in the place of the detector or the steering, or a size below 100 pixels.
        NotFittedError: the detector is not fitted.
        DataError: risks that are not finite.

    Example:
        >>> head_risk(detector, steering).show()  # doctest: +SKIP
    """
    style.require_risks(detector)
    if steering is not None:
        _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    n_layers, n_heads = detector.head_risk_.shape
    edited = set() if steering is None else set(steering.sites)
    figure = go.Figure(_risks(detector, edited))
    style.frame_heads(figure, () if steering is None else steering.sites)
    return style.styled(
        figure,
        "Validation risk of each head",
        style.Size(width, height),
        note=f"Risk: {style.risk_words(detector.fnr_weight)}. Darker heads err more.{style.missing_layers(detector)}",
        **style.head_axes(n_layers, n_heads),
    )


def _risks(detector: RiskAwareDetector, edited: Collection[object]) -> go.Heatmap:
    risk = detector.head_risk_
    hover = [
        [
            f"FPR {fpr:.2f}, FNR {fnr:.2f}<br>{'steered' if (layer, head) in edited else 'not steered'}"
            for head, (fpr, fnr) in enumerate(zip(fprs, fnrs))
        ]
        for layer, (fprs, fnrs) in enumerate(zip(detector.head_fpr_.tolist(), detector.head_fnr_.tolist()))
    ]
    return go.Heatmap(
        z=style.finite_or_none(risk),
        text=hover,
        colorscale=style.SEQUENTIAL,
        hoverongaps=False,
        # Plotly ignores `zmin` unless `zmax` is set as well. Perfect heads have risk 0: any positive end will do.
        zmin=0,
        zmax=float(risk[risk.isfinite()].max()) or 1.0,
        colorbar_title="risk",
        texttemplate=style.cell_text(*risk.shape),
        hovertemplate="L%{y}H%{x}<br>risk %{z:.2f}<br>%{text}<extra></extra>",
    )


def head_effects(
    effects: HeadEffects,
    detector: RiskAwareDetector | None = None,
    *,
    selected: Collection[object] = (),
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot the effect of editing each head against its detection risk or, without a detector, in order of size.

    The six heads of largest estimated effect, of either sign, carry their names.

    Args:
        effects: from `radiant_lens.head_effects`; measured effects are drawn where there are any.
        detector: for the risk on the horizontal axis.
        selected: heads to mark, such as `steering.sites`.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: another object in the place of the effects or the detector, or a size below 100 pixels.
        NotFittedError: the detector is not fitted.
        DataError: estimates that are not finite.

    Example:
        >>> head_effects(effects, detector, selected=steering.sites).show()  # doctest: +SKIP
    """
    _checks.instance("effects", effects, HeadEffects, hint="`radiant_lens.head_effects` returns them")
    _checks.finite("effects.estimated", effects.estimated)
    if detector is not None:
        style.require_risks(detector)
    # Ranks are of the estimates, which every head has; only some heads are measured.
    order = effects.estimated.argsort(descending=True, stable=True).tolist()
    x = {i: rank if detector is None else float(detector.head_risk_[effects.sites[i]]) for rank, i in enumerate(order)}
    marked = [i for i in order if effects.sites[i] in selected]
    figure = go.Figure()
    groups = (("selected", style.ORANGE, "diamond", marked),)
    groups += (("others", style.BLUE, "circle", [i for i in order if i not in marked]),)
    for name, color, symbol, rows in groups:
        if rows:
            figure.add_trace(_estimates(effects, rows, [x[i] for i in rows], name, color, symbol))
    measured = [i for i in order if effects.measured[i].isfinite()]
    if measured:
        figure.add_trace(_measured(effects, measured, [x[i] for i in measured]))
    _label_largest(figure, effects, x)
    figure.add_hline(y=0, line={"color": style.GREY, "dash": "dot", "width": 1})
    style.legend_below(figure)
    return style.styled(
        figure,
        "Effect of editing one head on the log-odds of correct answers",
        style.Size(width, height),
        x="rank of the head by its effect" if detector is None else "validation risk of the head's detector",
        y="change of the log-odds (nats)",
        # Without an effect, an edit changes nothing: zero is always in sight.
        yaxis_rangemode="tozero",
        xaxis_rangemode="normal" if detector is None else "tozero",
    )


def _label_largest(figure: go.Figure, effects: HeadEffects, x: dict[int, float]) -> None:
    for i in effects.estimated.abs().argsort(descending=True, stable=True)[:N_LABELS].tolist():
        # Slanted, and above the error bar: names of neighbours do not cover one another or their bars.
        figure.add_annotation(
            x=x[i],
            y=effects.intervals[i].high,
            text=str(effects.sites[i]),
            textangle=-50,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font_size=11,
        )


def _estimates(effects: HeadEffects, rows: list[int], x: list[float], name: str, color: str, symbol: str) -> go.Scatter:
    intervals = [effects.intervals[i] for i in rows]
    error: dict[str, Any] = {
        "type": "data",
        "array": [interval.high - interval.value for interval in intervals],
        "arrayminus": [interval.value - interval.low for interval in intervals],
    }
    return go.Scatter(
        x=x,
        y=[interval.value for interval in intervals],
        error_y=error,
        mode="markers",
        name=f"estimated, {name}",
        marker={"color": color, "size": 10, "symbol": symbol},
        text=[str(effects.sites[i]) for i in rows],
        hovertemplate="%{text}<br>estimated %{y:.3f} nats<extra></extra>",
    )


def _measured(effects: HeadEffects, rows: list[int], x: list[float]) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=effects.measured[torch.tensor(rows)].tolist(),
        mode="markers",
        name="measured by real edits",
        marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": style.GREY}},
        text=[str(effects.sites[i]) for i in rows],
        hovertemplate="%{text}<br>measured %{y:.3f} nats<extra></extra>",
    )
