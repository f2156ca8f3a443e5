"""Figures of all heads: how well each detects, and what editing it does."""

from __future__ import annotations

from collections.abc import Collection

import plotly.graph_objects as go

from radiant_lens._errors import NotFittedError
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.fitting import HeadEffects
from radiant_lens.policies.steering import Steering

# Blue and orange of Okabe and Ito (2008): told apart by colour-blind people.
BLUE, ORANGE = "#0072B2", "#E69F00"


def head_risk(detector: RiskAwareDetector, steering: Steering | None = None) -> go.Figure:
    """Heatmap of every head's validation risk; heads that a steering edits are framed.

    Args:
        detector: fitted.
        steering: whose heads to frame.

    Raises:
        NotFittedError: the detector is not fitted.

    Example:
        >>> head_risk(detector, steering).show()  # doctest: +SKIP
    """
    if not hasattr(detector, "head_risk_"):
        raise NotFittedError("The detector is not fitted yet: call `detector.fit(cache, validation=...)` first.")
    n_layers, n_heads = detector.head_risk_.shape
    rates = [
        [f"FPR {fpr:.2f}, FNR {fnr:.2f}" for fpr, fnr in zip(fprs, fnrs)]
        for fprs, fnrs in zip(detector.head_fpr_.tolist(), detector.head_fnr_.tolist())
    ]
    figure = go.Figure(
        go.Heatmap(
            z=detector.head_risk_.tolist(),
            text=rates,
            colorscale="Cividis",
            colorbar_title="risk",
            hovertemplate="L%{y}H%{x}<br>risk %{z:.2f}<br>%{text}<extra></extra>",
        )
    )
    for site in () if steering is None else steering.sites:
        figure.add_shape(
            type="rect",
            x0=site.head - 0.5,
            x1=site.head + 0.5,
            y0=site.layer - 0.5,
            y1=site.layer + 0.5,
            line={"color": ORANGE, "width": 3},
        )
    figure.update_layout(
        title=f"Validation risk of each head (FPR + {detector.fnr_weight:g} FNR)",
        xaxis={"title": "head", "dtick": max(1, n_heads // 8)},
        yaxis={"title": "layer", "dtick": max(1, n_layers // 8), "autorange": "reversed"},
        template="plotly_white",
    )
    return figure


def head_effects(
    effects: HeadEffects, detector: RiskAwareDetector | None = None, *, selected: Collection[object] = ()
) -> go.Figure:
    """Effect of editing each head, against its detection risk or, without a detector, in order of size.

    Args:
        effects: from `radiant_lens.head_effects`; measured effects are drawn where there are any.
        detector: for the risk on the horizontal axis.
        selected: heads to mark, such as `steering.sites`.

    Example:
        >>> head_effects(effects, detector, selected=steering.sites).show()  # doctest: +SKIP
    """
    order = effects.estimated.argsort(descending=True).tolist()
    x = {i: rank if detector is None else float(detector.head_risk_[effects.sites[i]]) for rank, i in enumerate(order)}
    kept = [i for i in order if effects.sites[i] in selected]
    figure = go.Figure()
    for name, color, chosen in (("selected", ORANGE, kept), ("others", BLUE, [i for i in order if i not in kept])):
        if chosen:
            figure.add_trace(_estimates(effects, chosen, [x[i] for i in chosen], name, color))
    measured = [i for i in order if effects.measured[i].isfinite()]
    if measured:
        figure.add_scatter(
            x=[x[i] for i in measured],
            y=effects.measured[measured].tolist(),
            mode="markers",
            name="measured by real edits",
            marker={"color": "black", "symbol": "x-thin", "size": 8, "line": {"width": 2}},
            text=[str(effects.sites[i]) for i in measured],
            hovertemplate="%{text}<br>measured %{y:.3f} nats<extra></extra>",
        )
    figure.update_layout(
        title="Effect of editing one head on the log-odds of correct answers",
        xaxis_title="rank" if detector is None else "validation risk of the head's detector",
        yaxis_title="effect (nats)",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0},
        template="plotly_white",
    )
    return figure


def _estimates(effects: HeadEffects, chosen: list[int], x: list[float], name: str, color: str) -> go.Scatter:
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
        marker={"color": color, "size": 10},
        text=[str(effects.sites[i]) for i in chosen],
        hovertemplate="%{text}<br>estimated %{y:.3f} nats<extra></extra>",
    )
