"""Figures of one head's activations: its two classes, and how the edits of several steerings divide over directions."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import HeadSite, checked_sites
from radiant_lens.steering.cached import cached_edits
from radiant_lens.steering.steering import Steering
from radiant_lens.viz import _style as style

RIDGE = 1e-6
"""Added to covariances, relative to their mean variance, so that they can be inverted."""


def head_classes(
    cache: HeadCache,
    site: tuple[int, int],
    *,
    max_points: int = 400,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot desirable and undesirable activations of a head in the plane that separates them best.

    The horizontal axis is the discriminant direction of the two classes, fitted to these same activations. The vertical
    axis is the widest direction of the rest. Both are in standard deviations.

    Args:
        cache: activations with both labels.
        site: layer and head.
        max_points: activations drawn of each class, at random where there are more.
        seed: of the draw.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no such head, a layer that was not collected, another object in the place of the cache,
            `max_points` below 1, or a size below 100 pixels.
        DataError: no example of a class, or activations that are not finite.

    Example:
        >>> head_classes(cache, (1, 5)).show()  # doctest: +SKIP
    """
    _checks.whole("max_points", max_points, 1)
    z, head = _activations(cache, site)
    _checks.both_classes(cache.labels, "`cache`")
    places = _discriminant_plane(z, cache.labels)
    figure = go.Figure()
    generator = torch.Generator().manual_seed(seed)
    for label, name, color, symbol in (
        (0, "desirable", style.GREEN, "circle-open"),
        (1, "undesirable", style.ORANGE, "diamond"),
    ):
        rows = (cache.labels == label).nonzero().squeeze(1)
        drawn = rows[torch.randperm(len(rows), generator=generator)[:max_points]]
        x, y = places[drawn].T.tolist()
        marker = {"color": color, "symbol": symbol, "size": 6}
        hover = f"{name}<br>%{{x:.2f}}, %{{y:.2f}}<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, opacity=0.7, hovertemplate=hover)
    style.legend_below(figure)
    return style.styled(
        figure,
        f"Activations of head {head}",
        style.Size(width, height),
        note=f"At most {max_points} of each class. The direction is fitted to the activations shown.",
        x="best separating direction (standard deviations)",
        y="widest direction of the rest<br>(standard deviations)",
    )


def _activations(cache: HeadCache, site: tuple[int, int]) -> tuple[Float[Tensor, "example d_head"], HeadSite]:
    _checks.instance("cache", cache, HeadCache, hint="`radiant_lens.collect` returns one")
    (head,) = checked_sites([site], *cache.z.shape[1:3])
    if head.layer not in cache.collected_layers:
        raise InvalidArgumentError(
            f"Layer {head.layer} was not collected: `cache` has {cache.collected_layers}. Show one of them, or collect "
            "all layers."
        )
    z = cache.z[:, head.layer, head.head].double()
    _checks.some("`cache`", len(z))
    _checks.finite("cache.z", z)
    return z, head


def _within_classes(z: Float[Tensor, "example d_head"], labels: Tensor) -> Float[Tensor, "example d_head"]:
    """Activations less the mean of their class."""
    centred = z.clone()
    for label in labels.unique():
        rows = labels == label
        centred[rows] -= z[rows].mean(0)
    return centred


def _covariance(centred: Float[Tensor, "example d_head"]) -> Float[Tensor, "d_head d_head"]:
    covariance = centred.T @ centred / len(centred)
    scale = float(covariance.diagonal().mean()) or 1.0
    return covariance + RIDGE * scale * torch.eye(len(covariance), dtype=covariance.dtype)


def _discriminant_plane(z: Float[Tensor, "example d_head"], labels: Tensor) -> Float[Tensor, "example 2"]:
    difference = z[labels == 1].mean(0) - z[labels == 0].mean(0)
    direction = torch.linalg.solve(_covariance(_within_classes(z, labels)), difference)
    unit = direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    centred = z - z.mean(0)
    rest = centred - (centred @ unit)[:, None] * unit
    second = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    places = torch.stack([centred @ unit, centred @ second], dim=1)
    spread = places.std(0, correction=0)
    return places / spread.where(spread > 0, 1.0)


def displacement_spectrum(
    steerings: Mapping[str, Steering],
    cache: HeadCache,
    site: tuple[int, int],
    *,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot how far steerings move a head along each principal component, beside the activations' own spread.

    Components are those of the activations within their classes, the widest first. An edit above the dotted line moves
    activations further than they vary by themselves.

    Args:
        steerings: by name; those that do not edit the head, or no activation of it, are named in the note.
        cache: activations of any texts.
        site: layer and head.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no steering, something else than steerings by name, no such head, a layer that was not
            collected, another object in the place of the cache, or a size below 100 pixels.
        DataError: no examples, or activations that are not finite.

    Example:
        >>> displacement_spectrum({"RADIANT": steering}, cache, steering.sites[0]).show()  # doctest: +SKIP
    """
    size = style.Size(width, height)
    _checks.instance("steerings", steerings, Mapping, hint="steerings by name, such as {'RADIANT': steering}")
    if not steerings:
        raise InvalidArgumentError("`steerings` must hold at least one; got none.")
    for name, steering in steerings.items():
        _checks.instance(f"steerings[{name!r}]", steering, Steering, hint="a policy's `fit` returns one")
    z, head = _activations(cache, site)
    variance, components = torch.linalg.eigh(_covariance(_within_classes(z, cache.labels)))
    variance, components = variance.flip(0), components.flip(1)
    title = f"Displacement of head {head} along each principal component"
    lengths = {name: _root_mean_squares(steering, cache, head, components) for name, steering in steerings.items()}
    idle = [name for name, values in lengths.items() if values is None]
    if len(idle) == len(lengths):
        return style.empty(title, f"Nothing was edited: no steering moves {head} on these activations.", size)
    places = list(range(1, len(variance) + 1))
    figure = go.Figure()
    for i, (name, values) in enumerate(lengths.items()):
        if values is not None:
            line = {"color": style.COLORS[i % len(style.COLORS)], "dash": style.DASHES[i % 2]}
            figure.add_scatter(x=places, y=values, mode="lines+markers", line=line, name=style.escaped(name))
    spread = {"color": style.GREY, "dash": "dot"}
    figure.add_scatter(
        x=places, y=variance.clamp_min(0).sqrt().tolist(), mode="lines", line=spread, name="spread of the activations"
    )
    style.legend_below(figure)
    note = "Root mean square over the edited activations, logarithmic scale."
    note += f" Nothing edited by: {', '.join(idle)}." if idle else ""
    return style.styled(
        figure,
        title,
        size,
        note=style.escaped(note),
        x="principal component within the classes, the widest first",
        y="length",
        xaxis_dtick=max(1, len(places) // 8),
        yaxis={"type": "log", "exponentformat": "power"},
    )


def _root_mean_squares(
    steering: Steering, cache: HeadCache, head: HeadSite, components: Float[Tensor, "d_head component"]
) -> list[float] | None:
    """Length of the displacement along each component; None where nothing is edited."""
    if head not in steering.sites:
        return None
    ((_, edit),) = cached_edits(steering, cache, [head.layer])
    column = edit.heads.tolist().index(head.head)
    displacement = edit.displacement[edit.gated[:, column], column].double()
    if not len(displacement):
        return None
    return (displacement @ components).square().mean(0).sqrt().tolist()
