"""`refit_joint`: scores of layers that still find undesirable text where edits have taken away what they read."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.detectors.refit import refit_joint
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, NotFittedError


def two_signs(n: int, seed: int = 0, *, edited: bool = False) -> rl.HeadCache:
    """Classes that differ much along one axis and less along another; an edit takes the first difference away."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    z = torch.randn(n, 2, 3, 4, generator=generator)
    z[..., 0] += (-1.5 if edited else 2.0) * labels[:, None, None]
    z[..., 1] += 1.2 * labels[:, None, None]
    names = tuple(f"group {seed}-{i // 2}" for i in range(n))
    return rl.HeadCache(z, labels, torch.arange(n), torch.zeros(n, dtype=torch.long), names, names)


@pytest.fixture(scope="module")
def fitted() -> rl.RiskAwareDetector:
    return rl.RiskAwareDetector(joint=True).fit(two_signs(800), two_signs(400, seed=1))


@pytest.fixture(scope="module")
def refitted(fitted) -> rl.RiskAwareDetector:
    parts = ([two_signs(800, seed), two_signs(800, seed, edited=True)] for seed in (0, 1))
    return refit_joint(fitted, *parts)


def found(detector, cache) -> float:
    """The share of undesirable examples that layer 1 flags."""
    return float(detector.joint_flags(cache)[cache.labels == 1, 1].double().mean())


def test_what_an_edit_hides_is_found_again(fitted, refitted):
    plain, edited = two_signs(1000, seed=2), two_signs(1000, seed=2, edited=True)
    assert found(fitted, plain) > 0.9 and found(fitted, edited) < 0.1
    assert found(refitted, edited) > 0.6 and found(refitted, plain) > 0.6
    # Without more false alarms than the choice of a threshold allows.
    for cache in (plain, edited):
        assert refitted.joint_flags(cache)[cache.labels == 0, 1].double().mean() < 0.3


def test_its_rates_are_those_of_unsteered_text_of_other_groups(refitted):
    new = two_signs(4000, seed=3)
    flags, bad = refitted.joint_flags(new), new.labels == 1
    assert abs(refitted.joint_fnr_[1] - (~flags[bad, 1]).double().mean()) < 0.1
    assert abs(refitted.joint_fpr_[1] - flags[~bad, 1].double().mean()) < 0.1


def test_the_test_half_takes_no_part_in_the_choice(fitted):
    train, plain = two_signs(800), two_signs(400, seed=1)
    moved = replace(plain, z=plain.z + 0.5)
    _, test = Part.whole(plain).split((0.5, 0.5), seed=fitted.seed)
    other = replace(moved, z=moved.z.clone())
    other.z[test.index] = 50.0
    one, same = (refit_joint(fitted, [train], [plain, cache]) for cache in (moved, other))
    for name in ("joint_weights_", "joint_biases_", "joint_ramps_", "joint_fpr_"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    alone = refit_joint(fitted, [train], [plain])
    assert not torch.equal(one.joint_ramps_, alone.joint_ramps_)


def test_heads_stay_and_the_first_detector_too(fitted):
    before = copy.deepcopy(vars(fitted))
    other = refit_joint(fitted, [two_signs(400, seed=4)], [two_signs(400, seed=5)])
    for name, value in before.items():
        assert torch.equal(getattr(fitted, name), value) if isinstance(value, torch.Tensor) else True
    for name in ("weights_", "biases_", "vote_thresholds_", "head_risk_"):
        assert torch.equal(getattr(other, name), getattr(fitted, name))
    assert not torch.equal(other.joint_weights_, fitted.joint_weights_)
    # No certificate may be given on any text that it has seen.
    assert {*fitted.training_groups_, "group 4-0"} <= set(other.training_groups_)
    assert {*fitted.validation_groups_, "group 5-0"} <= set(other.validation_groups_)


def test_on_the_caches_of_the_fit_nothing_changes(fitted):
    again = refit_joint(fitted, [two_signs(800)], [two_signs(400, seed=1)])
    for name in ("joint_weights_", "joint_biases_", "joint_carry_", "joint_ramps_", "joint_fpr_", "joint_fnr_"):
        torch.testing.assert_close(getattr(again, name), getattr(fitted, name))


def test_a_layer_that_was_not_collected_keeps_no_score():
    def first_alone(cache: rl.HeadCache) -> rl.HeadCache:
        z = cache.z.clone()
        z[:, 1] = 0
        return replace(cache, z=z, meta={"layers": [0]})

    train, validation = first_alone(two_signs(800)), first_alone(two_signs(400, seed=1))
    detector = refit_joint(rl.RiskAwareDetector(joint=True).fit(train, validation), [train], [validation])
    assert detector.joint_fpr_[1].isnan() and not detector.joint_fpr_[0].isnan()
    with pytest.raises(InvalidArgumentError, match=r"whose activations were collected: \(0,\); got 1"):
        refit_joint(rl.RiskAwareDetector(joint=True).fit(two_signs(800)), [train], [validation])


def test_what_cannot_be_fitted_is_refused(fitted):
    train, validation = two_signs(400), two_signs(400, seed=1)
    with pytest.raises(NotFittedError):
        refit_joint(rl.RiskAwareDetector(joint=True), [train], [validation])
    with pytest.raises(InvalidArgumentError, match=r"no joint scores: fit a `RiskAwareDetector\(joint=True\)`"):
        refit_joint(rl.RiskAwareDetector().fit(train, validation), [train], [validation])
    with pytest.raises(InvalidArgumentError, match="`train` must be one cache of activations or more"):
        refit_joint(fitted, [], [validation])
    with pytest.raises(InvalidArgumentError, match="`train` must hold HeadCache alone"):
        refit_joint(fitted, [train.z], [validation])
    with pytest.raises(InvalidArgumentError, match=r"train\.z"):
        refit_joint(fitted, [train, replace(train, z=train.z[..., :2])], [validation])
    with pytest.raises(LeakageError):
        refit_joint(fitted, [train, validation], [validation])
    for bad in (validation.select(validation.labels == 0), validation.select([])):
        for caches in ([bad], [validation, bad]):
            with pytest.raises(DataError, match="the validation data has no"):
                refit_joint(fitted, [train], caches)
    broken = replace(train, z=train.z.clone())
    broken.z[3] = torch.nan
    with pytest.raises(DataError, match="finite"):
        refit_joint(fitted, [train, broken], [validation])
