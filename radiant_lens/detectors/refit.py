"""`refit_joint`: joint scores and ramps of a fitted detector, fitted again so that edits move them little."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.collected import check_parts, require_collected
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.detectors.joint import JointScores, fit_joint
from radiant_lens.detectors.steady import Edited
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import InvalidArgumentError

CHANGE_PENALTY = 0.1
"""Twice what the loss pays for the mean square of the change of a joint score under edits."""


def refit_joint(
    detector: RiskAwareDetector,
    train: HeadCache,
    validation: HeadCache,
    edited: Sequence[HeadCache],
    *,
    change_penalty: float = CHANGE_PENALTY,
) -> RiskAwareDetector:
    """A copy of a detector whose joint scores edits move little; scores and votes of heads stay.

    Both logistic regressions of each layer (on its heads, and on that score and the one of the layer below) have a
    further penalty: `change_penalty / 2` times the mean square of the change of the score under edits. It is meant
    to keep evidence under them. In the first regression both classes count alike, in the second all examples do.

    Args:
        detector: fitted with joint scores.
        train: activations without edits to fit on.
        validation: of other groups. Half of its groups choose thresholds and ramps; the other half gives `joint_fpr_`
            and `joint_fnr_`.
        edited: activations of tokens of `train` under edits, one cache or more.
        change_penalty: weight of that penalty, at least 0.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: a detector without joint scores or with an `l2` of 0, caches of another shape or that lack
            a layer of the detector, no cache under edits, one with other tokens than `train`, or a penalty below 0.
        DataError: a cache without a class, or values that are not finite.
        LeakageError: training and validation share a group.
    """
    require_fitted(detector)
    if detector.joint_weights_ is None:
        raise InvalidArgumentError("This detector has no joint scores: fit a `RiskAwareDetector(joint=True)`.")
    layers = detector.collected_layers_
    for name, cache in (("train", train), ("validation", validation)):
        _checks.instance(name, cache, HeadCache, hint="`collect` makes one")
        _checks.shape(f"{name}.z", cache.z, (None, *detector.weights_.shape), "example layer head d_head")
        for layer in layers:
            require_collected("a layer of the detector", layer, cache.collected_layers)
    _checks.between("change_penalty", change_penalty, 0, closed="low")
    # The penalty on changes becomes a multiple of that on weights.
    _checks.between("detector.l2", detector.l2, 0)
    _checks.each("edited", edited, HeadCache)
    if not edited:
        raise InvalidArgumentError("`edited` must be one cache of activations under edits or more; got none.")
    fitted, held_out = Part.whole(train), Part.whole(validation)
    check_parts(fitted, held_out)
    stop, test = held_out.split((0.5, 0.5), seed=detector.seed)
    for part, where in ((stop, "the stop half"), (test, "the test half")):
        _checks.both_classes(part.labels, f"{where} of the validation data")
    moved = [Edited.of(cache, train) for cache in edited]
    joint = fit_joint(fitted, stop, layers, detector.l2, detector.max_iterations, moved, change_penalty)
    new = copy.copy(detector)
    new.joint_weights_, new.joint_biases_, new.joint_carry_, new.joint_ramps_ = joint
    scores = JointScores(joint.weights, joint.biases, joint.carry)
    new.joint_fpr_, new.joint_fnr_ = scores.rates(test, layers)
    new.training_groups_ = tuple(sorted({*detector.training_groups_, *fitted.group_names}))
    new.validation_groups_ = tuple(sorted({*detector.validation_groups_, *held_out.group_names}))
    return new
