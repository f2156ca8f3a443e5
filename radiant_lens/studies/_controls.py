"""Controls for a steering: detectors of shuffled labels, and random directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import NothingToEditError
from radiant_lens.policies.controls import IdentityPolicy, RandomDirectionPolicy
from radiant_lens.policies.fisher import fit_with_model
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.policies.registry import Policy
from radiant_lens.studies.cells import RANDOM, RANDOM_TOTAL, SHUFFLED
from radiant_lens.studies.experiment import Experiment

RANDOM_METRICS = {RANDOM: "mahalanobis", RANDOM_TOTAL: "total"}
"""Controls of random directions, with the covariance that each draws from.

The total covariance also holds the difference between the classes, so a direction drawn from it is the harder control.
"""


def shuffled_labels(
    experiment: Experiment,
    steering: Steering,
    policy: Policy | None = None,
    *,
    seed: int = 0,
    force: bool = True,
) -> Steering:
    """Control: the detector and the policy fitted on shuffled labels, on the heads of the real steering.

    One shuffle can move a metric by chance, in either direction, so average several.

    Args:
        experiment: from `prepare`.
        steering: the real steering.
        policy: of the real steering; default `RadiantPolicy()`.
        seed: of the shuffle.
        force: make the control edit. A detector of noise flags almost nothing once false alarms weigh more than
            misses, and a control that edits nothing is the unsteered model. Both errors then weigh the same, and
            heads are gated by their own flag, or by nothing where no activation is flagged. With False the control
            is the identity where nothing is flagged.
    """
    train = experiment.train_cache.with_shuffled_labels(seed=seed)
    validation = experiment.validation_cache.with_shuffled_labels(seed=seed + 1)
    settings: dict[str, Any] = experiment.detector.get_params()
    if force:
        # Its gates are the head's own, or none.
        settings |= {"fnr_weight": 1.0, "joint": False}
    detector = RiskAwareDetector(**settings).fit(train, validation)
    policy = replace(policy or RadiantPolicy(), heads=list(steering.sites))
    for gate in _gates(policy.gate) if force else [policy.gate]:
        try:
            return fit_with_model(replace(policy, gate=gate), experiment.model, experiment.train, train, detector)
        except NothingToEditError:
            continue
    return IdentityPolicy(steering).fit(train, detector)


def _gates(gate: str) -> list[str]:
    """Gates to try in turn, from the strictest; the layer's vote of noise would shut most of the others."""
    return ["none"] if gate == "none" else ["head", "none"]


def random_direction(experiment: Experiment, steering: Steering, control: str = RANDOM, *, seed: int = 0) -> Steering:
    """Control: the displacements of a steering turned to a random direction of equal length.

    Args:
        experiment: from `prepare`.
        steering: the real steering.
        control: a key of `RANDOM_METRICS`.
        seed: of the direction.
    """
    policy = RandomDirectionPolicy(steering, metric=RANDOM_METRICS[control], seed=seed)
    return policy.fit(experiment.train_cache, experiment.detector)


def controls(
    experiment: Experiment,
    steering: Steering,
    policy: Policy | None = None,
    *,
    seed: int = 0,
    n_shuffles: int = 3,
) -> dict[str, Steering | list[Steering]]:
    """Several detectors of shuffled labels, forced to edit, and random directions, all on the same heads.

    Args:
        experiment: from `prepare`.
        steering: the real steering.
        policy: of the real steering; default `RadiantPolicy()`.
        seed: of shuffles and directions.
        n_shuffles: shuffles of the labels, at least 1.

    Returns:
        Controls by name, for `compare`.
    """
    _checks.whole("n_shuffles", n_shuffles, 1)
    # Each shuffle takes two seeds, of the training and the validation labels.
    shuffles = [shuffled_labels(experiment, steering, policy, seed=seed + 2 * draw) for draw in range(n_shuffles)]
    directions = {name: random_direction(experiment, steering, name, seed=seed) for name in RANDOM_METRICS}
    return {SHUFFLED: shuffles, **directions}
