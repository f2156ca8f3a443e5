"""`refit_joint`: joint scores and ramps of a fitted detector, fitted again on several caches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.collected import check_part, require_collected
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.detectors.joint import JointScores, fit_joint
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import InvalidArgumentError


def refit_joint(
    detector: RiskAwareDetector, train: Sequence[HeadCache], validation: Sequence[HeadCache]
) -> RiskAwareDetector:
    """A copy of a detector whose joint scores are fitted on all of these caches; scores and votes of heads stay.

    Args:
        detector: fitted with joint scores.
        train: activations to fit on, at least one cache.
        validation: of other groups, at least one cache. Half of the groups of the first choose thresholds and ramps on
            all of the caches; the other half of it gives `joint_fpr_` and `joint_fnr_`.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: one without joint scores, no cache, or one of another shape or that lacks a layer of the
            detector.
        DataError: a cache, or half of the first one of `validation`, without a class; or values that are not finite.
        LeakageError: training and validation share a group.
    """
    require_fitted(detector)
    if detector.joint_weights_ is None:
        raise InvalidArgumentError("This detector has no joint scores: fit a `RiskAwareDetector(joint=True)`.")
    layers = detector.collected_layers_
    for name, caches in (("train", train), ("validation", validation)):
        _checks.each(name, caches, HeadCache)
        if not caches:
            raise InvalidArgumentError(f"`{name}` must be one cache of activations or more; got none.")
        for cache in caches:
            _checks.shape(f"{name}.z", cache.z, (None, *detector.weights_.shape), "example layer head d_head")
            for layer in layers:
                require_collected("a layer of the detector", layer, cache.collected_layers)
    fitted, held_out = ([Part.whole(cache) for cache in caches] for caches in (train, validation))
    for parts, where in ((fitted, "the training data"), (held_out, "the validation data")):
        for part in parts:
            check_part(part, where)
    _checks.disjoint_groups(_groups(fitted), _groups(held_out), ("training", "validation"))
    chooser, test = held_out[0].split((0.5, 0.5), seed=detector.seed)
    stop = [chooser, *(_of_groups(part, set(chooser.group_names)) for part in held_out[1:])]
    for part, where in ((chooser, "the stop half"), (test, "the test half")):
        _checks.both_classes(part.labels, f"{where} of the validation data")
    joint = fit_joint(fitted, stop, layers, detector.l2, detector.max_iterations)
    new = copy.copy(detector)
    new.joint_weights_, new.joint_biases_, new.joint_carry_, new.joint_ramps_ = joint
    scores = JointScores(joint.weights, joint.biases, joint.carry)
    new.joint_fpr_, new.joint_fnr_ = scores.rates(test, layers)
    new.training_groups_ = tuple(sorted({*detector.training_groups_, *_groups(fitted)}))
    new.validation_groups_ = tuple(sorted({*detector.validation_groups_, *_groups(held_out)}))
    return new


def _of_groups(part: Part, names: set[str]) -> Part:
    """The examples of these groups."""
    chosen = torch.tensor([name in names for name in part.cache.group_names])
    return Part(part.cache, part.index[chosen[part.texts]])


def _groups(parts: Sequence[Part]) -> set[str]:
    return {name for part in parts for name in part.group_names}
