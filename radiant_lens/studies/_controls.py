"""Controls that stand beside every steering: detectors of shuffled labels, and a random direction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import NothingToEditError
from radiant_lens.policies.controls import IdentityPolicy, RandomDirectionPolicy
from radiant_lens.policies.registry import Policy
from radiant_lens.steering.steering import Steering
from radiant_lens.studies.experiment import Experiment, recommended_policy


def shuffled_labels(
    experiment: Experiment,
    steering: Steering,
    policy: Policy | None = None,
    *,
    seed: int = 0,
    force: bool = False,
) -> Steering:
    """Control: everything fitted anew on shuffled labels, on the heads of the real steering.

    A detector that has learned nothing flags next to nothing once false alarms weigh more than misses; where
    it flags nothing at all the control is the identity.

    Args:
        experiment, steering, policy: what the control is for.
        seed: of the shuffle.
        force: weigh both errors the same and gate by the head alone, so that noise does edit.
    """
    train = experiment.train_cache.with_shuffled_labels(seed=seed)
    validation = experiment.validation_cache.with_shuffled_labels(seed=seed + 1)
    settings: dict[str, Any] = experiment.detector.get_params()
    policy = policy or recommended_policy()
    if force:
        settings, policy = {**settings, "fnr_weight": 1.0}, replace(policy, gate="head")
    detector = RiskAwareDetector(**settings).fit(train, validation)
    try:
        return replace(policy, heads=list(steering.sites)).fit(train, detector)
    except NothingToEditError:
        return IdentityPolicy(steering).fit(train, detector)


def controls(
    experiment: Experiment, steering: Steering, policy: Policy | None = None, *, seed: int = 0
) -> dict[str, Steering]:
    """Shuffled labels and a random direction of equal length, on the same heads."""
    return {
        "shuffled labels": shuffled_labels(experiment, steering, policy, seed=seed),
        "random direction": RandomDirectionPolicy(steering, seed=seed).fit(experiment.train_cache, experiment.detector),
    }
