"""The least affine move in a metric, in closed form (DESIGN 2.2: `wasserstein` and `mahalanobis`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.linalg import quadratic_form
from radiant_lens.solvers.problem import Problem, certify, read_problem, read_symmetric
from radiant_lens.solvers.solutions import TransportSolution


class ScoreMoments(NamedTuple):
    """Mean and standard deviation of a score."""

    mean: Float[Tensor, "*batch"]
    std: Float[Tensor, "*batch"]


def solve_transport(
    mu: Float[Tensor, "*#batch d"],
    sigma: Float[Tensor, "*#batch d d"],
    theta: Float[Tensor, "*#batch d"],
    bias: float | Float[Tensor, "*#batch"],
    margin: float | Float[Tensor, "*#batch"],
    *,
    metric: Float[Tensor, "*#batch d d"] | None = None,
    floor_std: float | Float[Tensor, "*#batch"] | None = None,
) -> TransportSolution:
    """Least affine map after which the score's mean lies `margin` of its standard deviations below 0.

    With `m = bias + theta . mu`, `s = sqrt(theta' sigma theta)`: where `m + margin s <= 0` the identity;
    elsewhere `(m', s')` is the projection of `(m, s)` on `{m' + margin s' <= 0, s' >= floor_std}`, and
    the map moves activations along `metric @ theta` alone. It is optimal: no transport in the metric
    `metric^{-1}` can move the score's law by less. Everything is computed in float64.

    A score without spread (`s` within rounding of 0) cannot be given any by an affine map; it moves as a
    whole to `-margin * floor_std`, where its floor would be met, and every activation is given that score.

    Args:
        mu: means of the activations to be moved.
        sigma: their covariances, symmetric and positive semidefinite.
        theta: weight of each detector, not zero.
        bias: its bias; a positive score is undesirable.
        margin: `kappa`, positive.
        metric: symmetric positive definite `M`; the cost is measured in `M^{-1}`. None: the identity,
            and the cost is the ordinary squared 2-Wasserstein distance.
        floor_std: least standard deviation of the moved score, at least 0. None: no floor, and then a
            margin of more than `s / m` moves every activation onto the boundary itself.

    Raises:
        InvalidArgumentError: shapes that do not fit, a margin that is not positive, a zero weight, a
            negative floor, a matrix that is not symmetric, `theta' sigma theta` below zero or
            `theta' metric theta` not above it.
        DataError: an input that is not finite.
        UncertifiedError: rounding spoiled the solution (the inputs differ by many orders of magnitude).

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> found = solve_transport(one, one[:, None], one, 0.0, 1.0, floor_std=0.5)
        >>> (float(found.mean), float(found.covariance))
        (-0.5, 0.25)
    """
    problem = read_problem(mu, sigma, theta, bias, margin)
    floor = _read_floor(floor_std, problem)
    direction, reach = _read_direction(metric, problem)
    score, constant = _score_moments(problem)
    identity = score.mean + problem.margin * score.std <= 0
    # A constant score is treated as if it had the floor's spread already: only its mean has to move.
    before = ScoreMoments(score.mean, torch.where(constant & ~identity, floor, score.std))
    after = ScoreMoments(
        *(torch.where(identity, *x) for x in zip(before, project_score(before, problem.margin, floor)))
    )
    value = ((after.mean - before.mean).square() + (after.std - before.std).square()) / reach
    bound = torch.where(identity, 0.0, _lower_bound(before, after, problem.margin, floor) / reach)
    least = (1e-3 * before.std.square() / reach).clamp_min(torch.finfo(value.dtype).tiny)
    gap, slack = (value - bound) / torch.maximum(value, least), -(after.mean + problem.margin * after.std)
    certify(gap, slack, before.mean.abs() + problem.margin * before.std, "transport")
    scale = torch.where(constant, 0.0, after.std / torch.where(constant, 1.0, before.std))
    scale = torch.where(identity, 1.0, scale)
    return TransportSolution(
        theta=problem.theta,
        bias=problem.bias,
        direction=direction,
        scale=scale,
        offset=after.mean - scale * before.mean,
        source_mean=problem.mu,
        source_covariance=problem.sigma,
        value=value,
        gap=gap,
        slack=slack,
        identity=identity,
    )


def project_score(score: ScoreMoments, margin: Float[Tensor, "*batch"], floor: Float[Tensor, "*batch"]) -> ScoreMoments:
    """Nearest `(m', s')` with `m' + margin s' = 0` and `s' >= floor`, for a score that lies above that line.

    On the line `m' = m - x`, `s' = s - margin x`, `x = (m + margin s) / (1 + margin^2)`; where that
    passes below the floor, the corner `(-margin floor, floor)`.
    """
    excess = (score.mean + margin * score.std) / (1 + margin.square())
    std = torch.maximum(score.std - margin * excess, floor)
    return ScoreMoments(-margin * std, std)


def _lower_bound(
    score: ScoreMoments, moved: ScoreMoments, margin: Float[Tensor, "*batch"], floor: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Value of the dual of the projection, which no feasible `(m', s')` can undercut.

    For `a >= 0`, `q <= a kappa`: `a (m + kappa floor) + q (s - floor) - (a^2 + q^2) / 4`, where `a` belongs to the
    margin and `a kappa - q` to the floor. Stationarity at `(m', s')` gives `a = 2 (m - m')`, `q = 2 (s - s')`.
    """
    a = (2 * (score.mean - moved.mean)).clamp_min(0)
    q = torch.minimum(a * margin, 2 * (score.std - moved.std))
    return a * (score.mean + margin * floor) + q * (score.std - floor) - (a.square() + q.square()) / 4


def _score_moments(problem: Problem) -> tuple[ScoreMoments, Bool[Tensor, "*batch"]]:
    """Moments of the score, and where its variance is nothing but the rounding of `theta' sigma theta`."""
    variance = quadratic_form(problem.theta, problem.sigma)
    size = problem.theta.square().sum(-1) * torch.linalg.matrix_norm(problem.sigma)
    rounding = 4 * problem.theta.shape[-1] * torch.finfo(variance.dtype).eps * size
    # Covariances computed in float32 may be indefinite by their own rounding.
    if bool((variance < -1e-6 * size).any()):
        raise InvalidArgumentError(
            f"`sigma` must be positive semidefinite; a score has variance {float(variance.min()):g}."
        )
    constant = variance <= rounding
    mean = problem.bias + (problem.theta * problem.mu).sum(-1)
    return ScoreMoments(mean, torch.where(constant, 0.0, variance).sqrt()), constant


def _read_floor(floor_std: float | Tensor | None, problem: Problem) -> Float[Tensor, "*batch"]:
    floor = torch.as_tensor(0.0 if floor_std is None else floor_std, dtype=torch.float64, device=problem.mu.device)
    _checks.finite("floor_std", floor)
    if bool((floor < 0).any()):
        raise InvalidArgumentError(f"`floor_std` must lie at or above 0; got {float(floor.min()):g}.")
    try:
        return floor.expand(problem.margin.shape)
    except RuntimeError:
        wanted = tuple(problem.margin.shape)
        raise InvalidArgumentError(f"`floor_std` must broadcast to shape {wanted}; got {tuple(floor.shape)}.") from None


def _read_direction(
    metric: Tensor | None, problem: Problem
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch"]]:
    """`M theta / (theta' M theta)` and `theta' M theta`."""
    pulled = problem.theta
    if metric is not None:
        metric = read_symmetric("metric", metric, problem.margin.shape, pulled.shape[-1], pulled.device)
        pulled = torch.einsum("...ij,...j->...i", metric, problem.theta)
    reach = (problem.theta * pulled).sum(-1)
    if bool((reach <= 0).any()):
        raise InvalidArgumentError(
            f"`metric` must be positive definite; `theta' metric theta` is {float(reach.min()):g}."
        )
    return pulled / reach[..., None], reach
