"""The problem of RADIANT (arXiv 2501.15758), `geometry="procrustes"`, solved without a semidefinite solver.

With `H = Sigma^{1/2}`, `m = bias + theta . mu`, `n = ||theta||`, `R` the root of the floor (or 0):

    min  ||mu' - mu||^2 + ||S - H||_F^2   over  mu', S >= R   such that   bias + theta . mu' + kappa ||S theta|| <= 0.

For given `S` the best mean is `mu - theta max(0, r) / n^2`, `r = m + kappa ||S theta||`. The code below works in
units with `n = 1` and `e = theta / n`; lengths are measured in `sqrt(tr Sigma + tr R^2 + m^2)`.

**Dual.** `kappa ||S e|| lam = max {w . S e : ||w|| <= lam kappa}`; exchanging min and max leaves a concave function of
`w` alone. With `W = (w e' + e w') / 2`, `S(w) = R + (H - W/2 - R)_+`, `lam = max(2m, ||w|| / kappa, 0)`:

    D(w) = ||(H - W/2 - R)_-||^2 + <H, W> - ||W||^2 / 4 + lam m - lam^2 / 4,
    grad D(w) = S(w) e  (+ (m - lam / 2) w / (kappa ||w||)  where lam = ||w|| / kappa).

`S(w)` with its best mean is feasible, so each `w` gives a value and a bound; their difference is the gap.

**Without a floor** the optimum is `w = 2 kappa r u` with `S e = t u`, `||u|| = 1`: one increasing scalar equation for
`t` (`_closed_form`). The positive part has no effect there. In the basis `e`, complement,
`S = [[t a, t b f'], [t b f, H_2]]` with `a = p / (t + c/2)`, `b = q / (t + c/4)`, and `H >= 0` gives
`q^2 f' H_2^+ f <= p`, hence by Schur `t a >= t^2 b^2 f' H_2^+ f`, since `(t + c/4)^2 >= t (t + c/2)`. So `S >= 0`
always and no dual steps are needed.

**With a floor** semismooth Newton steps maximise `D`: the derivative of the positive part is known in the eigenbasis
that evaluating `D` needs anyway, so a step costs one `d x d` linear solve. Three to ten steps are usual, a hundred
where the floor almost vanishes along `e`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.linalg import Root, gaussian_transport, monotone_root
from radiant_lens.solvers.certificates import DenseMove
from radiant_lens.solvers.problem import EPS, Problem
from radiant_lens.solvers.procrustes_problem import read_procrustes
from radiant_lens.solvers.solutions import ProcrustesSolution

# Twice what the hardest problems of tests/solvers took. Whatever ends the climb, the gap is certified afterwards.
MAX_STEPS = 200
# Far below the 1e-6 that is certified, and above the rounding of the bound (about 1e-14).
TARGET_GAP = 1e-11
MAX_HALVINGS = 40


class _Heads(NamedTuple):
    """Problems in units in which the weight has length one."""

    root: Float[Tensor, "head d d"]
    floor: Float[Tensor, "head d d"]
    axis: Float[Tensor, "head d"]
    mean: Float[Tensor, " head"]
    margin: Float[Tensor, " head"]
    least: Float[Tensor, " head"]  # least denominator of a relative gap, 1e-3 tr Sigma


class _Point(NamedTuple):
    """A dual point `w` with everything computed from it."""

    w: Float[Tensor, "head d"]
    root: Float[Tensor, "head d d"]  # S(w)
    bound: Float[Tensor, " head"]  # D(w)
    gap: Float[Tensor, " head"]
    gradient: Float[Tensor, "head d"]
    tied: Bool[Tensor, " head"]  # lam = ||w|| / kappa, not 2m
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
    """Find the least change of mean and root covariance that puts the score's mean `margin` deviations below 0.

    The covariance of the image is `S S`, and `G` is the optimal transport from `sigma` to it. If the constraint holds
    already, the map is the identity, whether or not the floor is met. An affine map cannot give mass to directions
    without any: along them `G` leaves activations as they are, and with a floor the covariance of the image stays
    below `S S` there (the constraint still holds).

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
        UncertifiedError: a relative gap above 1e-6, a violated constraint or floor, or rounding above the tolerance
            (`theta` almost in the null space of `sigma`). Its `index` names the problems.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> solution = solve_procrustes(one, one[:, None], one, 0.0, 1.0, floor=0.25 * one[:, None])
        >>> [round(float(x), 9) for x in (solution.mean, solution.covariance, solution.value)]
        [-0.5, 0.25, 2.5]
    """
    inputs = read_procrustes(mu, sigma, theta, bias, margin, floor)
    flat, root = inputs.flat, inputs.root
    spread = _apply(root.matrix, flat.theta).norm(dim=-1)
    score = flat.bias + (flat.theta * flat.mu).sum(-1)
    moving = (score + flat.margin * spread > 0).nonzero()[:, 0]
    new_root, bound = root.matrix.clone(), torch.zeros_like(score)
    if len(moving):
        new_root[moving], bound[moving] = _solve_moving(flat, root, inputs.least_root, score, moving)
    move = _build_map(flat, root, new_root, bound, score, moving)
    certificate = inputs.certify(move)
    solution = ProcrustesSolution(
        G=move.matrix,
        g=move.constant,
        mean=certificate.mean,
        covariance=move.matrix @ flat.sigma @ move.matrix.mT,
        root=new_root,
        bound=bound,
        value=certificate.value,
        gap=certificate.gap,
        slack=certificate.slack,
        identity=torch.ones_like(score, dtype=torch.bool).index_fill(0, moving, False),
    )
    return ProcrustesSolution(**{name: inputs.unflatten(x) for name, x in vars(solution).items()})


def _apply(matrix: Float[Tensor, "head d d"], vector: Float[Tensor, "head d"]) -> Float[Tensor, "head d"]:
    return (matrix @ vector[..., None])[..., 0]


def _unit(vector: Float[Tensor, "head d"]) -> Float[Tensor, "head d"]:
    """Scale the vector to length one; zero stays zero."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)


def _solve_moving(
    flat: Problem, root: Root, floor: Tensor | None, score: Tensor, moving: Int[Tensor, " head"]
) -> tuple[Float[Tensor, "head d d"], Float[Tensor, " head"]]:
    """Compute new root and dual bound of the problems that the identity does not solve."""
    # Units for two reasons: (1) the same tolerances fit activations of any size; (2) a bound for steps is known
    # (`_newton_direction`). They are undone below, so the certificate never sees them.
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
    """Compute the optimal `w` without a floor, for `root` in place of `H`.

    With `H e = p e + q f` and `S = H - (c/4)(u e' + e u')`, `S e = t u` gives `u = a e + b f`,
    `a = p / (t + c/2)`, `b = q / (t + c/4)`, and stationarity in `lam` gives `c = 2 kappa (m + kappa t)`. Then
    `a^2 + b^2` falls as `t` grows, and the solution has `a^2 + b^2 = 1`. If it is below 1 already at `t = 0`, the
    spread vanishes: `S e = 0`, `w = 2 p e + 4 q f`, and `u` is shorter than 1.
    """
    e, m, kappa = heads.axis, heads.mean, heads.margin
    image = _apply(root, e)
    p = (e * image).sum(-1)
    rest = image - p[:, None] * e
    q, f = rest.norm(dim=-1), _unit(rest)
    tiny = torch.finfo(m.dtype).tiny

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = 2 * kappa * (m + kappa * t)
        return c, p / (t + c / 2).clamp_min(tiny), q / (t + c / 4).clamp_min(tiny)

    def excess(t: Tensor) -> Tensor:
        _, a, b = coefficients(t)
        return a.square() + b.square() - 1

    # `c >= 0` needs `t >= -m / kappa`: a smaller spread would meet the constraint with room to spare. `t` is at most
    # the spread of `root` itself, as the move only shrinks it.
    low = (-m / kappa).clamp_min(0)
    collapsed = excess(low) <= 0
    t = monotone_root(excess, low, torch.maximum(low, image.norm(dim=-1)))
    c, a, b = coefficients(t)
    a, b = torch.where(collapsed, 2 * p, c * a), torch.where(collapsed, 4 * q, c * b)
    return a[:, None] * e + b[:, None] * f


def _start(heads: _Heads) -> Float[Tensor, "head d"]:
    """Choose the starting point of the climb for problems with a floor.

    The closed form for `S(0)` in place of `H` is used, or that for `H` itself where it is better.
    """
    # A start at 0 would fail: for `m < 0` the term `lam m - lam^2 / 4` makes `D` fall from 0 like -||w||, a kink
    # without a gradient, and Newton steps from its wrong side jump back and forth across it. The closed form for
    # `S(0) = R + (H - R)_+` has two purposes:
    # (1) it lies on the right side of the kink: it is the optimum of the problem in which `S(w)` is `S(0) - W/2`,
    #     the positive part frozen at `w = 0`;
    # (2) it is 0 exactly when 0 is optimal (`settled`: the root nearest to `H` above the floor meets the constraint
    #     with the old mean), and then no step is needed.
    # It is poor where the floor has almost nothing along `e` (`blind`): there the spread falls far below that of
    # `S(0)`, and the closed form for `H` is optimal or near. A bad start cannot give a wrong solution: a climb that
    # ends too low leaves a gap, and `procrustes_certificate` refuses it.
    lifted = _evaluate(heads, torch.zeros_like(heads.axis)).root
    start = _closed_form(heads, lifted)
    settled = heads.mean + heads.margin * _apply(lifted, heads.axis).norm(dim=-1) <= 0
    start = torch.where(settled[:, None], 0.0, start)
    blind = ((_apply(heads.floor, heads.axis).norm(dim=-1) <= 1e-2) & ~settled).nonzero()[:, 0]
    if len(blind):
        some = _pick(heads, blind)
        other = _closed_form(some, some.root)
        better = _evaluate(some, other).bound > _evaluate(some, start[blind]).bound
        start[blind] = torch.where(better[:, None], other, start[blind])
    return start


def _evaluate(heads: _Heads, w: Float[Tensor, "head d"]) -> _Point:
    """Compute `S(w)`, `D(w)`, its gradient, and the gap to the value of `S(w)` with its best mean."""
    outer = w[:, :, None] * heads.axis[:, None, :]
    half = (outer + outer.mT) / 4  # W / 2
    values, vectors = torch.linalg.eigh(heads.root - half - heads.floor)
    root = heads.floor + (vectors * values.clamp_min(0)[:, None, :]) @ vectors.mT

    length = w.norm(dim=-1)
    # `D` maximises over `lam >= ||w|| / kappa`; the free maximum of `lam m - lam^2 / 4` is at 2m. At `w = 0` the
    # second branch has no direction, so it never counts as tied.
    free = (2 * heads.mean).clamp_min(0)
    tied = (length / heads.margin >= free) & (length > 0)
    multiplier = torch.maximum(free, length / heads.margin)
    bound = values.clamp_max(0).square().sum(-1) + 2 * (heads.root * half).sum((-2, -1)) - half.square().sum((-2, -1))
    bound = bound + multiplier * heads.mean - multiplier.square() / 4

    # The gradient of a concave dual is the constraint at its primal point: `S(w) e`, plus the term of `lam`.
    image = _apply(root, heads.axis)
    pull = torch.where(tied, (heads.mean - multiplier / 2) / heads.margin, 0.0)
    shift = (heads.mean + heads.margin * image.norm(dim=-1)).clamp_min(0)
    value = (root - heads.root).square().sum((-2, -1)) + shift.square()
    gap = (value - bound) / torch.maximum(value, heads.least)
    return _Point(w, root, bound, gap, image + pull[:, None] * _unit(w), tied, multiplier, values, vectors)


def _maximise(
    heads: _Heads, start: Float[Tensor, "head d"]
) -> tuple[Float[Tensor, "head d d"], Float[Tensor, " head"]]:
    """Maximise `D` by semismooth Newton steps; solved heads drop out of the batch."""
    # The best point of each head, not the last one: near the top the gap of a head no longer falls at every step.
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
        # A gap this small that no longer halves is rounding.
        stalled = (before <= 1e-9) & (point.gap > before / 2)
        climbing = (point.gap > TARGET_GAP) & moved & ~stalled
    return best_root, best_bound


def _pick(batch: Batch, where: Tensor) -> Batch:
    return type(batch)(*(x[where] for x in batch))


def _newton_direction(heads: _Heads, point: _Point) -> Float[Tensor, "head d"]:
    """Compute Newton's direction for `D`, with the derivative of the positive part (Löwner's matrix).

    In the eigenbasis, with `y = Q'e`, `L_ij = (v_i^+ - v_j^+) / (v_i - v_j)` (1 where both are positive, 0
    where neither is), the derivative of `S(w) e` is `-(diag(L y^2) + diag(y) L diag(y)) / 4`. Where
    `lam = ||w|| / kappa` the rest of `D` adds, with `u = w / ||w||`,
    `-(1 / 2 kappa^2) u u' - ((lam/2 - m) / (kappa ||w||)) (I - u u')`.
    """
    positive = point.values.clamp_min(0)
    both = (point.values[:, :, None] > 0) & (point.values[:, None, :] > 0)
    difference = point.values[:, :, None] - point.values[:, None, :]
    # Equal eigenvalues: the quotient becomes the derivative of the positive part, 1 or 0. It is not unique at exactly
    # 0; any choice gives an ascent direction, and the line search checks the rise (semismooth Newton, Qi and Sun 1993).
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
    # across (I - u u') + along u u', in one rank-one and one diagonal term; `across` divides by ||w||, which is not 0
    # where tied.
    curvature = curvature + (along - across)[:, None, None] * u[:, :, None] * u[:, None, :]
    # Directions along which `D` is flat (both eigenvalues below the floor) would make the system singular. The added
    # 1e-12 changes the step there only, and the line search rejects a step that does not rise.
    curvature.diagonal(dim1=-2, dim2=-1).add_(across[:, None] + 1e-12)
    step = torch.linalg.solve(curvature, _apply(point.vectors.mT, point.gradient))
    step = _apply(point.vectors, step)
    # The optimum lies within 2 kappa (m + kappa t) <= 2 kappa (1 + 2 kappa) of 0 in these units.
    farthest = 4 * heads.margin * (1 + 2 * heads.margin)
    return step * (farthest / step.norm(dim=-1).clamp_min(1e-300)).clamp_max(1.0)[:, None]


def _line_search(
    heads: _Heads, point: _Point, direction: Float[Tensor, "head d"]
) -> tuple[_Point, Bool[Tensor, " head"]]:
    """Halve each head's step until `D` rises by Armijo's share; the mask is False for heads without such a step."""
    # Each head has its own step length: only heads that have not risen yet (`open_`) are evaluated again, so one hard
    # head does not cost evaluations of all others, and no head's result depends on its batch.
    slope = (direction * point.gradient).sum(-1)
    step = torch.ones_like(slope)
    best = list(point)
    open_ = torch.arange(len(slope), device=slope.device)
    for _ in range(MAX_HALVINGS):
        trial = _evaluate(_pick(heads, open_), point.w[open_] + step[open_, None] * direction[open_])
        # Near the top the rise is smaller than the rounding of `D`, which must not end the climb: hence the last term.
        needed = point.bound[open_] + 1e-4 * step[open_] * slope[open_] - 1e-14 * point.bound[open_].abs()
        risen = trial.bound >= needed
        best = [old.index_copy(0, open_[risen], new[risen]) for old, new in zip(best, trial)]
        open_ = open_[~risen]
        if len(open_) == 0:
            break
        step[open_] /= 2
    moved = torch.ones_like(slope, dtype=torch.bool).index_fill(0, open_, False)
    return _Point(*best), moved


def _build_map(
    flat: Problem, root: Root, new_root: Tensor, bound: Tensor, score: Tensor, moving: Int[Tensor, " head"]
) -> DenseMove:
    """Build the map of each solution; its mean is shifted until the map itself meets the constraint."""
    eye = torch.eye(flat.theta.shape[-1], dtype=score.dtype, device=score.device)
    matrix, constant = eye.expand_as(new_root).clone(), torch.zeros_like(flat.mu)
    moved = Root(root.matrix[moving], root.values[moving], root.vectors[moving])
    matrix[moving] = gaussian_transport(moved, new_root[moving])

    # Three roundings could leave the constraint violated by a last bit: that of S, that of G (so the larger of the
    # two spreads counts), and that of the mean, which the certificate computes as G mu + g. The excess is rounded up
    # by more than all of them; what it costs shows in the certificate's gap.
    spread = torch.maximum(
        _apply(new_root, flat.theta).norm(dim=-1), _apply(root.matrix, _apply(matrix.mT, flat.theta)).norm(dim=-1)
    )
    size = (flat.theta.abs() * (flat.mu.abs() + _apply(matrix.abs(), flat.mu.abs()))).sum(-1)
    rounding = 8 * EPS * (flat.bias.abs() + size + flat.margin * spread)
    excess = (score + flat.margin * spread + rounding).clamp_min(0)
    shift = (excess / flat.theta.square().sum(-1))[moving]
    mean = flat.mu[moving] - shift[:, None] * flat.theta[moving]
    constant[moving] = mean - _apply(matrix[moving], flat.mu[moving])
    return DenseMove(matrix, constant, new_root, bound)
