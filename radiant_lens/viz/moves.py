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


def score_histogram(
    steering: Steering,
    cache: HeadCache,
    site: tuple[int, int] | None = None,
    *,
    certificate: HeldOutCertificate | None = None,
) -> go.Figure:
    """Scores of the activations that a head's gate passes, before and after the edit, with the boundary at 0.

    Args:
        steering: fitted or loaded.
        cache: held-out activations.
        site: an edited head; default the first.
        certificate: from `steering.certify`, for the certified bound of the share that stays flagged.

    Raises:
        InvalidArgumentError: a head that is not edited, or a cache of another shape.
        DataError: no examples, or activations that are not finite.

    Example:
        >>> score_histogram(steering, rl.collect(model, test)).show()  # doctest: +SKIP
    """
    moves = head_moves(steering, cache, site or steering.sites[0])
    title = f"Scores of head {moves.site} before and after the edit"
    gated = moves.gated
    if not bool(gated.any()):
        return style.empty(title, f"The gate of {moves.site} passes none of the {len(cache)} activations.")
    before, after = moves.scores(moves.before), moves.scores(moves.after)
    desirable = before[moves.labels == 0]
    parts = (
        ("desirable text, unedited", desirable, style.GREY),
        ("gated, before", before[gated], style.ORANGE),
        ("gated, after", after[gated], style.BLUE),
    )
    everything = torch.cat([values for _, values, _ in parts])
    bins = {"start": float(everything.min()), "end": float(everything.max()) + 1e-9}
    bins["size"] = max((bins["end"] - bins["start"]) / 60, 1e-9)
    figure = go.Figure()
    for name, values, color in parts:
        if len(values):
            figure.add_trace(_histogram(name, values, bins, color))
    figure.add_vline(x=0, line={"color": style.GREY, "width": 2}, annotation_text="boundary: flagged from here on")
    still = float((after[gated] >= 0).double().mean())
    note = f"{int(gated.sum())} of {len(cache)} activations gated; {still:.1%} of them still flagged after the edit."
    style.legend_below(figure)
    return style.styled(
        figure, title, note=f"{note}{_bound(certificate, moves.site)}", x="score", y="share", barmode="overlay"
    )


def _histogram(name: str, values: Tensor, bins: dict[str, float], color: str) -> go.Bar:
    # Counted here: a page need not carry every score.
    n = max(1, round((bins["end"] - bins["start"]) / bins["size"]))
    counts = torch.histc(values, n, bins["start"], bins["end"])
    middles = bins["start"] + bins["size"] * (torch.arange(n) + 0.5)
    return go.Bar(
        x=middles.tolist(),
        y=(counts / len(values)).tolist(),
        width=bins["size"],
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
) -> go.Figure:
    """Activations of a head before and after the edit, in the plane of `HeadMoves.plane`.

    Args:
        steering: fitted or loaded.
        cache: activations of any texts.
        site: an edited head; default the first.
        max_points: activations drawn of each kind, at random where there are more.
        seed: of the draw.

    Raises:
        InvalidArgumentError: a head that is not edited, or a cache of another shape.
        DataError: no examples, or activations that are not finite.

    Example:
        >>> activation_scatter(steering, cache, steering.sites[0]).show()  # doctest: +SKIP
    """
    _checks.whole("max_points", max_points, 1)
    moves = head_moves(steering, cache, site or steering.sites[0])
    before, after = moves.plane()
    undesirable = moves.labels == 1
    edited = _drawn(moves.gated, max_points, seed)
    figure = go.Figure()
    for name, where, color, symbol in (
        ("desirable, left alone", ~undesirable & ~moves.gated, style.GREEN, "circle-open"),
        ("undesirable, left alone", undesirable & ~moves.gated, style.GREY, "square-open"),
    ):
        drawn = _drawn(where, max_points, seed)
        if len(drawn):
            figure.add_trace(_points(name, before[drawn], color, symbol))
    if len(edited):
        figure.add_trace(_moves(before[edited], after[edited]))
        figure.add_trace(_points("gated, before", before[edited], style.ORANGE, "diamond"))
        figure.add_trace(_points("gated, after", after[edited], style.BLUE, "circle"))
    figure.add_vline(x=0, line={"color": style.GREY, "width": 2}, annotation_text="boundary")
    style.legend_below(figure)
    return style.styled(
        figure,
        f"Activations of head {moves.site} before and after the edit",
        note=_note(moves, len(edited)),
        x="distance to the boundary, along the detector's direction",
        y="first orthogonal component",
        height=520,
    )


def _note(moves: HeadMoves, n_drawn: int) -> str:
    n = int(moves.gated.sum())
    return f"{n} of {len(moves.labels)} activations gated; {n_drawn} of those drawn, with a line from before to after."


def _drawn(where: Bool[Tensor, " example"], most: int, seed: int) -> Int[Tensor, " drawn"]:
    index = where.nonzero().squeeze(1)
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:most]]


def _points(name: str, at: Tensor, color: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=_short(at[:, 0]),
        y=_short(at[:, 1]),
        mode="markers",
        name=name,
        marker={"color": color, "symbol": symbol, "size": 6},
        hovertemplate=f"{name}<br>distance %{{x:.2f}}, orthogonal %{{y:.2f}}<extra></extra>",
    )


def _moves(before: Tensor, after: Tensor) -> go.Scatter:
    ends = torch.stack([before, after, torch.full_like(before, torch.nan)], dim=1).flatten(0, 1)
    return go.Scatter(
        x=_short(ends[:, 0]),
        y=_short(ends[:, 1]),
        mode="lines",
        line={"color": style.GREY, "width": 0.6},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )


def _short(values: Tensor) -> list[float | None]:
    """Four decimals are enough for a picture; NaN, which parts lines, is no JSON."""
    return [None if v != v else round(v, 4) for v in values.tolist()]
