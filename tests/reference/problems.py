"""Random problems of least edits, from easy to degenerate."""

from __future__ import annotations

import math

import numpy as np
import torch

KAPPAS = [0.5, 1.645, 5.0, 10.0, 40.0]
CONDITIONS = [10.0, 1e4, 1e8]
FLOORS = [None, "other", "small", "large", "singular", "same", "blind"]
ALIGNMENTS = ["random", "largest", "least", "discriminant"]
# Where the mean lies: in deviations of the score above the boundary, or the share of the way to the identity.
PLACES = [-0.999, -0.5, 0.0, 0.3, 1.0, 6.0]


def draw_covariance(n, d, condition, generator, *, rank=None):
    axes = torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    if rank is not None:
        values[rank:] = 0
    covariance = (axes * values) @ axes.mT
    return (covariance + covariance.mT) / 2, axes


def draw_weight(sigma, axes, alignment, generator):
    noise = torch.randn(sigma.shape[:2], generator=generator, dtype=torch.float64)
    if alignment == "largest":
        return axes[:, :, 0] * 3
    if alignment == "least":
        return axes[:, :, -1] / 3
    if alignment == "discriminant":
        return torch.linalg.solve(sigma + 1e-9 * torch.eye(sigma.shape[-1]), noise)
    return noise


def draw_floor(kind, sigma, theta, condition, generator):
    n, d = theta.shape
    if kind is None:
        return None
    if kind == "same":
        return sigma * 0.81
    other, _ = draw_covariance(n, d, condition, generator, rank=d // 2 if kind == "singular" else None)
    # A floor without any spread along the weight: the hardest start for the dual.
    if kind == "blind":
        e = torch.nn.functional.normalize(theta, dim=-1)
        across = torch.eye(d, dtype=torch.float64) - e[:, :, None] * e[:, None, :]
        return across @ other @ across
    return other * {"other": 1.0, "small": 0.01, "large": 16.0, "singular": 1.0}[kind]


def draw(d, condition, floor, alignment, kappa, seed, *, rank=None):
    """One problem for each of PLACES: keyword arguments of `solve_procrustes`."""
    generator = torch.Generator().manual_seed(seed)
    n = len(PLACES)
    sigma, axes = draw_covariance(n, d, condition, generator, rank=rank)
    theta = draw_weight(sigma, axes, alignment, generator)
    mu = torch.randn(n, d, generator=generator, dtype=torch.float64)
    # A weight in the null space has no spread of its own; its length is the unit then.
    spread = torch.einsum("ni,nij,nj->n", theta, sigma, theta).clamp_min(0).sqrt()
    spread = torch.where(spread < 1e-7 * theta.norm(dim=-1), theta.norm(dim=-1), spread)
    places = torch.tensor(PLACES, dtype=torch.float64)
    score = torch.where(places < 0, places * kappa, places) * spread
    bias = score - (theta * mu).sum(-1)
    return {
        "mu": mu,
        "sigma": sigma,
        "theta": theta,
        "bias": bias,
        "margin": kappa,
        "floor": draw_floor(floor, sigma, theta, condition, generator),
    }


def one(problem, i):
    return {k: v[i] if isinstance(v, torch.Tensor) else v for k, v in problem.items()}


def root_of(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def assert_certified(problem, solution, *, gap=1e-9):
    """Check all figures of a solution against its map alone."""
    sigma, theta, bias = problem["sigma"], problem["theta"], problem["bias"]
    assert solution.gap.abs().max() <= gap
    assert solution.slack.min() >= 0
    torch.testing.assert_close(solution.mean, torch.einsum("...ij,...j->...i", solution.G, problem["mu"]) + solution.g)
    image = solution.G @ sigma @ solution.G.mT
    torch.testing.assert_close(solution.covariance, image)
    spread = torch.einsum("...i,...ij,...j->...", theta, image, theta).clamp_min(0).sqrt()
    score = bias + (theta * solution.mean).sum(-1)
    size = (bias + (theta * problem["mu"]).sum(-1)).abs() + problem["margin"] * theta.norm(dim=-1)
    assert (score + problem["margin"] * spread <= 1e-6 * size).all()
