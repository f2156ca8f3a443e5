"""Fit of one affine score for every head, all at once (RADIANT, arXiv 2501.15758, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens.detectors.lbfgs import Curvature, ScoreLoss, affine_scores, minimize
from radiant_lens.statistics.rates import error_rates

LOSSES = ("risk", "cross_entropy", "mass_mean", "lda")

# The cross-entropy solution is only the start of the risk: a more precise one does not lower the risk.
START_TOLERANCE, TOLERANCE = 1e-3, 1e-6


class AffineScores(NamedTuple):
    """Affine scores `s(a) = bias + weight . a`, one for each head; a head flags when `s >= 0`."""

    weights: Float[Tensor, "head d"]
    biases: Float[Tensor, " head"]


class Sample(NamedTuple):
    """Activations of all heads, heads first, with the labels of the examples."""

    x: Float[Tensor, "head example d"]
    labels: Int[Tensor, " example"]


def fit_heads(
    train: Sample,
    *,
    loss: str = "risk",
    fnr_weight: float = 1.0,
    stop: Sample | None = None,
    l2: float = 1e-3,
    max_iterations: int = 12,
    standardise: bool = True,
) -> AffineScores:
    """Fit the scores of all heads together.

    Args:
        train: activations and labels, both classes present.
        loss: "risk" (sigmoids in place of the risk's indicators, started from the cross-entropy solution),
            "cross_entropy" (balanced classes, undesirable ones weighted by `fnr_weight`), "lda" (linear discriminant
            with that weight as prior odds), "mass_mean" (the same along the difference of class means).
        fnr_weight: weight of a miss against a false alarm, positive.
        stop: with loss "risk", the scores returned are those of the iteration with the least risk on this sample.
        l2: strength of the penalty on weights of standardised activations.
        max_iterations: of the quasi-Newton method.
        standardise: bring every activation to a spread of 1 first; False where the caller has set their scale.

    Returns:
        Weights and biases in units of the activations.
    """
    mean = train.x.mean(dim=1, keepdim=True)
    x = train.x - mean
    std = spread(x, mean) if standardise else torch.ones_like(mean)
    x /= std
    if loss in ("lda", "mass_mean"):
        scores = _discriminant(x, train.labels, fnr_weight, whiten=loss == "lda")
    else:
        standard_stop = Sample((stop.x - mean).div_(std), stop.labels) if stop is not None else None
        scores = _descend(Sample(x, train.labels), loss, fnr_weight, standard_stop, l2, max_iterations)
    # Back to units of the activations: w . (a - mean) / std + b.
    weights = scores.weights / std[:, 0]
    return AffineScores(weights, scores.biases - (weights * mean[:, 0]).sum(-1))


def spread(centred: Float[Tensor, "head example d"], mean: Float[Tensor, "head 1 d"]) -> Float[Tensor, "head 1 d"]:
    """Standard deviation of every activation from its mean; that of a constant one is 1."""
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / centred.shape[1] ** 0.5
    # A constant activation has a spread of rounding errors alone; dividing by it would make them the largest feature.
    return torch.where(std > 1e-8 * (mean.abs() + 1), std, torch.ones_like(std))


def _discriminant(x: Tensor, labels: Tensor, fnr_weight: float, *, whiten: bool) -> AffineScores:
    # Gaussian classes with one covariance S have the log-odds (mu1 - mu0)' S^-1 (a - (mu1 + mu0) / 2) + log prior odds.
    one, zero = x[:, labels == 1], x[:, labels == 0]
    mu1, mu0 = one.mean(1), zero.mean(1)
    centred = torch.cat([one - mu1[:, None], zero - mu0[:, None]], dim=1)
    within = centred.mT @ centred / max(centred.shape[1] - 2, 1)
    d = x.shape[-1]
    ridge = 1e-4 * within.diagonal(dim1=-2, dim2=-1).mean(-1)
    within = within + (ridge + 1e-12)[:, None, None] * torch.eye(d, dtype=x.dtype, device=x.device)
    difference = mu1 - mu0
    if whiten:
        weights = torch.linalg.solve(within, difference)
    else:
        # The same in one dimension, along d = mu1 - mu0: the slope d'd / d'Sd makes the score a log-odds there.
        variance = torch.einsum("hi,hij,hj->h", difference, within, difference)
        weights = difference * (difference.square().sum(-1) / variance.clamp_min(1e-12))[:, None]
    biases = math.log(fnr_weight) - (weights * (mu1 + mu0) / 2).sum(-1)
    return AffineScores(weights, biases)


def _descend(
    train: Sample, loss: str, fnr_weight: float, stop: Sample | None, l2: float, max_iterations: int
) -> AffineScores:
    descend = partial(minimize, train.x, l2=l2, max_iterations=max_iterations, curvature=_curvature(train, fnr_weight))
    start = torch.zeros((train.x.shape[0], train.x.shape[2] + 1), dtype=train.x.dtype, device=train.x.device)
    tolerance = START_TOLERANCE if loss == "risk" else TOLERANCE
    parameters = descend(_objective(train, _cross_entropy, fnr_weight), start, tolerance=tolerance)
    if loss == "risk":
        best = _Best(stop, fnr_weight) if stop is not None else None
        if best is not None:
            # The start counts too, so the risk on the stop sample is never above that of cross-entropy.
            best(parameters)
        parameters = descend(_objective(train, _smooth_risk, fnr_weight), parameters, tolerance=TOLERANCE, visit=best)
        parameters = parameters if best is None else best.parameters
    return AffineScores(parameters[:, :-1], parameters[:, -1])


class _Best:
    """Record of the parameters with the least risk so far, for each head."""

    def __init__(self, stop: Sample, fnr_weight: float) -> None:
        self._stop, self._fnr_weight = stop, fnr_weight
        self._risk = torch.full((stop.x.shape[0],), torch.inf, dtype=torch.float64, device=stop.x.device)
        self.parameters = torch.empty(0)

    def __call__(self, parameters: Tensor) -> None:
        flags = (affine_scores(self._stop.x, parameters) >= 0).T
        risk = error_rates(flags, self._stop.labels).risk(self._fnr_weight)
        better = risk < self._risk
        best = parameters if self.parameters.numel() == 0 else self.parameters
        # Strictly better: ties stay with the earlier iteration, which has fitted the training data less.
        self.parameters = torch.where(better[:, None], parameters, best).clone()
        self._risk = torch.where(better, risk, self._risk)


Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


def _cross_entropy(signed: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and slope of `softplus(signed)`, where a positive `signed` score is an error."""
    return torch.nn.functional.softplus(signed), signed.sigmoid()


def _smooth_risk(signed: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and slope of `sigmoid(signed)`, the smoothed indicator of an error."""
    sigmoid = signed.sigmoid()
    return sigmoid, sigmoid * (1 - sigmoid)


def _objective(train: Sample, loss: Loss, fnr_weight: float) -> ScoreLoss:
    """Return `mean_{y=0} loss(s) + fnr_weight * mean_{y=1} loss(-s)` as a function of the scores."""
    share = _shares(train, fnr_weight)
    sign = torch.where(train.labels == 1, -1.0, 1.0).to(train.x)

    def value_and_slope(scores: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = loss(sign * scores)
        return (share * losses).sum(1), share * sign * slopes

    return value_and_slope


def _curvature(train: Sample, fnr_weight: float) -> Curvature:
    """Return the curvature of the cross-entropy; the smoothed risk takes it too, as its own is negative in places."""
    share = _shares(train, fnr_weight)
    return lambda scores: share * scores.sigmoid() * (-scores).sigmoid()


def _shares(train: Sample, fnr_weight: float) -> Float[Tensor, " example"]:
    """Weight of each example in the loss: classes count equally, misses `fnr_weight` times."""
    undesirable = train.labels == 1
    return torch.where(undesirable, fnr_weight / undesirable.sum(), 1 / (~undesirable).sum()).to(train.x)
