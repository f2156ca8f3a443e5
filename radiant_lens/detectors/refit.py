"""`refit_joint`: joint scores and ramps of a fitted detector, fitted again so that edits move them little."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.collected import check_parts, require_collected
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.detectors.joint import L2_FACTOR, JointScores, fit_joint
from radiant_lens.detectors.steady import damping
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import InvalidArgumentError

CHANGE_PENALTY = 1.0
"""Half of it is what the loss pays for the mean square of the change of a score under edits."""


def refit_joint(
    detector: RiskAwareDetector,
    train: HeadCache,
    validation: HeadCache,
    changes: Iterable[tuple[HeadCache, HeadCache]],
    *,
    change_penalty: float = CHANGE_PENALTY,
) -> RiskAwareDetector:
    """A copy of a detector whose joint scores edits move little; scores and votes of heads stay.

    The logistic regression of each layer has a further penalty, `change_penalty / 2` times the mean square of the
    change of its score under edits. So evidence lasts under them. It is a square: a score is kept both from losing
    what it reads to the edits and from taking their trace for evidence.

    Args:
        detector: fitted with joint scores.
        train: activations without edits to fit on.
        validation: of other groups. Half of its groups choose thresholds and ramps; the other half gives `joint_fpr_`
            and `joint_fnr_`.
        changes: pairs of caches of the same tokens without and with edits, of training texts.
        change_penalty: weight of that penalty, at least 0.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: a detector without joint scores, caches of another shape or that lack a layer of the
            detector, a pair of different tokens, a penalty below 0, or a detector with `l2` of 0.
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
    # The penalty on changes is given as a multiple of that on weights.
    _checks.between("detector.l2", detector.l2, 0)
    fitted, held_out = Part.whole(train), Part.whole(validation)
    check_parts(fitted, held_out)
    stop, test = held_out.split((0.5, 0.5), seed=detector.seed)
    for part, where in ((stop, "the stop half"), (test, "the test half")):
        _checks.both_classes(part.labels, f"{where} of the validation data")
    steady = damping(train, changes, change_penalty / (L2_FACTOR * detector.l2))
    joint = fit_joint(fitted, stop, layers, detector.l2, detector.max_iterations, steady)
    new = copy.copy(detector)
    new.joint_weights_, new.joint_biases_, new.joint_carry_, new.joint_ramps_ = joint
    scores = JointScores(joint.weights, joint.biases, joint.carry)
    new.joint_fpr_, new.joint_fnr_ = scores.rates(test, layers)
    new.training_groups_ = tuple(sorted({*detector.training_groups_, *fitted.group_names}))
    new.validation_groups_ = tuple(sorted({*detector.validation_groups_, *held_out.group_names}))
    return new
