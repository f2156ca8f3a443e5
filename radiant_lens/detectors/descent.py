"""L-BFGS for many losses of affine scores at once.

A step changes scores linearly, so a line search costs no pass over the activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Parameters = Float[Tensor, "head n_parameters"]
ScoreLoss = Callable[[Float[Tensor, "head example"]], tuple[Float[Tensor, " head"], Float[Tensor, "head example"]]]
"""Scores to each head's loss and its slope in every score."""

MEMORY, MAX_HALVINGS = 10, 12


def affine_scores(x: Float[Tensor, "head example d"], parameters: Parameters) -> Float[Tensor, "head example"]:
    """`x . weight + bias`, the bias being the last parameter."""
    return torch.baddbmm(parameters[:, -1:, None], x, parameters[:, :-1, None]).squeeze(-1)


def minimize(
    x: Float[Tensor, "head example d"],
    loss: ScoreLoss,
    start: Parameters,
    *,
    l2: float,
    max_iterations: int,
    tolerance: float = 1e-6,
    visit: Callable[[Parameters], None] | None = None,
) -> Parameters:
    """Minimise `loss(scores) + l2 / 2 ||weight||^2` for every head, each with its own history and step.

    Args:
        x: standardised activations.
        loss: of the scores.
        start: one starting point a head.
        l2: penalty on weights, not on the bias.
        max_iterations: at least 1.
        tolerance: all is done when no head's loss fell by more than this share in the last two steps.
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
    history: list[tuple[Tensor, Tensor]] = []
    patience = 2
    for _ in range(max_iterations):
        direction = _direction(gradient, history)
        step, new_value = _line_search(
            scores, affine_scores(x, direction), parameters, direction, value, gradient, loss, penalty
        )
        moved = step[:, None] * direction
        parameters = parameters + moved
        scores = affine_scores(x, parameters)
        new_gradient = _gradient(x, loss(scores)[1]) + penalty * parameters
        history = [*history[1 - MEMORY :], (moved, new_gradient - gradient)]
        patience = 2 if bool((value - new_value > tolerance * value.abs()).any()) else patience - 1
        value, gradient = new_value, new_gradient
        if visit is not None:
            visit(parameters)
        if patience == 0:
            break
    return parameters


def _gradient(x: Tensor, slope: Tensor) -> Parameters:
    return torch.cat([(slope[:, None] @ x).squeeze(1), slope.sum(1, keepdim=True)], dim=1)


def _direction(gradient: Parameters, history: list[tuple[Tensor, Tensor]]) -> Parameters:
    """The L-BFGS direction (Nocedal and Wright, algorithm 7.4); pairs without curvature are passed over."""
    q, passed = gradient.clone(), []
    scale = 1 / gradient.norm(dim=1, keepdim=True).clamp_min(1.0)
    for s, y in history:
        curvature, squared = (s * y).sum(1, keepdim=True), y.square().sum(1, keepdim=True)
        usable = curvature > 1e-10 * squared
        # The newest usable pair sets the scale.
        scale = torch.where(usable, curvature / squared.clamp_min(1e-30), scale)
        passed.append((s, y, torch.where(usable, 1 / curvature, 0.0)))
    alphas = []
    for s, y, rho in reversed(passed):
        alphas.append(rho * (s * q).sum(1, keepdim=True))
        q = q - alphas[-1] * y
    r = scale * q
    for (s, y, rho), alpha in zip(passed, reversed(alphas)):
        r = r + s * (alpha - rho * (y * r).sum(1, keepdim=True))
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
    """Halve each head's step until Armijo's condition holds; 0 where it never does."""
    slope = (direction * gradient).sum(1)
    step, best_step, best_value = torch.ones_like(value), torch.zeros_like(value), value
    for _ in range(MAX_HALVINGS):
        trial = loss(scores + step[:, None] * change)[0]
        trial = trial + 0.5 * (penalty * (parameters + step[:, None] * direction).square()).sum(1)
        enough = (best_step == 0) & (trial <= value + 1e-4 * step * slope)
        best_step, best_value = torch.where(enough, step, best_step), torch.where(enough, trial, best_value)
        if bool((best_step > 0).all()):
            break
        step = step / 2
    return best_step, best_value
