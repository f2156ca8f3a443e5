"""The detector of a saved steering, measured on other activations."""

from __future__ import annotations

from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import DataError
from radiant_lens.steering.steering import Steering


def restored_detector(steering: Steering, cache: HeadCache) -> RiskAwareDetector:
    """The detector that a steering was made with; every figure of it is measured on `cache`.

    Args:
        steering: fitted or loaded.
        cache: activations of groups that took no part in the fit, with both classes.

    Returns:
        A fitted detector. Which groups trained and which validated is not known any more: all count as training.

    Raises:
        DataError: a steering that does not say what its detector was, or a cache without both classes.
        InvalidArgumentError: a cache of another shape.
    """
    if "detector" not in steering.meta:
        raise DataError("This steering does not say which detector it was made with: fit one and pass it.")
    detector = RiskAwareDetector(**steering.meta["detector"])
    detector.weights_, detector.biases_ = steering.scores.weights, steering.scores.biases
    detector.vote_thresholds_ = steering.scores.thresholds
    detector.training_groups_, detector.validation_groups_ = tuple(steering.meta.get("seen_groups", ())), ()
    return detector.judge(cache)
