"""Inputs of the solvers, checked and broadcast, and the tolerances that every solution must meet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import ConvergenceError, InvalidArgumentError
from radiant_lens.linalg import quadratic_form

GAP_TOLERANCE = 1e-6
SLACK_TOLERANCE = 1e-8
EPS = torch.finfo(torch.float64).eps
# Below this length the square of a weight is no normal number, and every quotient by it is wrong.
SHORTEST_WEIGHT = 1e-140


class UncertifiedError(ConvergenceError):
    """Some problems of a batch were not solved to the tolerance that every solution must meet.

    Attributes:
        index: places of the failed problems in the batch, one tuple each. The caller, who knows the meaning of the
            batch axes, translates them into layer and head.
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


class ScoreMoments(NamedTuple):
    """Mean and standard deviation of a score."""

    mean: Float[Tensor, "*batch"]
    std: Float[Tensor, "*batch"]


class Metric(NamedTuple):
    """A symmetric positive definite matrix with its Cholesky factor."""

    matrix: Float[Tensor, "*batch d d"]
    triangle: Float[Tensor, "*batch d d"]


def read_problem(mu: Tensor, sigma: Tensor, theta: Tensor, bias: Tensor | float, margin: Tensor | float) -> Problem:
    """Check and broadcast the inputs that all solvers share.

    Raises:
        InvalidArgumentError: shapes that do not fit, a margin that is not positive, a weight of length 0 or below
            1e-140, a covariance that is not symmetric.
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
    _check_weight(theta)
    sigma = read_symmetric("sigma", sigma, batch, d, mu.device)
    return Problem(mu.expand(*batch, d), sigma, theta.expand(*batch, d), bias.expand(batch), margin.expand(batch))


def _check_weight(theta: Float[Tensor, "*batch d"]) -> None:
    largest = theta.abs().amax(dim=-1)
    if bool((largest == 0).any()):
        raise InvalidArgumentError(
            "`theta` must not be zero; a detector without a weight has no direction to move along."
        )
    if bool((largest < SHORTEST_WEIGHT).any()):
        raise InvalidArgumentError(
            f"`theta` must be longer than {SHORTEST_WEIGHT:g}, as its square is computed; the longest entry of one is "
            f"{float(largest.min()):g}. Multiply `theta`, `bias` and the floor of the score by the same number."
        )


def _common_batch(*shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(Problem._fields, shapes))
        raise InvalidArgumentError(f"Leading axes must broadcast against each other; got {listed}.") from None


def read_symmetric(
    name: str, value: Tensor, batch: torch.Size, d: int, device: torch.device
) -> Float[Tensor, "*batch d d"]:
    """Read a symmetric matrix for each problem; the rounding of a float32 computation is averaged away."""
    value = torch.as_tensor(value, dtype=torch.float64, device=device)
    _checks.finite(name, value)
    try:
        value = value.expand(*batch, d, d)
    except RuntimeError:
        expected = (*batch, d, d)
        raise InvalidArgumentError(f"`{name}` must broadcast to shape {expected}; got {tuple(value.shape)}.") from None
    skew = (value - value.mT).abs().amax((-2, -1))
    if bool((skew > 1e-5 * value.abs().amax((-2, -1))).any()):
        raise InvalidArgumentError(
            f"`{name}` must be symmetric; entries differ from their mirror by {float(skew.max()):g}."
        )
    return 0.5 * (value + value.mT)


def read_floor_std(floor_std: float | Tensor | None, problem: Problem) -> Float[Tensor, "*batch"]:
    """Read the least standard deviation of each moved score; None is 0."""
    floor = torch.as_tensor(0.0 if floor_std is None else floor_std, dtype=torch.float64, device=problem.mu.device)
    _checks.finite("floor_std", floor)
    if bool((floor < 0).any()):
        raise InvalidArgumentError(f"`floor_std` must lie at or above 0; got {float(floor.min()):g}.")
    try:
        return floor.expand(problem.margin.shape)
    except RuntimeError:
        expected = tuple(problem.margin.shape)
        raise InvalidArgumentError(
            f"`floor_std` must broadcast to shape {expected}; got {tuple(floor.shape)}."
        ) from None


def read_metric(metric: Tensor | None, problem: Problem) -> Metric | None:
    """Read the metric of each problem and factor it; None is the identity."""
    if metric is None:
        return None
    d = problem.theta.shape[-1]
    matrix = read_symmetric("metric", metric, problem.margin.shape, d, problem.mu.device)
    # A covariance of fewer rows than dimensions is singular; its factor exists up to rounding only.
    rounding = d * EPS * matrix.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
    eye = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    triangle, info = torch.linalg.cholesky_ex(matrix + rounding[..., None, None] * eye)
    reach = quadratic_form(problem.theta, matrix)
    if bool((info != 0).any() | (reach <= 0).any()):
        raise InvalidArgumentError(
            f"`metric` must be positive definite; the least `theta' metric theta` is {float(reach.min()):g}, and "
            f"{int((info != 0).sum())} matrices have no Cholesky factor. Add a small multiple of the identity."
        )
    return Metric(matrix, triangle)


def resolved_variance(
    vector: Float[Tensor, "*batch d"], sigma: Float[Tensor, "*batch d d"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Compute `vector' sigma vector`, 0 where it is nothing but rounding, and its size without cancellation."""
    variance = quadratic_form(vector, sigma)
    size = vector.square().sum(-1) * torch.linalg.matrix_norm(sigma)
    rounding = 4 * vector.shape[-1] * EPS * size
    return torch.where(variance.abs() <= rounding, 0.0, variance), size


def score_moments(problem: Problem) -> tuple[ScoreMoments, Bool[Tensor, "*batch"]]:
    """Compute the moments of each score, and mark scores without spread.

    Raises:
        InvalidArgumentError: a score of negative variance.
    """
    variance, size = resolved_variance(problem.theta, problem.sigma)
    # Covariances computed in float32 may be indefinite by their own rounding.
    if bool((variance < -1e-6 * size).any()):
        raise InvalidArgumentError(
            f"`sigma` must be positive semidefinite; a score has variance {float(variance.min()):g}."
        )
    mean = problem.bias + (problem.theta * problem.mu).sum(-1)
    return ScoreMoments(mean, variance.clamp_min(0).sqrt()), variance <= 0


def certify(
    gap: Float[Tensor, "*batch"], slack: Float[Tensor, "*batch"], size: Float[Tensor, "*batch"], solver: str
) -> None:
    """Refuse solutions that miss their tolerance.

    Args:
        gap: relative duality gaps.
        slack: distance by which each solution meets its constraints; negative where it violates one.
        size: unit of a violation, such as `|m| + kappa s`.
        solver: its name, for the message.

    Raises:
        UncertifiedError: a gap beyond 1e-6, a constraint violated by more than `1e-8 size`, or either not a number.
    """
    # Written so that NaN fails: every comparison with it is false.
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
