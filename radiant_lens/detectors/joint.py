"""Scores of whole layers: one affine score of all heads of a layer together, and a share of that of the layer below.

It is meant for what layers say more clearly than any one head, such as the manner of a text: a gate that opens on it
then opens on more undesirable text at the same rate of false alarms. Through the layer below, which has its own share
of the one below that, a score reads all layers up to its own. A score says more than its flag:
`ramps` make evidence between 0 and 1 of it, by which an edit can be as strong as the text is surely undesirable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from radiant_lens.detectors.collected import without
from radiant_lens.detectors.scores import Sample, fit_heads, spread
from radiant_lens.detectors.steady import Damping, Edited, damped_root
from radiant_lens.detectors.subset import Part
from radiant_lens.distributed import fitting_rank, shared
from radiant_lens.sites import layers_read
from radiant_lens.statistics.rates import error_rates

# Least share of false alarms at which a threshold is chosen: of less, a few texts would decide.
_LEAST_FPR = 0.01
# A layer has many times the weights of a head, and what they learn of single examples makes the evidence of desirable
# training examples smaller than that of new ones: the penalty is much stronger.
L2_FACTOR = 100.0
# Shares of desirable examples above the start of a ramp to choose from, and the share of the undesirable examples above
# the start whose evidence is full. With fewer desirable examples than a tenth, a displacement would look free.
_STARTS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
_FULL = 0.1
# Of a layer that was not collected, or whose scores say nothing.
_NO_RAMP = (0.0, 1.0, 1.0)


class JointScores(NamedTuple):
    """Scores of layers: their heads' weights times activations, a bias, and `carry` times the score of the layer below.

    A layer flags where its score is at least 0.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]
    carry: Float[Tensor, " layer"]

    def flags(self, part: Part) -> Bool[Tensor, "example layer"]:
        """The layers that flag each example."""
        weights, biases = self.weights.flatten(1)[:, None], self.biases[:, None]
        own = torch.cat([scores[:, :, 0] for scores in _as_one_head(part).scores(weights, biases)])
        for layer in range(1, own.shape[1]):
            own[:, layer] += self.carry[layer] * own[:, layer - 1]
        return own >= 0

    def rates(self, part: Part, layers: Sequence[int]) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
        """Shares of false alarms and of misses on a part; NaN where a score depends on others than these layers."""
        rates = error_rates(self.flags(part), part.labels)
        fpr, fnr = (without(rate, self.lacking(layers), math.nan) for rate in (rates.fpr, rates.fnr))
        return fpr, fnr

    def lacking(self, layers: Sequence[int]) -> list[int]:
        """Layers whose score depends on others than these."""
        carrying = set(self.carry.nonzero().flatten().tolist())
        return [n for n in range(len(self.biases)) if not set(layers_read([n], carrying)) <= set(layers)]


def joint_scores(weights: Tensor | None, biases: Tensor | None, carry: Tensor | None) -> JointScores | None:
    """The scores of these attributes of a detector; without `carry` (an earlier version), those of single layers."""
    if weights is None or biases is None:
        return None
    return JointScores(weights, biases, torch.zeros_like(biases) if carry is None else carry)


class JointFit(NamedTuple):
    """Weights, biases and carry of `JointScores`, and ramps of evidence.

    Attributes:
        ramps: the scores at which a layer's evidence is 0, and at which it is 1, and the root of the mean square of the
            evidence on desirable examples.
    """

    weights: Float[Tensor, "layer head d_head"]
    biases: Float[Tensor, " layer"]
    carry: Float[Tensor, " layer"]
    ramps: Float[Tensor, "layer start_end_size"]


def fit_joint(
    train: Part,
    stop: Part,
    layers: Sequence[int],
    l2: float,
    max_iterations: int,
    edited: Sequence[Edited] = (),
    change_penalty: float = 0.0,
) -> JointFit:
    """Fit the joint scores of some layers, and set each threshold and ramp on the stop half.

    Each layer gets a logistic regression on all its heads, and then a second one on two numbers: the score of the
    first, and the joint score of the layer below. A layer above one that was not collected stands alone.

    A displacement at a share FPR of desirable tokens costs a KL in proportion to FPR and to its length squared, and
    acts on a share TPR of undesirable ones. So what it gains at a given KL is in proportion to `TPR / sqrt(FPR)`, and
    the threshold is the one where this is largest. A displacement times the evidence `e` gains at a given KL in
    proportion to `mean(e on undesirable) / sqrt(mean(e^2 on desirable))`, and the ramp is the one where this is.

    Args:
        train: the examples to fit on.
        stop: further examples, on which thresholds are chosen.
        layers: those that were collected; the others never flag.
        l2: strength of the penalty on weights of standardised activations; `L2_FACTOR` times as strong here.
        max_iterations: of the quasi-Newton method.
        edited: tokens of the training cache under edits.
        change_penalty: twice what the loss pays for the mean square of the change of a joint score under edits.
    """
    shape = train.cache.z.shape[1:]
    fitted, chooser = _as_one_head(train), _as_one_head(stop)
    undesirable, labels = (part.labels == 1 for part in (train, stop))

    def fit(numbers: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        fits = []
        for layer in numbers:
            sample, held_out = (part.sample(slice(layer, layer + 1)) for part in (fitted, chooser))
            change = _change(edited, train, layer)
            weight, bias = _fit_layer(sample, change, L2_FACTOR * l2, max_iterations, change_penalty)
            fits.append((weight, bias, *(part.x[0] @ weight + bias for part in (sample, held_out)), change @ weight))
        return fits

    weights, biases, carry = torch.zeros(shape), torch.full((shape[0],), -1.0), torch.zeros(shape[0])
    ramps = torch.tensor(_NO_RAMP).repeat(shape[0], 1)
    before: _Handed | None = None
    for layer, (weight, bias, *own, change) in zip(layers, shared(list(layers), fit, fitting_rank())):
        if before is None or before.layer != layer - 1:
            share, scores = _Share(1.0, 0.0, 0.0), own
        else:
            both = torch.stack([change, before.change], dim=1)
            share = _share(torch.stack([own[0], before.scores[0]], dim=1), undesirable, both, change_penalty)
            scores = [share.of(*pair) for pair in zip(own, before.scores)]
            change = share.own * change + share.below * before.change
        threshold = _threshold(scores[1], labels)
        weights[layer] = share.own * weight.view(shape[1:])
        biases[layer] = share.own * bias + share.constant - threshold
        carry[layer] = share.below
        before = _Handed(layer, [values - threshold for values in scores], change)
        ramps[layer] = _ramp(before.scores[1], labels)
    return JointFit(weights, biases, carry, ramps)


class _Handed(NamedTuple):
    """Scores of a layer on the examples of the fit and on those of the stop half, and their change under edits."""

    layer: int
    scores: list[Float[Tensor, " example"]]
    change: Float[Tensor, " token"]


class _Share(NamedTuple):
    """Factors of what a layer says by itself and of the score of the layer below, and a constant."""

    own: float
    below: float
    constant: float

    def of(self, own: Float[Tensor, " example"], below: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
        """The score of the layer."""
        return self.own * own + self.below * below + self.constant


def _change(edited: Sequence[Edited], train: Part, layer: int) -> Float[Tensor, "token d"]:
    """Activations of a layer under edits minus those without, at all tokens under edits."""
    none = torch.zeros((0, train.cache.z[0, layer].numel()))
    return torch.cat([none, *(tokens.change(train.cache, layer) for tokens in edited)])


def _fit_layer(
    sample: Sample, change: Float[Tensor, "token d"], l2: float, max_iterations: int, change_penalty: float
) -> tuple[Float[Tensor, " d"], Float[Tensor, ""]]:
    """Weights and bias of a layer's own score, which pays for its change under edits."""
    fit = partial(fit_heads, loss="cross_entropy", l2=l2, max_iterations=max_iterations)
    if not change_penalty or not bool(change.any()):
        scores = fit(sample)
        return scores.weights[0], scores.biases[0]
    mean = sample.x.mean(dim=1, keepdim=True)
    std = spread(sample.x - mean, mean)
    mean, std = mean[0, 0], std[0, 0]
    damping = Damping.make(mean, std, change, change_penalty / l2)
    scores = fit(sample._replace(x=damping.of(sample.x)), standardise=False)
    weights = damping.weights(scores.weights[0])
    return weights, scores.biases[0] - weights @ mean


def _share(
    scores: Float[Tensor, "example own_below"],
    undesirable: Bool[Tensor, " example"],
    changes: Float[Tensor, "token own_below"],
    change_penalty: float,
) -> _Share:
    """Logistic regression of the class on both scores, which pays for the change of their weighted sum.

    Every example counts alike here, where in a layer's own regression every class does: so the penalties of both weigh
    the same for classes of the same size. That of scikit-learn on the factors themselves is next to nothing.
    """
    size = scores.double().std(0, correction=0)
    if not bool(size.all()):
        # One of them says nothing.
        return _Share(1.0, 0.0, 0.0)
    # Of the sum of losses, which for equal classes is `n / 2` times the sum of their means.
    root = damped_root(changes / size, change_penalty * len(scores) / 2)
    fitted = LogisticRegression(tol=1e-8, max_iter=1000).fit((scores / size @ root).numpy(), undesirable.numpy())
    factors = root @ torch.as_tensor(fitted.coef_[0]) / size
    return _Share(float(factors[0]), float(factors[1]), float(fitted.intercept_[0]))


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
