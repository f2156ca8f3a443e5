"""Figures of one edited head: its scores and its activations, before and after the edit."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.moves import HeadMoves, head_moves
from radiant_lens.caches import HeadCache
from radiant_lens.sites import HeadSite
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.steering.steering import Steering
from radiant_lens.viz import _style as style

N_BINS = 60


def score_histogram(
    steering: Steering,
    cache: HeadCache,
    site: tuple[int, int] | None = None,
    *,
    certificate: HeldOutCertificate | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Histogram of the scores of gated activations, before and after the edit, with the boundary at 0.

    Args:
        steering: fitted or loaded.
        cache: held-out activations.
        site: an edited head; default the first.
        certificate: from `steering.certify`, for the certified bound of the share that stays flagged.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: a head that is not edited, a cache of another shape, another object in the place of the
            steering or the cache, or a size below 100 pixels.
        DataError: no examples, or activations that are not finite.

    Example:
        >>> score_histogram(steering, rl.collect(model, test)).show()  # doctest: +SKIP
    """
    size = style.Size(width, height)
    moves = _moves_of(steering, cache, site)
    title = f"Scores of head {moves.site} before and after the edit"
    gated = moves.gated
    if not bool(gated.any()):
        words = f"Nothing was edited: the gate of {moves.site} passes none of the {len(cache)} activations."
        return style.empty(title, words, size)
    before, after = moves.scores(moves.before), moves.scores(moves.after)
    kinds = (
        ("desirable text, unedited", before[moves.labels == 0], style.GREY),
        ("gated, before", before[gated], style.ORANGE),
        ("gated, after", after[gated], style.BLUE),
    )
    # One set of bins for all kinds, so that bars of different colours compare.
    everything = torch.cat([values for _, values, _ in kinds])
    figure = go.Figure()
    for name, values, color in kinds:
        if len(values):
            figure.add_trace(_histogram(name, values, float(everything.min()), float(everything.max()), color))
    figure.add_vline(x=0, line={"color": style.GREY, "width": 2}, annotation_text="boundary: flagged from here on")
    still = float((after[gated] >= 0).double().mean())
    note = f"{int(gated.sum())} of {len(cache)} activations gated; {still:.1%} of them still flagged after the edit."
    style.legend_below(figure)
    return style.styled(
        figure,
        title,
        size,
        note=f"{note}{_bound(certificate, moves.site)}",
        x="score of the head's detector",
        y="share of activations",
        barmode="overlay",
    )


def _moves_of(steering: Steering, cache: HeadCache, site: tuple[int, int] | None) -> HeadMoves:
    _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    _checks.instance("cache", cache, HeadCache, hint="`radiant_lens.collect` returns one")
    # `site or ...` is safe: a pair is true even where it is (0, 0).
    return head_moves(steering, cache, site or steering.sites[0])


def _histogram(name: str, values: Tensor, low: float, high: float, color: str) -> go.Bar:
    # Bars, not Plotly's own histogram: the page carries 60 counts and not every score. Equal scores have no range, so
    # the bins keep a least width; the last bin is closed, so the largest score counts.
    high = max(high, low + N_BINS * 1e-9)
    step = (high - low) / N_BINS
    counts = torch.histc(values, N_BINS, low, high)
    middles = low + step * (torch.arange(N_BINS) + 0.5)
    return go.Bar(
        x=middles.tolist(),
        y=(counts / len(values)).tolist(),
        width=step,
        name=name,
        marker={"color": color, "line": {"width": 0}},
        opacity=0.6,
        hovertemplate=f"{name}<br>score %{{x:.2f}}: %{{y:.1%}}<extra></extra>",
    )


def _bound(certificate: HeldOutCertificate | None, site: HeadSite) -> str:
    row = None if certificate is None else next((r for r in certificate.heads if r.name == str(site)), None)
    if certificate is None or row is None:
        return ""
    promised = "" if certificate.gamma is None else f"; nominal gamma {certificate.gamma:.1%}"
    return (
        f" Certified: at most {row.upper:.1%} with confidence {certificate.confidence:.0%} "
        f"({row.n_still_flagged} of {row.n_groups} groups{promised})."
    )


def activation_scatter(
    steering: Steering,
    cache: HeadCache,
    site: tuple[int, int] | None = None,
    *,
    max_points: int = 300,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot activations of a head before and after the edit, in the plane of `HeadMoves.plane`.

    Both axes are standardised: their unit is the standard deviation of the activations before the edit. Heads often
    vary a hundred times as much within the boundary as across it, so axes in one Euclidean unit would show a line.

    Args:
        steering: fitted or loaded.
        cache: activations of any texts.
        site: an edited head; default the first.
        max_points: activations drawn of each kind, at random where there are more.
        seed: of the draw.
        width, height: in pixels; default the page's width, and 520.

    Raises:
        InvalidArgumentError: a head that is not edited, a cache of another shape, another object in the place of the
            steering or the cache, or a size below 100 pixels.
        DataError: no examples, or activations that are not finite.

    Example:
        >>> activation_scatter(steering, cache, steering.sites[0]).show()  # doctest: +SKIP
    """
    _checks.whole("max_points", max_points, 1)
    moves = _moves_of(steering, cache, site)
    before, after = moves.plane()
    # Constant activations have no spread, and keep their own unit.
    spread = before.std(0, correction=0)
    spread = spread.where(spread > 0, 1.0)
    before, after = before / spread, after / spread
    undesirable = moves.labels == 1
    edited = _draw(moves.gated, max_points, seed)
    figure = go.Figure()
    for name, mask, color, symbol in (
        ("desirable, left alone", ~undesirable & ~moves.gated, style.GREEN, "circle-open"),
        ("undesirable, left alone", undesirable & ~moves.gated, style.GREY, "square-open"),
    ):
        rows = _draw(mask, max_points, seed)
        if len(rows):
            figure.add_trace(_points(name, before[rows], color, symbol))
    if len(edited):
        figure.add_trace(_paths(before[edited], after[edited]))
        figure.add_trace(_points("gated, before", before[edited], style.ORANGE, "diamond"))
        figure.add_trace(_points("gated, after", after[edited], style.BLUE, "circle"))
    figure.add_vline(x=0, line={"color": style.GREY, "width": 2}, annotation_text="boundary: flagged from here on")
    style.legend_below(figure)
    return style.styled(
        figure,
        f"Activations of head {moves.site} before and after the edit",
        style.Size(width, height),
        note=_note(moves, len(edited)),
        x="across the boundary (standard deviations)",
        y="along the boundary, widest direction<br>(standard deviations)",
        height=520,
    )


def _note(moves: HeadMoves, n_drawn: int) -> str:
    n = int(moves.gated.sum())
    if n == 0:
        return f"Nothing was edited: the gate passes 0 of the {len(moves.labels)} activations."
    return f"{n} of {len(moves.labels)} activations gated; {n_drawn} of those drawn, with a line from before to after."


def _draw(mask: Bool[Tensor, " example"], most: int, seed: int) -> Int[Tensor, " drawn"]:
    # A generator of its own: the figure must not depend on, or change, the global state.
    index = mask.nonzero().squeeze(1)
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:most]]


def _points(name: str, places: Tensor, color: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=_rounded(places[:, 0]),
        y=_rounded(places[:, 1]),
        mode="markers",
        name=name,
        marker={"color": color, "symbol": symbol, "size": 5},
        opacity=0.7,
        hovertemplate=f"{name}<br>across %{{x:.2f}}, along %{{y:.2f}} standard deviations<extra></extra>",
    )


def _paths(before: Tensor, after: Tensor) -> go.Scatter:
    # One trace for all lines: a gap (NaN) after each pair of ends lifts the pen.
    ends = torch.stack([before, after, torch.full_like(before, torch.nan)], dim=1).flatten(0, 1)
    return go.Scatter(
        x=_rounded(ends[:, 0]),
        y=_rounded(ends[:, 1]),
        mode="lines",
        line={"color": style.GREY, "width": 0.6},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )


def _rounded(values: Tensor) -> list[float | None]:
    """Values with four decimals, enough for a picture; NaN is not valid JSON and becomes None."""
    return [None if v != v else round(v, 4) for v in values.tolist()]
