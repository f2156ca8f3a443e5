"""Random problems of least moves along one direction."""

from __future__ import annotations

import torch


def rng(seed):
    return torch.Generator().manual_seed(seed)


def draw_covariance(d, generator):
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / d + 0.05 * torch.eye(d, dtype=torch.float64)


def draw(*, d=4, seed=0, kappa=1.645, place=1.0, floor=None, metric=False):
    """Arguments of `solve_transport`; the score's mean is `place` deviations above 0, or that share of the way."""
    generator = rng(seed)
    sigma = draw_covariance(d, generator)
    theta, mu = torch.randn(2, d, generator=generator, dtype=torch.float64)
    spread = (theta @ sigma @ theta).sqrt()
    score = place * spread * (kappa if place < 0 else 1)
    return {
        "mu": mu,
        "sigma": sigma,
        "theta": theta,
        "bias": score - theta @ mu,
        "margin": kappa,
        "metric": draw_covariance(d, generator) if metric else None,
        "floor_std": None if floor is None else floor * spread,
    }
