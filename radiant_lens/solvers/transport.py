"""The least affine move in a metric, in closed form: the geometries `wasserstein` and `mahalanobis`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.solvers.certificates import RankOneMove, transport_certificate
from radiant_lens.solvers.problem import (
    Metric,
    ScoreMoments,
    read_floor_std,
    read_metric,
    read_problem,
    score_moments,
)
from radiant_lens.solvers.solutions import TransportSolution


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

    An affine map cannot give spread to a score without any (`s` within rounding of 0). Such a score moves as a
    whole to `-margin * floor_std`, where its floor would be met: every activation gets that score.

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
            negative floor, a matrix that is not symmetric, `theta' sigma theta` below zero, or a metric that is
            not positive definite.
        DataError: an input that is not finite.
        UncertifiedError: rounding exceeds the tolerance: `theta` lies almost in the null space of `sigma` or of
            `metric`, or the inputs differ by many orders of magnitude. Its `index` names the problems.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> solution = solve_transport(one, one[:, None], one, 0.0, 1.0, floor_std=0.5)
        >>> (float(solution.mean), float(solution.covariance))
        (-0.5, 0.25)
    """
    problem = read_problem(mu, sigma, theta, bias, margin)
    floor, factored = read_floor_std(floor_std, problem), read_metric(metric, problem)
    score, constant = score_moments(problem)
    identity = score.mean + problem.margin * score.std <= 0
    # A constant score is treated as if it had the floor's spread already: only its mean has to move.
    before = ScoreMoments(score.mean, torch.where(constant & ~identity, floor, score.std))
    after = ScoreMoments(
        *(torch.where(identity, *x) for x in zip(before, project_score(before, problem.margin, floor)))
    )
    direction = direction_of_move(problem.theta, factored)
    scale = torch.where(constant, 0.0, after.std / torch.where(constant, 1.0, before.std))
    scale = torch.where(identity, 1.0, scale)
    offset = after.mean - scale * before.mean
    gain = scale - 1
    move = RankOneMove(direction, gain[..., None] * problem.theta, gain * problem.bias + offset)
    certificate = transport_certificate(problem, factored, floor, move)
    return TransportSolution(
        theta=problem.theta,
        bias=problem.bias,
        direction=direction,
        scale=scale,
        offset=offset,
        source_mean=problem.mu,
        source_covariance=problem.sigma,
        value=certificate.value,
        gap=certificate.gap,
        slack=certificate.slack,
        identity=identity,
    )


def project_score(score: ScoreMoments, margin: Float[Tensor, "*batch"], floor: Float[Tensor, "*batch"]) -> ScoreMoments:
    """Project a score above the line `m' + margin s' = 0` on its nearest point with `s' >= floor`.

    On the line `m' = m - x`, `s' = s - margin x`, `x = (m + margin s) / (1 + margin^2)`; where that
    passes below the floor, the corner `(-margin floor, floor)`.
    """
    excess = (score.mean + margin * score.std) / (1 + margin.square())
    std = torch.maximum(score.std - margin * excess, floor)
    return ScoreMoments(-margin * std, std)


def direction_of_move(theta: Float[Tensor, "*batch d"], metric: Metric | None) -> Float[Tensor, "*batch d"]:
    """Compute `M theta / (theta' M theta)`: the cheapest way to raise the score by one."""
    pulled = theta if metric is None else torch.einsum("...ij,...j->...i", metric.matrix, theta)
    return pulled / (theta * pulled).sum(-1, keepdim=True)
