"""Figures of all heads: how well each detects, and what editing it does."""

from __future__ import annotations

from collections.abc import Collection

import plotly.graph_objects as go
import torch

from radiant_lens import _checks
from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.steering.steering import Steering
from radiant_lens.viz import _style as style


def head_risk(detector: RiskAwareDetector, steering: Steering | None = None) -> go.Figure:
    """Heatmap of every head's validation risk, with its FPR and FNR; heads that a steering edits are framed.

    Args:
        detector: fitted.
        steering: whose heads to frame.

    Raises:
        NotFittedError: the detector is not fitted.
        DataError: risks that are not finite.

    Example:
        >>> head_risk(detector, steering).show()  # doctest: +SKIP
    """
    style.require_fitted(detector)
    n_layers, n_heads = detector.head_risk_.shape
    steered = set() if steering is None else set(steering.sites)
    hover = [
        [
            f"FPR {fpr:.2f}, FNR {fnr:.2f}<br>{'steered' if (layer, head) in steered else 'not steered'}"
            for head, (fpr, fnr) in enumerate(zip(fprs, fnrs))
        ]
        for layer, (fprs, fnrs) in enumerate(zip(detector.head_fpr_.tolist(), detector.head_fnr_.tolist()))
    ]
    figure = go.Figure(
        go.Heatmap(
            z=detector.head_risk_.tolist(),
            text=hover,
            colorscale=style.SEQUENTIAL,
            colorbar_title="risk",
            hovertemplate="L%{y}H%{x}<br>risk %{z:.2f}<br>%{text}<extra></extra>",
        )
    )
    if steered:
        x, y = style.outline(sorted(steered))
        line = {"color": style.ORANGE, "width": 3}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name="steered", showlegend=True)
    return style.styled(
        figure,
        f"Validation risk of each head (FPR + {detector.fnr_weight:g} FNR)",
        xaxis={"title": "head", "dtick": max(1, n_heads // 8), "range": [-0.55, n_heads - 0.45], "showgrid": False},
        yaxis={"title": "layer", "dtick": max(1, n_layers // 8), "range": [n_layers - 0.45, -0.55], "showgrid": False},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1.0},
    )


def head_effects(
    effects: HeadEffects, detector: RiskAwareDetector | None = None, *, selected: Collection[object] = ()
) -> go.Figure:
    """Effect of editing each head, against its detection risk or, without a detector, in order of size.

    Args:
        effects: from `radiant_lens.head_effects`; measured effects are drawn where there are any.
        detector: for the risk on the horizontal axis.
        selected: heads to mark, such as `steering.sites`.

    Raises:
        NotFittedError: the detector is not fitted.
        DataError: estimates that are not finite.

    Example:
        >>> head_effects(effects, detector, selected=steering.sites).show()  # doctest: +SKIP
    """
    _checks.finite("effects.estimated", effects.estimated)
    if detector is not None:
        style.require_fitted(detector)
    order = effects.estimated.argsort(descending=True).tolist()
    x = {i: rank if detector is None else float(detector.head_risk_[effects.sites[i]]) for rank, i in enumerate(order)}
    kept = [i for i in order if effects.sites[i] in selected]
    figure = go.Figure()
    groups = (("selected", style.ORANGE, "diamond", kept),)
    groups += (("others", style.BLUE, "circle", [i for i in order if i not in kept]),)
    for name, color, symbol, chosen in groups:
        if chosen:
            figure.add_trace(_estimates(effects, chosen, [x[i] for i in chosen], name, color, symbol))
    measured = [i for i in order if effects.measured[i].isfinite()]
    if measured:
        figure.add_trace(_measured(effects, measured, [x[i] for i in measured]))
    style.legend_below(figure)
    return style.styled(
        figure,
        "Effect of editing one head on the log-odds of correct answers",
        x="rank" if detector is None else "validation risk of the head's detector",
        y="effect (nats)",
    )


def _estimates(
    effects: HeadEffects, chosen: list[int], x: list[float], name: str, color: str, symbol: str
) -> go.Scatter:
    intervals = [effects.intervals[i] for i in chosen]
    return go.Scatter(
        x=x,
        y=[interval.value for interval in intervals],
        error_y={
            "type": "data",
            "array": [interval.high - interval.value for interval in intervals],
            "arrayminus": [interval.value - interval.low for interval in intervals],
        },
        mode="markers",
        name=f"estimated, {name}",
        marker={"color": color, "size": 10, "symbol": symbol},
        text=[str(effects.sites[i]) for i in chosen],
        hovertemplate="%{text}<br>estimated %{y:.3f} nats<extra></extra>",
    )


def _measured(effects: HeadEffects, chosen: list[int], x: list[float]) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=effects.measured[torch.tensor(chosen)].tolist(),
        mode="markers",
        name="measured by real edits",
        marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": style.GREY}},
        text=[str(effects.sites[i]) for i in chosen],
        hovertemplate="%{text}<br>measured %{y:.3f} nats<extra></extra>",
    )
