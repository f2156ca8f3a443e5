"""Scores of whole layers: one affine score of all heads of a layer together, fitted on all of them at once.

It is meant for what a layer says more clearly than any one of its heads, such as the manner of a text: a gate that
opens on it then opens on more undesirable text at the same rate of false alarms. A score says more than its flag:
`ramps` make evidence between 0 and 1 of it, by which an edit can be as strong as the text is surely undesirable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens.detectors.scores import fit_heads
from radiant_lens.detectors.subset import Part
from radiant_lens.distributed import fitting_rank, shared

# Least share of false alarms at which a threshold is chosen: of less, a few texts would decide.
_LEAST_FPR = 0.01
# A layer has many times the weights of a head, and what they learn of single examples makes the evidence of desirable
# training examples smaller than that of new ones: the penalty is much stronger.
_L2_FACTOR = 100.0
# Shares of desirable examples above the start of a ramp to choose from, and the share of the undesirable examples above
# the start whose evidence is full. With fewer desirable examples than a tenth, a displacement would look free.
_STARTS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
_FULL = 0.1
# Of a layer that was not collected, or whose scores say nothing.
_NO_RAMP = (0.0, 1.0, 1.0)


class JointScores(NamedTuple):
    """Scores of layers: `biases[layer] + sum over heads of weights[layer, head] . a[head]`; at or above 0 it flags."""

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]

    def flags(self, part: Part) -> Bool[Tensor, "example layer"]:
        """The layers that flag each example."""
        weights, biases = self.weights.flatten(1)[:, None], self.biases[:, None]
        return torch.cat([scores[:, :, 0] >= 0 for scores in _as_one_head(part).scores(weights, biases)])


class JointFit(NamedTuple):
    """Weights and biases of `JointScores`, and ramps of evidence.

    Attributes:
        ramps: the scores at which a layer's evidence is 0, and at which it is 1, and the root of the mean square of the
            evidence on desirable examples.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]
    ramps: Float[Tensor, "layer start_end_size"]


def fit_joint(train: Part, stop: Part, layers: Sequence[int], l2: float, max_iterations: int) -> JointFit:
    """Fit the joint scores of some layers, and set each threshold and ramp on the stop half.

    A displacement at a share FPR of desirable tokens costs a KL in proportion to FPR and to its length squared, and
    acts on a share TPR of undesirable ones. So what it gains at a given KL is in proportion to `TPR / sqrt(FPR)`, and
    the threshold is the one where this is largest. A displacement times the evidence `e` gains at a given KL in
    proportion to `mean(e on undesirable) / sqrt(mean(e^2 on desirable))`, and the ramp is the one where this is.

    Args:
        train: the examples to fit on.
        stop: further examples, on which thresholds are chosen.
        layers: those that were collected; the others never flag.
        l2: strength of the penalty on weights of standardised activations; `_L2_FACTOR` times as strong here.
        max_iterations: of the quasi-Newton method.
    """
    shape = train.cache.z.shape[1:]
    fitted, chooser = _as_one_head(train), _as_one_head(stop)

    def fit(numbers: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        fits = []
        for layer in numbers:
            scores = fit_heads(
                fitted.sample(slice(layer, layer + 1)),
                loss="cross_entropy",
                l2=_L2_FACTOR * l2,
                max_iterations=max_iterations,
            )
            held_out = chooser.sample(slice(layer, layer + 1))
            values = (held_out.x @ scores.weights[..., None])[0, :, 0] + scores.biases
            undesirable = held_out.labels == 1
            threshold = _threshold(values, undesirable)
            fits.append((scores.weights[0], scores.biases[0] - threshold, _ramp(values - threshold, undesirable)))
        return fits

    weights, biases = torch.zeros(shape), torch.full((shape[0],), -1.0)
    ramps = torch.tensor(_NO_RAMP).repeat(shape[0], 1)
    for layer, (weight, bias, ramp) in zip(layers, shared(list(layers), fit, fitting_rank())):
        weights[layer], biases[layer], ramps[layer] = weight.view(shape[1:]), bias, ramp
    return JointFit(weights, biases, ramps)


def _as_one_head(part: Part) -> Part:
    """The same examples with the heads of a layer as one head."""
    return replace(part, cache=replace(part.cache, z=part.cache.z.flatten(2)[:, :, None]))


def _threshold(scores: Float[Tensor, " example"], undesirable: Bool[Tensor, " example"]) -> Float[Tensor, ""]:
    """A number halfway between two scores, from which on `TPR / sqrt(FPR)` is largest among FPRs of `_LEAST_FPR` up."""
    points = scores.sort().values
    classes = (scores[of_class].sort().values for of_class in (~undesirable, undesirable))
    fpr, tpr = (1 - torch.searchsorted(values, points).double() / len(values) for values in classes)
    worth = torch.where(fpr >= _LEAST_FPR, tpr / fpr.sqrt(), -torch.inf)
    # Of equals the largest score, which raises fewer alarms.
    chosen = points[(worth == worth.max()).nonzero().max()]
    below = points[points < chosen]
    # Rounding must not decide on which side the example lies whose score it is.
    return (chosen + below[-1]) / 2 if len(below) else chosen - 1


def _ramp(scores: Float[Tensor, " example"], undesirable: Bool[Tensor, " example"]) -> Float[Tensor, " start_end_size"]:
    """The ramp whose evidence is worth most, see `fit_joint`."""
    good, bad = (scores[of_class].double().sort().values for of_class in (~undesirable, undesirable))
    best, chosen = 0.0, scores.new_tensor(_NO_RAMP)
    for share in _STARTS:
        start = _quantile(good, 1 - share)
        above = bad[bad > start]
        # Of few examples, or of equal scores, fewer desirable ones may lie above the start than it says.
        if not len(above) or float((good > start).double().mean()) < _STARTS[-1] / 2:
            break
        end = _quantile(above, 1 - _FULL)
        of_good, of_bad = (((values - start) / (end - start)).clamp(0, 1) for values in (good, bad))
        size = of_good.square().mean().sqrt()
        worth = float(of_bad.mean() / size)
        if worth > best:
            best, chosen = worth, torch.stack([start, end, size]).to(scores)
    return chosen


def _quantile(ascending: Float[Tensor, " example"], share: float) -> Float[Tensor, ""]:
    # `torch.quantile` has a limit of 16 million examples.
    return ascending[round(share * (len(ascending) - 1))]
