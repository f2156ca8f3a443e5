"""Heat map of one number for every head."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.steering.steering import Steering
from radiant_lens.viz import _style as style


def head_map(
    values: Float[Tensor, "layer head"],
    quantity: str,
    *,
    title: str | None = None,
    steering: Steering | None = None,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Heat map of one number for every head; darker heads have more of it, and heads that a steering edits are framed.

    The scale starts at zero. Where some values are negative, zero is white, positive values are blue and negative ones
    orange. Values that are not finite, such as those of layers that were not collected, stay blank.

    Args:
        values: one number for each head.
        quantity: its name, for the scale.
        title: of the figure; default "`quantity` of each head".
        steering: whose heads to frame.
        width, height: in pixels; default the page's width, and as much as the layers need.

    Raises:
        InvalidArgumentError: values without the axes `layer head`, another object in the place of the steering, or a
            size below 100 pixels.
        DataError: no finite value.

    Example:
        >>> head_map(detector.head_fnr_, "miss rate").show()  # doctest: +SKIP
    """
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.numel():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InvalidArgumentError(f"`values` must be a tensor with the axes `layer head`; got {shape}.")
    if steering is not None:
        _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    finite = values[values.isfinite()]
    if not len(finite):
        raise DataError("`values` has no finite number to draw.")
    n_layers, n_heads = values.shape
    largest = float(finite.abs().max()) or 1.0
    signed = bool((finite < 0).any())
    figure = go.Figure(
        go.Heatmap(
            z=style.finite_or_none(values.to(torch.float64)),
            colorscale=style.DIVERGING if signed else style.SEQUENTIAL,
            hoverongaps=False,
            zmin=-largest if signed else 0,
            zmax=largest,
            colorbar_title=style.escaped(quantity),
            texttemplate=style.cell_text(n_layers, n_heads),
            hovertemplate=f"L%{{y}}H%{{x}}<br>{style.escaped(quantity)} %{{z:.3g}}<extra></extra>",
        )
    )
    style.frame_heads(figure, () if steering is None else steering.sites)
    return style.styled(
        figure,
        style.escaped(title or f"{quantity.capitalize()} of each head"),
        style.Size(width, height),
        height=max(300, min(640, 190 + 32 * n_layers)),
        **style.head_axes(n_layers, n_heads),
    )
