"""What both solvers ask of their inputs, and the last check of what they hand back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import ConvergenceError, InvalidArgumentError

GAP_TOLERANCE = 1e-6
SLACK_TOLERANCE = 1e-8


class UncertifiedError(ConvergenceError):
    """Some problems of a batch were not solved to the tolerance that every solution must keep.

    Attributes:
        index: places of the failed problems in the batch, one tuple each; the caller, who knows
            what the batch axes mean, turns them into layer and head.
    """

    def __init__(self, message: str, index: list[tuple[int, ...]]) -> None:
        super().__init__(message)
        self.index = index


class Problem(NamedTuple):
    """Checked inputs of a solver: float64, on one device, broadcast to common batch axes."""

    mu: Float[Tensor, "*batch d"]
    sigma: Float[Tensor, "*batch d d"]
    theta: Float[Tensor, "*batch d"]
    bias: Float[Tensor, "*batch"]
    margin: Float[Tensor, "*batch"]


def read_problem(mu: Tensor, sigma: Tensor, theta: Tensor, bias: Tensor | float, margin: Tensor | float) -> Problem:
    """Check and broadcast the inputs that all solvers share.

    Raises:
        InvalidArgumentError: shapes that do not fit, a margin that is not positive, a zero weight,
            a covariance that is not symmetric.
        DataError: an input that is not finite.
    """
    mu = torch.as_tensor(mu).double()
    sigma, theta, bias, margin = (
        torch.as_tensor(value, dtype=torch.float64, device=mu.device) for value in (sigma, theta, bias, margin)
    )
    d = theta.shape[-1] if theta.ndim else 0
    for name, value, trailing in (("mu", mu, (d,)), ("sigma", sigma, (d, d)), ("theta", theta, (d,))):
        if d == 0 or tuple(value.shape[-len(trailing) :]) != trailing:
            raise InvalidArgumentError(
                f"`{name}` must end in axes {trailing}, as `theta` does; got {tuple(value.shape)}."
            )
    batch = _common_batch(mu.shape[:-1], sigma.shape[:-2], theta.shape[:-1], bias.shape, margin.shape)
    for name, value in (("mu", mu), ("theta", theta), ("bias", bias), ("margin", margin)):
        _checks.finite(name, value)
    if bool((margin <= 0).any()):
        raise InvalidArgumentError(f"`margin` must lie strictly above 0; got {float(margin.min()):g}.")
    if bool((theta == 0).all(dim=-1).any()):
        raise InvalidArgumentError(
            "`theta` must not be zero; a detector without a weight has no direction to move along."
        )
    sigma = read_symmetric("sigma", sigma, batch, d, mu.device)
    return Problem(mu.expand(*batch, d), sigma, theta.expand(*batch, d), bias.expand(batch), margin.expand(batch))


def _common_batch(*shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(Problem._fields, shapes))
        raise InvalidArgumentError(f"Leading axes must broadcast against each other; got {given}.") from None


def read_symmetric(
    name: str, value: Tensor, batch: torch.Size, d: int, device: torch.device
) -> Float[Tensor, "*batch d d"]:
    """A symmetric matrix for each problem, with the rounding of a float32 computation averaged away."""
    value = torch.as_tensor(value, dtype=torch.float64, device=device)
    _checks.finite(name, value)
    try:
        value = value.expand(*batch, d, d)
    except RuntimeError:
        wanted = (*batch, d, d)
        raise InvalidArgumentError(f"`{name}` must broadcast to shape {wanted}; got {tuple(value.shape)}.") from None
    skew = (value - value.mT).abs().amax((-2, -1))
    if bool((skew > 1e-5 * value.abs().amax((-2, -1))).any()):
        raise InvalidArgumentError(
            f"`{name}` must be symmetric; entries differ from their mirror by {float(skew.max()):g}."
        )
    return 0.5 * (value + value.mT)


def certify(
    gap: Float[Tensor, "*batch"], slack: Float[Tensor, "*batch"], size: Float[Tensor, "*batch"], solver: str
) -> None:
    """Refuse solutions that are not what they claim to be.

    Args:
        gap: relative duality gaps.
        slack: how far inside its constraint each solution lies.
        size: what a violation is measured against, `|m| + kappa s`.
        solver: its name, for the message.

    Raises:
        UncertifiedError: a gap beyond 1e-6, a constraint violated by more than `1e-8 size`, or either not a number.
    """
    sound = (gap.abs() <= GAP_TOLERANCE) & (slack >= -SLACK_TOLERANCE * size)
    if bool(sound.all()):
        return
    index = [tuple(place) for place in (~sound).nonzero().tolist()]
    first = index[0]
    raise UncertifiedError(
        f"The {solver} solver failed on {len(index)} of {sound.numel()} problems, the first at index {first}: "
        f"relative gap {float(gap[first]):.1e} (at most {GAP_TOLERANCE:g} is allowed), "
        f"constraint slack {float(slack[first]):.1e}.",
        index,
    )
