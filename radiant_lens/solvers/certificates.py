"""Certificates of affine maps, computed from the map itself and the moments of its problem.

A certificate reads nothing that a solver derived on its way: it applies the map to the given mean and covariance and
compares the cost with a bound that holds for every feasible map. So a wrong direction, scale, offset, metric or floor
shows as a cost above the bound or as a violated constraint, and is refused. Two checks come first, because without
them the numbers would mean nothing: the inputs must determine the constraint to the tolerance (`_check_rounding`), and
the metric must determine the direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens.linalg import Root, quadratic_form
from radiant_lens.solvers.problem import (
    EPS,
    GAP_TOLERANCE,
    SLACK_TOLERANCE,
    Metric,
    Problem,
    ScoreMoments,
    UncertifiedError,
    certify,
    read_floor_std,
    read_metric,
    read_problem,
    resolved_variance,
    score_moments,
)

MAP_TOLERANCE = 1e-6


@dataclass(frozen=True)
class MapCertificate:
    """Figures of maps that passed their check.

    Attributes:
        mean: mean of the image, `G mu + g`.
        value: cost of the move.
        gap: difference of `value` and a bound that no feasible map undercuts, relative to the value.
        slack: `-(m' + margin s')`, `m'` and `s'` the moments of the moved score.
    """

    mean: Float[Tensor, "*batch d"]
    value: Float[Tensor, "*batch"]
    gap: Float[Tensor, "*batch"]
    slack: Float[Tensor, "*batch"]


class RankOneMove(NamedTuple):
    """The map `a' = a + write (read . a + shift)`."""

    write: Float[Tensor, "*batch d"]
    read: Float[Tensor, "*batch d"]
    shift: Float[Tensor, "*batch"]


class DenseMove(NamedTuple):
    """The map `a' = matrix a + constant`, with the solution of the paper's problem that it should attain.

    `root` is `S` and `bound` a lower bound of the problem's value, from a point of its dual.
    """

    matrix: Float[Tensor, "*batch d d"]
    constant: Float[Tensor, "*batch d"]
    root: Float[Tensor, "*batch d d"]
    bound: Float[Tensor, "*batch"]


def certify_transport(
    mu: Float[Tensor, "*#batch d"],
    sigma: Float[Tensor, "*#batch d d"],
    theta: Float[Tensor, "*#batch d"],
    bias: float | Float[Tensor, "*#batch"],
    margin: float | Float[Tensor, "*#batch"],
    write: Float[Tensor, "*batch d"],
    read: Float[Tensor, "*batch d"],
    shift: Float[Tensor, "*batch"],
    *,
    metric: Float[Tensor, "*#batch d d"] | None = None,
    floor_std: float | Float[Tensor, "*#batch"] | None = None,
) -> MapCertificate:
    """Certify that `a' = a + write (read . a + shift)` solves the problem of `solve_transport`.

    Args:
        mu, sigma, theta, bias, margin, metric, floor_std: as for `solve_transport`.
        write, read, shift: the maps, one for each problem.

    Raises:
        InvalidArgumentError: inputs that `solve_transport` refuses.
        DataError: an input that is not finite.
        UncertifiedError: a map that violates its constraint or its floor, or that costs more than the least; or
            inputs whose own rounding exceeds the tolerance. Its `index` names the problems.
    """
    problem = read_problem(mu, sigma, theta, bias, margin)
    move = RankOneMove(*(x.double() for x in (write, read, shift)))
    return transport_certificate(problem, read_metric(metric, problem), read_floor_std(floor_std, problem), move)


def transport_certificate(
    problem: Problem, metric: Metric | None, floor: Float[Tensor, "*batch"], move: RankOneMove
) -> MapCertificate:
    """Certify transports of a problem that is already checked; see `certify_transport`."""
    score, constant = score_moments(problem)
    identity = score.mean + problem.margin * score.std <= 0
    # A score without spread cannot be given any; it counts as if it had the floor's, before and after the move.
    lifted = constant & ~identity
    before = ScoreMoments(score.mean, torch.where(lifted, floor, score.std))

    gain = (problem.theta * move.write).sum(-1)
    step = (move.read * problem.mu).sum(-1) + move.shift
    mean = problem.mu + move.write * step[..., None]
    pulled = problem.theta + gain[..., None] * move.read  # G' theta
    std = resolved_variance(pulled, problem.sigma)[0].clamp_min(0).sqrt()
    after = ScoreMoments(
        problem.bias + (problem.theta * mean).sum(-1), torch.where(lifted, torch.maximum(std, floor), std)
    )
    reach, length = _lengths(problem.theta, metric, move.write)
    value = length * (step.square() + resolved_variance(move.read, problem.sigma)[0].clamp_min(0))
    bound = torch.where(identity, 0.0, projection_bound(before, after, problem.margin, floor) / reach)
    least = (1e-3 * before.std.square() / reach).clamp_min(torch.finfo(value.dtype).tiny)
    gap = (value - bound) / torch.maximum(value, least)
    slack = -(after.mean + problem.margin * after.std)

    size = _size(problem.margin, before, after)
    size_of_step = (move.read * problem.mu).abs().sum(-1) + move.shift.abs()
    _check_rounding(problem, pulled, gain.abs() * size_of_step, size, "transport")
    # The cost holds (s' - s)^2 / reach, whose error is 2 (s' - s) / reach times that of s. The sums round often,
    # so a gap within a few times that error is rounding too, and not a wrong map.
    error = 2 * _uncertainty(problem.theta, problem.sigma) / (torch.maximum(value, least) * reach).sqrt()
    rounded = (error > GAP_TOLERANCE) | ((gap.abs() > GAP_TOLERANCE) & (gap.abs() < 10 * error))
    _refuse_rounding(rounded & ~identity, "transport")
    above_floor = torch.where(identity, slack, problem.margin * (after.std - floor))
    certify(gap, torch.minimum(slack, above_floor), size, "transport")
    return MapCertificate(mean, value, gap, slack)


def projection_bound(
    score: ScoreMoments, moved: ScoreMoments, margin: Float[Tensor, "*batch"], floor: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Bound from below the squared distance of `score` to every feasible `(m', s')`.

    The dual of the projection: for `a >= 0`, `q <= a kappa`, no feasible point is nearer than
    `a (m + kappa floor) + q (s - floor) - (a^2 + q^2) / 4`, where `a` belongs to the margin and `a kappa - q` to the
    floor. Stationarity at `(m', s')` gives `a = 2 (m - m')`, `q = 2 (s - s')`; any other choice is a weaker bound.
    """
    a = (2 * (score.mean - moved.mean)).clamp_min(0)
    q = torch.minimum(a * margin, 2 * (score.std - moved.std))
    return a * (score.mean + margin * floor) + q * (score.std - floor) - (a.square() + q.square()) / 4


def _lengths(
    theta: Float[Tensor, "*batch d"], metric: Metric | None, vector: Float[Tensor, "*batch d"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Compute `theta' M theta` and `vector' M^{-1} vector`."""
    pulled = theta if metric is None else torch.einsum("...ij,...j->...i", metric.matrix, theta)
    reach = (theta * pulled).sum(-1)
    if metric is not None:
        _check_metric_rounding(theta, metric, reach)
    # With r = theta . vector, vector = r M theta / reach + rest, and theta . rest = 0 makes the two parts orthogonal
    # in M^{-1}. Of an optimal map `rest` is rounding, so M^{-1} multiplies a number near 0: the cost keeps its digits
    # even where M is ill-conditioned.
    along = (theta * vector).sum(-1)
    rest = vector - (along / reach)[..., None] * pulled
    if metric is not None:
        rest = torch.linalg.solve_triangular(metric.triangle, rest[..., None], upper=False)[..., 0]
    return reach, along.square() / reach + rest.square().sum(-1)


def procrustes_certificate(
    problem: Problem, root: Root, least_root: Float[Tensor, "head d d"] | None, move: DenseMove
) -> MapCertificate:
    """Certify maps of the paper's problem, for problems on one batch axis.

    The map must attain the solution `S`: among all maps that take covariance `H H` to one below `S S`, the optimal
    transport is the one with `tr(G H H) = ||S H||_*`, the sum of the singular values (von Neumann's trace
    inequality). Two numbers therefore prove `G`, and `S` is compared with the dual bound.

    Args:
        problem: the checked inputs.
        root: `H` with its eigenvectors.
        least_root: root of the floor; None for no floor.
        move: the maps.

    Raises:
        UncertifiedError: as for `certify_transport`.
    """
    theta, matrix, new_root = problem.theta, move.matrix, move.root
    score = problem.bias + (theta * problem.mu).sum(-1)
    before = ScoreMoments(score, _apply(root.matrix, theta).norm(dim=-1))
    mean = _apply(matrix, problem.mu) + move.constant
    pulled = _apply(matrix.mT, theta)
    spread = torch.maximum(_apply(new_root, theta).norm(dim=-1), _apply(root.matrix, pulled).norm(dim=-1))
    after = ScoreMoments(problem.bias + (theta * mean).sum(-1), spread)

    trace = root.values.square().sum(-1)
    value = (mean - problem.mu).square().sum(-1) + (new_root - root.matrix).square().sum((-2, -1))
    gap = (value - move.bound) / torch.maximum(value, 1e-3 * trace).clamp_min(torch.finfo(value.dtype).tiny)
    slack = -(after.mean + problem.margin * after.std)

    size = _size(problem.margin, before, after)
    _check_rounding(problem, pulled, torch.zeros_like(size), size, "procrustes")
    certify(gap, slack, size, "procrustes")
    moving = before.mean + problem.margin * before.std > 0
    _check_attained(root, least_root, move, moving)
    return MapCertificate(mean, value, gap, slack)


def _check_attained(
    root: Root, least_root: Float[Tensor, "head d d"] | None, move: DenseMove, moving: Bool[Tensor, " head"]
) -> None:
    """Refuse a matrix that is not the optimal transport to `S S`, and an `S` below its floor."""
    image_root = move.matrix @ root.matrix
    target = move.root @ move.root
    size = (root.values.square().sum(-1) + target.diagonal(dim1=-2, dim2=-1).sum(-1)).clamp_min(1e-300)
    above = -torch.linalg.eigvalsh(target - image_root @ image_root.mT)[:, 0] / size
    overlap = torch.linalg.matrix_norm(move.root @ root.matrix, ord="nuc")
    detour = (overlap - (image_root * root.matrix).sum((-2, -1))) / size
    # Along directions without mass no moment sees the matrix, and it must leave activations as they are.
    massless = root.vectors * (root.values == 0)[:, None, :]
    stray = (move.matrix @ massless - massless).square().sum((-2, -1)).sqrt()
    errors = [above, detour, stray]
    if least_root is not None:
        below = -torch.linalg.eigvalsh(move.root - least_root)[:, 0] / size.sqrt()
        errors.append(torch.where(moving, below, 0.0))
    error = torch.stack(errors).amax(0)
    wrong = ~(error <= MAP_TOLERANCE)
    if bool(wrong.any()):
        index = _places(wrong)
        raise UncertifiedError(
            f"The procrustes solver failed on {len(index)} of {wrong.numel()} problems, the first at index {index[0]}: "
            f"the map misses the covariance of its solution, or the solution its floor, by "
            f"{float(error[index[0]]):.1e} (at most {MAP_TOLERANCE:g} is allowed).",
            index,
        )


def _check_rounding(
    problem: Problem,
    pulled: Float[Tensor, "*batch d"],
    step: Float[Tensor, "*batch"],
    size: Float[Tensor, "*batch"],
    solver: str,
) -> None:
    """Refuse problems whose inputs, each known to its last bit, leave the constraint less certain than the tolerance.

    Two kinds are exempt: a map that moves nothing (`pulled` is `theta`), as rounding has nothing to spoil there, and
    the mean of a score without spread, which may lie on the boundary itself.
    """
    spread = _uncertainty(pulled, problem.sigma)
    mean = EPS * (problem.bias.abs() + (problem.theta * problem.mu).abs().sum(-1) + step)
    mean = torch.where(resolved_variance(problem.theta, problem.sigma)[0] > 0, mean, 0.0)
    uncertain = mean + problem.margin * spread
    _refuse_rounding((uncertain > SLACK_TOLERANCE * size) & (pulled != problem.theta).any(dim=-1), solver)


def _uncertainty(vector: Float[Tensor, "*batch d"], sigma: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """Compute how uncertain `sqrt(vector' sigma vector)` is for a covariance that is exact to its last bit.

    Rounding of the entries moves the variance by up to `eps |v|' |Sigma| |v|`, which is all of it where the vector
    lies almost in the null space. A variance within the rounding of zero counts as zero (`resolved_variance`) and is
    certain; those a little above are noise.
    """
    variance = resolved_variance(vector, sigma)[0].clamp_min(0)
    noise = EPS * quadratic_form(vector.abs(), sigma.abs())
    return torch.where(variance > 0, (variance + noise).sqrt() - variance.sqrt(), 0.0)


def _refuse_rounding(wrong: Bool[Tensor, "*batch"], solver: str) -> None:
    if bool(wrong.any()):
        index = _places(wrong)
        raise UncertifiedError(
            f"The {solver} solver refused {len(index)} of {wrong.numel()} problems, the first at index {index[0]}: "
            "rounding exceeds the tolerance, as `theta` lies almost in the null space of `sigma` or its score almost "
            "cancels; add a multiple of the identity to `sigma`, or centre `mu`.",
            index,
        )


def _check_metric_rounding(theta: Float[Tensor, "*batch d"], metric: Metric, reach: Float[Tensor, "*batch"]) -> None:
    """Refuse a metric in which the length of the weight is rounding."""
    wrong = EPS * quadratic_form(theta.abs(), metric.matrix.abs()) > GAP_TOLERANCE * reach
    if bool(wrong.any()):
        index = _places(wrong)
        raise UncertifiedError(
            f"The transport solver refused {len(index)} of {wrong.numel()} problems, the first at index {index[0]}: "
            "`theta` lies almost in the null space of `metric`, and rounding decides the direction of the move; add a "
            "multiple of the identity to `metric`.",
            index,
        )


def _size(margin: Float[Tensor, "*batch"], before: ScoreMoments, after: ScoreMoments) -> Float[Tensor, "*batch"]:
    """Unit of a violation: `|m| + kappa s` of the score before or after the move, whichever is larger."""
    return torch.maximum(before.mean.abs() + margin * before.std, after.mean.abs() + margin * after.std)


def _places(wrong: Bool[Tensor, "*batch"]) -> list[tuple[int, ...]]:
    return [tuple(place) for place in wrong.nonzero().tolist()]


def _apply(matrix: Float[Tensor, "*batch d d"], vector: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    return (matrix @ vector[..., None])[..., 0]
