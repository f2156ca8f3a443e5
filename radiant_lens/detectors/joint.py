"""Scores of whole layers: one affine score of all heads of a layer together, fitted on all of them at once.

It is meant for what a layer says more clearly than any one of its heads, such as the manner of a text: a gate that
opens on it then opens on more undesirable text at the same rate of false alarms.
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


class JointScores(NamedTuple):
    """Scores of layers: `biases[layer] + sum over heads of weights[layer, head] . a[head]`; at or above 0 it flags."""

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]

    def flags(self, part: Part) -> Bool[Tensor, "example layer"]:
        """The layers that flag each example."""
        weights, biases = self.weights.flatten(1)[:, None], self.biases[:, None]
        return torch.cat([scores[:, :, 0] >= 0 for scores in _as_one_head(part).scores(weights, biases)])


def fit_joint(train: Part, stop: Part, layers: Sequence[int], l2: float, max_iterations: int) -> JointScores:
    """Fit the joint scores of some layers, and set each threshold on the stop half.

    A displacement at a share FPR of desirable tokens costs a KL in proportion to FPR and to its length squared, and
    acts on a share TPR of undesirable ones. So what it gains at a given KL is in proportion to `TPR / sqrt(FPR)`, and
    the threshold is the one where this is largest.

    Args:
        train: the examples to fit on.
        stop: further examples, on which thresholds are chosen.
        layers: those that were collected; the others never flag.
        l2: strength of the penalty on weights of standardised activations.
        max_iterations: of the quasi-Newton method.
    """
    shape = train.cache.z.shape[1:]
    fitted, chooser = _as_one_head(train), _as_one_head(stop)

    def fit(numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for layer in numbers:
            scores = fit_heads(
                fitted.sample(slice(layer, layer + 1)), loss="cross_entropy", l2=l2, max_iterations=max_iterations
            )
            held_out = chooser.sample(slice(layer, layer + 1))
            values = (held_out.x @ scores.weights[..., None])[0, :, 0] + scores.biases
            pairs.append((scores.weights[0], scores.biases[0] - _threshold(values, held_out.labels == 1)))
        return pairs

    weights, biases = torch.zeros(shape), torch.full((shape[0],), -1.0)
    for layer, (weight, bias) in zip(layers, shared(list(layers), fit, fitting_rank())):
        weights[layer], biases[layer] = weight.view(shape[1:]), bias
    return JointScores(weights, biases)


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
