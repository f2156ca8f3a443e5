"""The detector of a saved steering, measured on new activations."""

from __future__ import annotations

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import DataError
from radiant_lens.steering.steering import Steering


def restored_detector(steering: Steering, cache: HeadCache) -> RiskAwareDetector:
    """Rebuild the detector of a steering, with all its error rates measured on `cache`.

    Args:
        steering: fitted or loaded.
        cache: activations of groups that took no part in the fit, with both classes.

    Returns:
        A fitted detector. A steering does not record the split into training and validation: all groups of the fit
        count as training groups.

    Raises:
        InvalidArgumentError: another object in the place of the steering, or a cache of another shape.
        DataError: a steering that does not record its detector, or a cache without both classes.
    """
    _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    if "detector" not in steering.meta:
        raise DataError("This steering does not say which detector it was fitted with: fit one and pass it.")
    detector = RiskAwareDetector(**steering.meta["detector"])
    detector.weights_, detector.biases_ = steering.scores.weights, steering.scores.biases
    detector.vote_thresholds_ = steering.scores.thresholds
    if (joint := steering.scores.joint) is not None:
        detector.joint_weights_, detector.joint_biases_ = joint.weights, joint.biases
        detector.joint_carry_ = joint.carry
    # A steering does not record the collected layers either: the others have weights of zero.
    detector.collected_layers_ = tuple(
        layer for layer in cache.collected_layers if bool(steering.scores.weights[layer].any())
    )
    detector.training_groups_, detector.validation_groups_ = tuple(steering.meta.get("seen_groups", ())), ()
    return detector.judge(cache)
