"""L-BFGS for many losses of affine scores at once: one quasi-Newton method for each head, in batched tensors.

Three things make it fast on many heads:

1. A step changes scores linearly, so the line search needs no pass over the activations: two products an iteration.
2. Steps are taken in the metric of the loss's curvature at the start, if there is one. Activations that hardly vary in
   some directions then need no more steps than others.
3. Heads are masked instead of looped over: each has its own history, step and stopping, and none changes another.

It can fail where the metric is far from the curvature on the way, as for a loss that is not convex: a direction may
then not go down. `_direction` detects that and takes the plain gradient, and the line search never accepts a larger
loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Parameters = Float[Tensor, "head n_parameters"]
ScoreLoss = Callable[[Float[Tensor, "head example"]], tuple[Float[Tensor, " head"], Float[Tensor, "head example"]]]
"""Scores to each head's loss and its slope in every score."""
Curvature = Callable[[Float[Tensor, "head example"]], Float[Tensor, "head example"]]
"""Scores to a second derivative of the loss in every score, or to an approximation that is nowhere negative."""
Metric = Callable[[Parameters], Parameters]

# Pairs of steps and gradients that are remembered; halvings of a step; ridge of the metric, relative to its diagonal.
MEMORY, MAX_HALVINGS, RIDGE = 10, 12, 1e-5


def affine_scores(x: Float[Tensor, "head example d"], parameters: Parameters) -> Float[Tensor, "head example"]:
    """Compute `x . weight + bias`; the bias is the last parameter."""
    # A row times a matrix: the other way round, BLAS would be called for one score at a time.
    return torch.bmm(parameters[:, None, :-1], x.mT).squeeze(1).add_(parameters[:, -1:])


def minimize(
    x: Float[Tensor, "head example d"],
    loss: ScoreLoss,
    start: Parameters,
    *,
    l2: float,
    max_iterations: int,
    tolerance: float = 1e-6,
    curvature: Curvature | None = None,
    visit: Callable[[Parameters], None] | None = None,
) -> Parameters:
    """Minimise `loss(scores) + l2 / 2 ||weight||^2` for every head, each with its own history and step.

    Args:
        x: standardised activations.
        loss: of the scores.
        start: one starting point a head.
        l2: penalty on weights, not on the bias.
        max_iterations: at least 1.
        tolerance: a head has converged when its loss fell by no more than this share in each of two steps.
        curvature: evaluated at the start, for the metric; None: the Euclidean metric of the parameters.
        visit: called with the parameters after each step, for instance to keep the best.

    Returns:
        The last parameters; their loss is never above that of the start.
    """
    penalty = torch.full_like(start[:1], l2)
    penalty[:, -1] = 0
    parameters, scores = start, affine_scores(x, start)
    data_loss, slope = loss(scores)
    value = data_loss + 0.5 * (penalty * parameters.square()).sum(1)
    gradient = _gradient(x, slope) + penalty * parameters
    metric = _unchanged if curvature is None else _metric(x, curvature(scores), penalty)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    patience = torch.full_like(value, 2)
    for _ in range(max_iterations):
        direction = _direction(gradient, history, metric)
        change = affine_scores(x, direction)
        step, new_value = _line_search(scores, change, parameters, direction, value, gradient, loss, penalty)
        # Converged heads stop moving, so a head's weights do not depend on which heads it was batched with.
        step, new_value = torch.where(patience > 0, step, 0.0), torch.where(patience > 0, new_value, value)
        moved = step[:, None] * direction
        parameters = parameters + moved
        scores = torch.addcmul(scores, step[:, None], change)
        new_gradient = _gradient(x, loss(scores)[1]) + penalty * parameters
        turned = new_gradient - gradient
        history = [*history[1 - MEMORY :], (moved, turned, metric(turned))]
        # One small step may be a bad step; two in a row are convergence.
        patience = torch.where(value - new_value > tolerance * value.abs(), 2.0, patience - 1)
        value, gradient = new_value, new_gradient
        if visit is not None:
            visit(parameters)
        if not bool((patience > 0).any()):
            break
    return parameters


def _gradient(x: Tensor, slope: Tensor) -> Parameters:
    return torch.cat([(slope[:, None] @ x).squeeze(1), slope.sum(1, keepdim=True)], dim=1)


def _unchanged(gradient: Parameters) -> Parameters:
    return gradient


def _metric(x: Float[Tensor, "head example d"], curvature: Float[Tensor, "head example"], penalty: Tensor) -> Metric:
    """Invert the second derivative in the parameters, with a ridge: a function from gradients to steps."""
    # With X = [x 1], scores s = X p and curvature c, the second derivative in p is X' diag(c) X + diag(penalty).
    weighted = curvature[..., None] * x
    hessian = torch.diag_embed(penalty.expand(len(x), -1).double())
    hessian[:, :-1, :-1] += x.mT @ weighted
    hessian[:, -1, :-1] = hessian[:, :-1, -1] = weighted.sum(1)
    hessian[:, -1, -1] += curvature.sum(1)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    # A view: adding to it changes the matrix. The ridge keeps a constant activation from making it singular.
    diagonal += RIDGE * diagonal.mean(1, keepdim=True) + torch.finfo(x.dtype).tiny
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).to(x)
    return lambda gradient: (inverse @ gradient[..., None]).squeeze(-1)


def _direction(gradient: Parameters, history: list[tuple[Tensor, Tensor, Tensor]], metric: Metric) -> Parameters:
    """Compute the L-BFGS direction (Nocedal and Wright, 2006, algorithm 7.4) of every head.

    Pairs without positive curvature are skipped, head by head, by a `rho` of 0.
    """
    q, pairs = gradient.clone(), []
    scale = torch.zeros_like(q[:, :1])
    for s, y, measured in history:
        curvature, squared = (s * y).sum(1, keepdim=True), y.square().sum(1, keepdim=True)
        # L-BFGS needs s . y > 0, or its matrix is not positive definite. Where the loss is concave that fails; a head
        # that did not move has s = y = 0.
        usable = curvature > 1e-10 * squared
        # H0 = scale * metric with scale = s . y / y . metric(y): equation 7.20, in the metric. The newest usable pair
        # sets it.
        scale = torch.where(usable, curvature / (y * measured).sum(1, keepdim=True).clamp_min(1e-30), scale)
        pairs.append((s, y, torch.where(usable, 1 / curvature, 0.0)))
    alphas = []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * (s * q).sum(1, keepdim=True))
        q = q - alphas[-1] * y
    r = metric(q)
    # Without a pair there is no scale: the first step is shortened to length one in the metric, if it is longer.
    r = r * torch.where(scale > 0, scale, 1 / (q * r).sum(1, keepdim=True).sqrt().clamp_min(1.0))
    for (s, y, rho), alpha in zip(pairs, reversed(alphas)):
        r = r + s * (alpha - rho * (y * r).sum(1, keepdim=True))
    # Rounding, or a metric far from the curvature, can turn the direction uphill; the gradient itself never is.
    downhill = (r * gradient).sum(1, keepdim=True) > 0
    return -torch.where(downhill, r, gradient)


def _line_search(
    scores: Tensor,
    change: Tensor,
    parameters: Parameters,
    direction: Parameters,
    value: Tensor,
    gradient: Parameters,
    loss: ScoreLoss,
    penalty: Tensor,
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Halve each head's step until Armijo's condition holds; the step is 0 where it never does.

    Scores are linear in the parameters, so those of a trial step are `scores + step * change`.
    """
    slope = (direction * gradient).sum(1)
    best_step, best_value = torch.zeros_like(value), value.clone()
    step, pending = 1.0, torch.arange(len(value), device=value.device)
    for _ in range(MAX_HALVINGS):
        # Only heads without a step yet: most take the first one, and a few take many halvings.
        some = slice(None) if len(pending) == len(value) else pending
        trial = loss(torch.add(scores[some], change[some], alpha=step))[0]
        trial = trial + 0.5 * (penalty * (parameters[some] + step * direction[some]).square()).sum(1)
        # Armijo: the loss falls by at least a small share of what the slope promises. NaN and infinity do not pass.
        enough = trial <= value[some] + 1e-4 * step * slope[some]
        best_step[pending[enough]], best_value[pending[enough]] = step, trial[enough]
        pending = pending[~enough]
        if len(pending) == 0:
            break
        step = step / 2
    return best_step, best_value
