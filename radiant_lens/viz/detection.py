"""Figures of detection: layers, their votes, and the ROC curves of heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.curves import roc as roc_curve
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.detectors.votes import rates_by_threshold
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import HeadSite, checked_sites
from radiant_lens.viz import _style as style

N_LABELS = 8
"""Heads of the ROC figure that carry their name."""


def layer_risk(detector: RiskAwareDetector, *, width: int | None = None, height: int | None = None) -> go.Figure:
    """Plot the risk of each layer: the mean of its heads, their range, and the risk of their vote.

    Args:
        detector: fitted.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: another object in the detector's place, or a size below 100 pixels.
        NotFittedError: the detector is not fitted.
        DataError: risks that are not finite.

    Example:
        >>> layer_risk(detector).show()  # doctest: +SKIP
    """
    style.require_risks(detector)
    risk, mean = detector.head_risk_, detector.layer_risk_
    layers = list(range(len(risk)))
    spread = {
        "type": "data",
        "array": style.finite_or_none(risk.amax(1) - mean),
        "arrayminus": style.finite_or_none(mean - risk.amin(1)),
        "thickness": 1,
    }
    figure = go.Figure()
    for name, y, symbol, extra in (
        ("mean of the heads (bars: best and worst head)", mean, "circle", {"error_y": spread}),
        ("the layer's vote", detector.vote_risk_, "diamond", {"line_dash": "dash"}),
    ):
        hover = f"layer %{{x}}<br>{name.split(' (')[0]}: risk %{{y:.2f}}<extra></extra>"
        marker = {"symbol": symbol, "size": 9}
        figure.add_scatter(
            x=layers,
            y=style.finite_or_none(y),
            name=name,
            mode="lines+markers",
            marker=marker,
            # A vote without errors lies on the axis, which would hide half of its marker.
            cliponaxis=False,
            hovertemplate=hover,
            **extra,
        )
    # Flagging everything costs 1 (all false alarms), flagging nothing costs `fnr_weight` (all misses).
    trivial = min(1.0, detector.fnr_weight)
    figure.add_hline(y=trivial, line={"color": style.GREY, "dash": "dot"}, annotation_text="flag all or none")
    style.legend_below(figure)
    return style.styled(
        figure,
        f"Validation risk of each layer (best: {detector.best_layer_})",
        style.Size(width, height),
        note=f"Risk: {style.risk_words(detector.fnr_weight)}.{style.missing_layers(detector)}",
        x="layer",
        y="risk",
        xaxis_dtick=max(1, len(layers) // 8),
        yaxis_rangemode="tozero",
    )


def error_rates(
    detectors: Sequence[RiskAwareDetector], *, width: int | None = None, height: int | None = None
) -> go.Figure:
    """Plot FPR and FNR of the best layer's vote for detectors that weigh a miss differently.

    Args:
        detectors: fitted, with different values of `fnr_weight`.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no detector, something else than a list of detectors, or a size below 100 pixels.
        NotFittedError: a detector is not fitted.
        DataError: risks that are not finite.

    Example:
        >>> error_rates([light, heavy]).show()  # doctest: +SKIP
    """
    _checks.each("detectors", detectors, RiskAwareDetector)
    if not detectors:
        raise InvalidArgumentError("`detectors` must hold at least one; got none.")
    for detector in detectors:
        style.require_risks(detector)
    fitted = sorted(detectors, key=lambda detector: detector.fnr_weight)
    words = [f"layer {d.best_layer_}, {int(d.vote_thresholds_[d.best_layer_])} heads must flag" for d in fitted]
    figure = go.Figure()
    for i, (name, rates) in enumerate(
        (
            ("FPR: desirable examples flagged", [float(d.vote_fpr_[d.best_layer_]) for d in fitted]),
            ("FNR: undesirable examples missed", [float(d.vote_fnr_[d.best_layer_]) for d in fitted]),
        )
    ):
        figure.add_scatter(
            x=[detector.fnr_weight for detector in fitted],
            y=rates,
            mode="lines+markers",
            name=name,
            text=words,
            line={"color": style.COLORS[i], "dash": style.DASHES[i]},
            marker={"symbol": style.SYMBOLS[i], "size": 9},
            hovertemplate=f"weight %{{x:g}}<br>{name[:3]} %{{y:.2f}}<br>%{{text}}<extra></extra>",
        )
    style.legend_below(figure)
    return style.styled(
        figure,
        "Error rates of the best layer's vote",
        style.Size(width, height),
        note="On the half of the validation examples that no choice was made on.",
        x="weight of a miss (fnr_weight)",
        y="share of held-out examples",
        yaxis_rangemode="tozero",
        xaxis_rangemode="tozero",
    )


def vote_curves(
    detector: RiskAwareDetector,
    cache: HeadCache,
    *,
    layers: Sequence[int] | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot FPR, FNR and risk of a layer's vote for every number of heads that it may require.

    Args:
        detector: fitted.
        cache: activations that the detector was not trained on.
        layers: layers to show; default the (at most four) layers of least vote risk.
        width, height: in pixels; default the page's width, and 240 for each row of layers.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: no such layer, a cache of another shape, another object in the place of the detector or
            the cache, or a size below 100 pixels.
        DataError: no example of a class.

    Example:
        >>> vote_curves(detector, rl.collect(model, validation)).show()  # doctest: +SKIP
    """
    _require_pair(detector, cache)
    _checks.both_classes(cache.labels, "`cache`")
    _checks.finite("cache.z", cache.z)
    n_layers, n_heads = detector.head_risk_.shape
    order = [i for i in detector.vote_risk_.argsort(stable=True).tolist() if i in detector.collected_layers_]
    default = sorted(order[:4])
    chosen = [site.layer for site in checked_sites([(i, 0) for i in layers or default], n_layers, n_heads)]
    _require_collected(chosen, detector, cache)
    rates = rates_by_threshold(detector.votes(cache), cache.labels, n_heads)
    curves = {"FPR": rates.fpr, "FNR": rates.fnr, "risk": rates.risk(detector.fnr_weight)}
    n_columns = min(2, len(chosen))
    n_rows = -(-len(chosen) // n_columns)
    titles = [f"layer {i}, needs {int(detector.vote_thresholds_[i])}" for i in chosen]
    figure = make_subplots(n_rows, n_columns, shared_yaxes=True, subplot_titles=titles, vertical_spacing=0.34 / n_rows)
    for panel, layer in enumerate(chosen):
        place: Any = {"row": panel // n_columns + 1, "col": panel % n_columns + 1}
        for trace in _vote_traces(layer, curves, show_legend=panel == 0):
            figure.add_trace(trace, **place)
        threshold: Any = {"x": int(detector.vote_thresholds_[layer]), "line": {"color": style.GREY, "dash": "dot"}}
        figure.add_vline(**threshold, **place)
    figure.update_xaxes(title_text="heads that must flag", row=n_rows)
    figure.update_yaxes(title_text="rate or risk", col=1)
    figure.update_yaxes(rangemode="tozero")
    style.legend_below(figure)
    note = "Dotted line: the chosen threshold. FPR: share of desirable examples flagged; FNR: share of undesirable "
    note += f"ones missed. {len(chosen)} of {n_layers} layers, {len(cache)} activations."
    title = "Errors of the layers' votes, by how many heads must flag"
    return style.styled(figure, title, style.Size(width, height), note=note, height=170 + 240 * n_rows)


def _vote_traces(layer: int, curves: dict[str, Tensor], *, show_legend: bool) -> list[go.Scatter]:
    n_heads = curves["FPR"].shape[1]
    return [
        go.Scatter(
            x=list(range(1, n_heads + 1)),
            y=values[layer].tolist(),
            name=name,
            legendgroup=name,
            showlegend=show_legend,
            mode="lines+markers" if n_heads <= 16 else "lines",
            line={"color": color, "dash": dash},
            hovertemplate=f"layer {layer}, %{{x}} heads<br>{name} %{{y:.2f}}<extra></extra>",
        )
        for (name, values), color, dash in zip(curves.items(), style.COLORS, style.DASHES)
    ]


def roc(
    detector: RiskAwareDetector,
    cache: HeadCache,
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot the ROC curve of heads in a square, with a named marker at each head's own threshold.

    Args:
        detector: fitted.
        cache: activations that the detector was not trained on.
        heads: heads to show, such as `steering.sites`; default the (at most) seven of least risk.
        width, height: in pixels; default the page's width, and 540.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: no such head, a cache of another shape, another object in the place of the detector or
            the cache, or a size below 100 pixels.
        DataError: no example of a class, or activations that are not finite.

    Example:
        >>> roc(detector, rl.collect(model, validation), heads=steering.sites).show()  # doctest: +SKIP
    """
    _require_pair(detector, cache)
    n_layers, n_heads = detector.head_risk_.shape
    order = [divmod(i, n_heads) for i in detector.head_risk_.flatten().argsort(stable=True).tolist()]
    least = [pair for pair in order if pair[0] in detector.collected_layers_][:7]
    sites = checked_sites(least if heads is None else heads, n_layers, n_heads)
    _require_collected([site.layer for site in sites], detector, cache)
    scores = detector.decision_function(cache)
    figure = go.Figure()
    chance = {"color": style.GREY, "dash": "dot"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=chance, hoverinfo="skip", name="chance")
    own: list[_OwnThreshold] = []
    for i, site in enumerate(sites):
        own.append(_add_head(figure, site, scores[:, site.layer, site.head], cache, i))
    _label_thresholds(figure, own[:N_LABELS])
    # One unit has one length on both axes, so that chance is the diagonal of a square; "domain" shrinks the wider axis
    # where "range" would stretch it beyond [0, 1].
    square = {"scaleanchor": "x", "scaleratio": 1, "constrain": "domain", "range": [-0.02, 1.02]}
    style.legend_below(figure)
    return style.styled(
        figure,
        f"ROC of {len(sites)} of {n_layers * n_heads} heads",
        style.Size(width, height),
        note="Markers: each head at its own threshold.",
        x="false alarm rate (desirable examples flagged)",
        y="hit rate (undesirable examples flagged)",
        xaxis={"range": [-0.02, 1.02], "constrain": "domain"},
        yaxis=square,
        height=540,
    )


def _require_pair(detector: RiskAwareDetector, cache: HeadCache) -> None:
    style.require_risks(detector)
    _checks.instance("cache", cache, HeadCache, hint="`radiant_lens.collect` returns one")


def _require_collected(layers: Sequence[int], detector: RiskAwareDetector, cache: HeadCache) -> None:
    """Raise for layers without activations, where all scores would be those of zeros."""
    for layer in layers:
        if layer not in detector.collected_layers_ or layer not in cache.collected_layers:
            raise InvalidArgumentError(
                f"Layer {layer} was not collected: the detector has layers {detector.collected_layers_}, `cache` has "
                f"{cache.collected_layers}. Show one of them, or collect all layers."
            )


class _OwnThreshold(NamedTuple):
    """The point of a head's curve at its own threshold."""

    name: str
    fpr: float
    tpr: float
    color: str


def _add_head(figure: go.Figure, site: HeadSite, scores: Tensor, cache: HeadCache, i: int) -> _OwnThreshold:
    """Add the curve of a head and the marker of its own threshold."""
    curve = roc_curve(scores, cache.labels)
    x, y = style.thinned(curve.fpr, curve.tpr)
    # Grey, the last colour, is that of chance.
    n_colors = len(style.COLORS) - 1
    line = {"color": style.COLORS[i % n_colors], "dash": style.DASHES[i // n_colors % len(style.DASHES)]}
    hover = f"{site}<br>FPR %{{x:.2f}}, 1 - FNR %{{y:.2f}}<br>area {curve.area:.3f}<extra></extra>"
    name = f"{site}, area {curve.area:.2f}"
    figure.add_scatter(x=x, y=y, mode="lines", line=line, name=name, legendgroup=name, hovertemplate=hover)
    flagged, undesirable = scores >= 0, cache.labels == 1
    fpr, tpr = (float(flagged[rows].double().mean()) for rows in (~undesirable, undesirable))
    figure.add_scatter(
        x=[fpr],
        y=[tpr],
        mode="markers",
        marker={"color": line["color"], "symbol": style.SYMBOLS[i % len(style.SYMBOLS)], "size": 10},
        legendgroup=name,
        showlegend=False,
        hovertemplate=f"own threshold of {hover}",
    )
    return _OwnThreshold(str(site), fpr, tpr, line["color"])


def _label_thresholds(figure: go.Figure, points: list[_OwnThreshold]) -> None:
    """Name the markers in a column below the diagonal, joined to them by thin lines.

    Markers of good heads crowd in the upper left corner, where names beside them would cover one another.
    """
    column, top, step = 0.62, 0.44, 0.06
    # In the order of their direction as seen from the column, so that the lines do not cross.
    order = sorted(points, key=lambda p: math.atan2(p.tpr - top, column - p.fpr), reverse=True)
    for rank, point in enumerate(order):
        figure.add_annotation(
            x=point.fpr,
            y=point.tpr,
            ax=column,
            ay=top - step * rank,
            axref="x",
            ayref="y",
            text=point.name,
            font={"size": 11},
            xanchor="left",
            arrowhead=0,
            arrowwidth=0.8,
            arrowcolor=point.color,
            standoff=6,
        )
