"""The paper's problem (DESIGN 2.2, `geometry="procrustes"`), solved without a semidefinite solver.

With `H = Sigma^{1/2}`, `m = bias + theta . mu`, `n = ||theta||`, `R` the root of the floor (or 0):

    min  ||mu' - mu||^2 + ||S - H||_F^2   over  mu', S >= R   such that   bias + theta . mu' + kappa ||S theta|| <= 0.

For given `S` the best mean is `mu - theta max(0, r) / n^2`, `r = m + kappa ||S theta||`. Below everything is in
units in which `n = 1`, with `e = theta / n`; lengths are measured in `sqrt(tr Sigma + tr R^2 + m^2)`.

**Dual.** `kappa ||S e|| lam = max {w . S e : ||w|| <= lam kappa}`; exchanging min and max leaves a concave function of
`w` alone. With `W = (w e' + e w') / 2`, `S(w) = R + (H - W/2 - R)_+`, `lam = max(2m, ||w|| / kappa, 0)`:

    D(w) = ||(H - W/2 - R)_-||^2 + <H, W> - ||W||^2 / 4 + lam m - lam^2 / 4,
    grad D(w) = S(w) e  (+ (m - lam / 2) w / (kappa ||w||)  where lam = ||w|| / kappa).

`S(w)` with its best mean is feasible, so each `w` gives a value and a bound; their difference is the gap.

**Without a floor** the optimum is `w = 2 kappa r u` with `S e = t u`, `||u|| = 1`: one increasing scalar equation for
`t` (`_closed_form`). The positive part is idle there: in the basis `e`, complement, `S = [[t a, t b f'], [t b f, H_2]]`
with `a = p / (t + c/2)`, `b = q / (t + c/4)`, and `H >= 0` gives `q^2 f' H_2^+ f <= p`, hence by Schur
`t a >= t^2 b^2 f' H_2^+ f`, since `(t + c/4)^2 >= t (t + c/2)`. So `S >= 0` always and no dual steps are needed.

**With a floor** semismooth Newton steps on `D`: the derivative of the positive part is known in the eigenbasis that
evaluating `D` needs anyway, so a step costs one `d x d` linear solve. Three to ten steps are usual,
a hundred where the floor all but vanishes along `e`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.linalg import Root, gaussian_transport, monotone_root, square_root
from radiant_lens.solvers.problem import Problem, certify, read_problem, read_symmetric
from radiant_lens.solvers.solutions import ProcrustesSolution

MAX_STEPS = 200
TARGET_GAP = 1e-11
MAX_HALVINGS = 40
EPS = torch.finfo(torch.float64).eps


class _Heads(NamedTuple):
    """Problems in units in which the weight has length one."""

    root: Float[Tensor, "head d d"]
    floor: Float[Tensor, "head d d"]
    axis: Float[Tensor, "head d"]
    mean: Float[Tensor, " head"]
    margin: Float[Tensor, " head"]
    least: Float[Tensor, " head"]  # what a gap is at least measured against, 1e-3 tr Sigma


class _Point(NamedTuple):
    """A dual point `w` with all that was computed from it."""

    w: Float[Tensor, "head d"]
    root: Float[Tensor, "head d d"]  # S(w)
    bound: Float[Tensor, " head"]  # D(w)
    gap: Float[Tensor, " head"]
    gradient: Float[Tensor, "head d"]
    tied: Bool[Tensor, " head"]  # whether lam = ||w|| / kappa
    multiplier: Float[Tensor, " head"]
    values: Float[Tensor, "head d"]
    vectors: Float[Tensor, "head d d"]


Batch = TypeVar("Batch", _Heads, _Point)


@torch.no_grad()
def solve_procrustes(
    mu: Float[Tensor, "*#batch d"],
    sigma: Float[Tensor, "*#batch d d"],
    theta: Float[Tensor, "*#batch d"],
    bias: float | Float[Tensor, "*#batch"],
    margin: float | Float[Tensor, "*#batch"],
    *,
    floor: Float[Tensor, "*#batch d d"] | None = None,
) -> ProcrustesSolution:
    """Least change of mean and root covariance after which the score's mean lies `margin` deviations below 0.

    The image's covariance is `S S` and the map `G` its optimal transport from `sigma`. Where the
    constraint holds already the map is the identity, whether or not the floor is met. Directions in
    which `sigma` has no mass cannot be given any by an affine map: along them `G` leaves activations as
    they are, and with a floor the image's covariance stays below `S S` there (the constraint still holds).

    Args:
        mu: means of the activations to be moved.
        sigma: their covariances, symmetric and positive semidefinite.
        theta: weight of each detector, not zero.
        bias: its bias; a positive score is undesirable.
        margin: `kappa`, positive. With a floor, rounding closes the gap up to about 1e3 and may not at 1e4.
        floor: covariance whose symmetric root `S` must not fall below (in the semidefinite order). None: no floor.

    Raises:
        InvalidArgumentError: shapes that do not fit, a margin that is not positive, a zero weight, a
            covariance that is not symmetric or not positive semidefinite.
        DataError: an input that is not finite.
        UncertifiedError: a relative gap above 1e-6 or a violated constraint; its `index` says where.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> found = solve_procrustes(one, one[:, None], one, 0.0, 1.0, floor=0.25 * one[:, None])
        >>> [round(float(x), 9) for x in (found.mean, found.covariance, found.value)]
        [-0.5, 0.25, 2.5]
    """
    problem = read_problem(mu, sigma, theta, bias, margin)
    batch, d = problem.margin.shape, problem.theta.shape[-1]
    flat = Problem(*(x.reshape((-1, *x.shape[len(batch) :])) for x in problem))
    root = _square_root("sigma", flat.sigma)
    least_root = None
    if floor is not None:
        read = read_symmetric("floor", floor, batch, d, flat.mu.device)
        least_root = _square_root("floor", read.reshape(-1, d, d)).matrix

    spread = _apply(root.matrix, flat.theta).norm(dim=-1)
    score = flat.bias + (flat.theta * flat.mu).sum(-1)
    moving = (score + flat.margin * spread > 0).nonzero()[:, 0]
    new_root, bound = root.matrix.clone(), torch.zeros_like(score)
    if len(moving):
        new_root[moving], bound[moving] = _solve_moving(flat, root, least_root, score, moving)
    solution = _assemble(flat, root, new_root, bound, score, moving)
    certify(
        solution.gap.view(batch),
        solution.slack.view(batch),
        (score.abs() + flat.margin * spread).view(batch),
        "procrustes",
    )
    return ProcrustesSolution(**{name: x.reshape((*batch, *x.shape[1:])) for name, x in vars(solution).items()})


def _square_root(name: str, covariance: Float[Tensor, "head d d"]) -> Root:
    root, least = square_root(covariance)
    # Covariances computed in float32 may be indefinite by their own rounding.
    if bool((least < -1e-6 * root.values[:, -1].square()).any()):
        raise InvalidArgumentError(
            f"`{name}` must be positive semidefinite; its least eigenvalue is {float(least.min()):g}."
        )
    return root


def _apply(matrix: Float[Tensor, "head d d"], vector: Float[Tensor, "head d"]) -> Float[Tensor, "head d"]:
    return (matrix @ vector[..., None])[..., 0]


def _unit(vector: Float[Tensor, "head d"]) -> Float[Tensor, "head d"]:
    """The vector at length one; zero stays zero."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)


def _solve_moving(
    flat: Problem, root: Root, floor: Tensor | None, score: Tensor, moving: Int[Tensor, " head"]
) -> tuple[Float[Tensor, "head d d"], Float[Tensor, " head"]]:
    """New root and dual bound of the problems that the identity does not solve."""
    length = flat.theta[moving].norm(dim=-1)
    mean, trace = score[moving] / length, root.values[moving].square().sum(-1)
    h = root.matrix[moving]
    r = torch.zeros_like(h[:1]).expand_as(h) if floor is None else floor[moving]
    unit = (trace + r.square().sum((-2, -1)) + mean.square()).sqrt()
    heads = _Heads(
        h / unit[:, None, None],
        r / unit[:, None, None],
        flat.theta[moving] / length[:, None],
        mean / unit,
        flat.margin[moving],
        1e-3 * trace / unit.square(),
    )
    start = _closed_form(heads, heads.root) if floor is None else _start(heads)
    best_root, bound = _maximise(heads, start)
    return best_root * unit[:, None, None], bound * unit.square()


def _closed_form(heads: _Heads, root: Float[Tensor, "head d d"]) -> Float[Tensor, "head d"]:
    """The optimal `w` without a floor, for `root` in the place of `H`.

    With `H e = p e + q f` and `S = H - (c/4)(u e' + e u')`, `S e = t u` gives `u = a e + b f`,
    `a = p / (t + c/2)`, `b = q / (t + c/4)`, and stationarity in `lam` gives `c = 2 kappa (m + kappa t)`. Then
    `a^2 + b^2 = 1` falls in `t`. Where it is below 1 already at the least `t`, 0, the constraint cannot tell
    directions: `S e = 0`, `w = 2 p e + 4 q f`.
    """
    e, m, kappa = heads.axis, heads.mean, heads.margin
    image = _apply(root, e)
    p = (e * image).sum(-1)
    rest = image - p[:, None] * e
    q, f = rest.norm(dim=-1), _unit(rest)
    tiny = torch.finfo(m.dtype).tiny

    def parts(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = 2 * kappa * (m + kappa * t)
        return c, p / (t + c / 2).clamp_min(tiny), q / (t + c / 4).clamp_min(tiny)

    def excess(t: Tensor) -> Tensor:
        _, a, b = parts(t)
        return a.square() + b.square() - 1

    low = (-m / kappa).clamp_min(0)
    collapsed = excess(low) <= 0
    t = monotone_root(excess, low, torch.maximum(low, image.norm(dim=-1)))
    c, a, b = parts(t)
    a, b = torch.where(collapsed, 2 * p, c * a), torch.where(collapsed, 4 * q, c * b)
    return a[:, None] * e + b[:, None] * f


def _start(heads: _Heads) -> Float[Tensor, "head d"]:
    """A point to climb from when there is a floor.

    `D` has a kink at 0 when `m < 0`; a start on its wrong side makes Newton's steps run across it. The
    closed form for `S(0)` in the place of `H` points the right way, and is 0 exactly when 0 is optimal.
    Where the floor has little along `e` the closed form for `H` itself is optimal or near it, and the
    better of the two is taken.
    """
    lifted = _evaluate(heads, torch.zeros_like(heads.axis)).root
    start = _closed_form(heads, lifted)
    settled = heads.mean + heads.margin * _apply(lifted, heads.axis).norm(dim=-1) <= 0
    start = torch.where(settled[:, None], 0.0, start)
    blind = ((_apply(heads.floor, heads.axis).norm(dim=-1) <= 1e-2) & ~settled).nonzero()[:, 0]
    if len(blind):
        part = _pick(heads, blind)
        other = _closed_form(part, part.root)
        better = _evaluate(part, other).bound > _evaluate(part, start[blind]).bound
        start[blind] = torch.where(better[:, None], other, start[blind])
    return start


def _evaluate(heads: _Heads, w: Float[Tensor, "head d"]) -> _Point:
    """`S(w)`, `D(w)`, its gradient, and the gap to the value of `S(w)` with its best mean."""
    outer = w[:, :, None] * heads.axis[:, None, :]
    half = (outer + outer.mT) / 4  # W / 2
    values, vectors = torch.linalg.eigh(heads.root - half - heads.floor)
    root = heads.floor + (vectors * values.clamp_min(0)[:, None, :]) @ vectors.mT

    length = w.norm(dim=-1)
    free = (2 * heads.mean).clamp_min(0)
    tied = (length / heads.margin >= free) & (length > 0)
    multiplier = torch.maximum(free, length / heads.margin)
    bound = values.clamp_max(0).square().sum(-1) + 2 * (heads.root * half).sum((-2, -1)) - half.square().sum((-2, -1))
    bound = bound + multiplier * heads.mean - multiplier.square() / 4

    image = _apply(root, heads.axis)
    pull = torch.where(tied, (heads.mean - multiplier / 2) / heads.margin, 0.0)
    shift = (heads.mean + heads.margin * image.norm(dim=-1)).clamp_min(0)
    value = (root - heads.root).square().sum((-2, -1)) + shift.square()
    gap = (value - bound) / torch.maximum(value, heads.least)
    return _Point(w, root, bound, gap, image + pull[:, None] * _unit(w), tied, multiplier, values, vectors)


def _maximise(
    heads: _Heads, start: Float[Tensor, "head d"]
) -> tuple[Float[Tensor, "head d d"], Float[Tensor, " head"]]:
    """Climb to the top of `D` by semismooth Newton steps; solved heads drop out of the batch."""
    point = _evaluate(heads, start)
    best_root, best_bound, best_gap = point.root, point.bound, point.gap
    index = torch.arange(len(start), device=start.device)
    climbing = point.gap > TARGET_GAP
    for _ in range(MAX_STEPS):
        if not bool(climbing.any()):
            break
        index, heads, point = index[climbing], _pick(heads, climbing), _pick(point, climbing)
        point, moved = _line_search(heads, point, _newton_direction(heads, point))
        before = best_gap[index]
        better = point.gap < before
        won = index[better]
        best_root[won], best_bound[won], best_gap[won] = point.root[better], point.bound[better], point.gap[better]
        # What no longer halves a gap this small is rounding.
        stalled = (before <= 1e-9) & (point.gap > before / 2)
        climbing = (point.gap > TARGET_GAP) & moved & ~stalled
    return best_root, best_bound


def _pick(batch: Batch, where: Tensor) -> Batch:
    return type(batch)(*(x[where] for x in batch))


def _newton_direction(heads: _Heads, point: _Point) -> Float[Tensor, "head d"]:
    """Newton's direction for `D`, with the derivative of the positive part (Löwner's matrix).

    In the eigenbasis, with `y = Q'e`, `L_ij = (v_i^+ - v_j^+) / (v_i - v_j)` (1 where both are positive, 0
    where neither is), the derivative of `S(w) e` is `-(diag(L y^2) + diag(y) L diag(y)) / 4`. Where
    `lam = ||w|| / kappa` the rest of `D` adds, with `u = w / ||w||`,
    `-(1 / 2 kappa^2) u u' - ((lam/2 - m) / (kappa ||w||)) (I - u u')`.
    """
    positive = point.values.clamp_min(0)
    both = (point.values[:, :, None] > 0) & (point.values[:, None, :] > 0)
    difference = point.values[:, :, None] - point.values[:, None, :]
    near = difference.abs() <= 1e-14
    lowner = (positive[:, :, None] - positive[:, None, :]) / torch.where(near, 1.0, difference)
    lowner = torch.where(near, both.double(), lowner)

    y = _apply(point.vectors.mT, heads.axis)
    curvature = lowner * y[:, :, None] * y[:, None, :] + torch.diag_embed(_apply(lowner, y.square()))
    curvature = curvature / 4
    u = _apply(point.vectors.mT, _unit(point.w))
    across = (point.multiplier / 2 - heads.mean) / (heads.margin * point.w.norm(dim=-1).clamp_min(1e-300))
    along = 0.5 / heads.margin.square()
    across, along = torch.where(point.tied, across, 0.0), torch.where(point.tied, along, 0.0)
    curvature = curvature + (along - across)[:, None, None] * u[:, :, None] * u[:, None, :]
    # Directions that change nothing (both eigenvalues below the floor) would make the system singular.
    curvature.diagonal(dim1=-2, dim2=-1).add_(across[:, None] + 1e-12)
    step = torch.linalg.solve(curvature, _apply(point.vectors.mT, point.gradient))
    step = _apply(point.vectors, step)
    # The optimum lies within 2 kappa (m + kappa t) <= 2 kappa (1 + 2 kappa) of 0 in these units.
    farthest = 4 * heads.margin * (1 + 2 * heads.margin)
    return step * (farthest / step.norm(dim=-1).clamp_min(1e-300)).clamp_max(1.0)[:, None]


def _line_search(
    heads: _Heads, point: _Point, direction: Float[Tensor, "head d"]
) -> tuple[_Point, Bool[Tensor, " head"]]:
    """Halve each head's step until `D` rises by Armijo's share; False where no step does."""
    slope = (direction * point.gradient).sum(-1)
    step = torch.ones_like(slope)
    best = list(point)
    open_ = torch.arange(len(slope), device=slope.device)
    for _ in range(MAX_HALVINGS):
        trial = _evaluate(_pick(heads, open_), point.w[open_] + step[open_, None] * direction[open_])
        # Near the top `D` no longer resolves the rise; its rounding must not end the climb.
        needed = point.bound[open_] + 1e-4 * step[open_] * slope[open_] - 1e-14 * point.bound[open_].abs()
        risen = trial.bound >= needed
        best = [old.index_copy(0, open_[risen], new[risen]) for old, new in zip(best, trial)]
        open_ = open_[~risen]
        if len(open_) == 0:
            break
        step[open_] /= 2
    moved = torch.ones_like(slope, dtype=torch.bool).index_fill(0, open_, False)
    return _Point(*best), moved


def _assemble(
    flat: Problem, root: Root, new_root: Tensor, bound: Tensor, score: Tensor, moving: Int[Tensor, " head"]
) -> ProcrustesSolution:
    """Map, moments and certificate; the mean is shifted until the map that is handed back meets the constraint."""
    still = torch.ones_like(score, dtype=torch.bool).index_fill(0, moving, False)
    eye = torch.eye(flat.theta.shape[-1], dtype=score.dtype, device=score.device)
    matrix = eye.expand_as(new_root).clone()
    moved = Root(root.matrix[moving], root.values[moving], root.vectors[moving])
    matrix[moving] = gaussian_transport(moved, new_root[moving])

    spread = torch.maximum(
        _apply(new_root, flat.theta).norm(dim=-1), _apply(root.matrix, _apply(matrix.mT, flat.theta)).norm(dim=-1)
    )
    rounding = 8 * EPS * (flat.bias.abs() + (flat.theta * flat.mu).abs().sum(-1) + flat.margin * spread)
    excess = (score + flat.margin * spread + rounding).clamp_min(0)
    shift = torch.where(still, 0.0, excess / flat.theta.square().sum(-1))
    mean = flat.mu - shift[:, None] * flat.theta

    value = shift.square() * flat.theta.square().sum(-1) + (new_root - root.matrix).square().sum((-2, -1))
    size = torch.maximum(value, 1e-3 * root.values.square().sum(-1)).clamp_min(torch.finfo(value.dtype).tiny)
    return ProcrustesSolution(
        G=matrix,
        g=torch.where(still[:, None], 0.0, mean - _apply(matrix, flat.mu)),
        mean=mean,
        covariance=torch.where(still[:, None, None], flat.sigma, matrix @ flat.sigma @ matrix.mT),
        root=new_root,
        value=value,
        gap=(value - bound) / size,
        slack=-(flat.bias + (flat.theta * mean).sum(-1) + flat.margin * spread),
        identity=still,
    )
