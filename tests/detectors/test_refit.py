"""`refit_joint`: scores of layers that still find undesirable text where edits have taken away what others read."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.detectors.joint import L2_FACTOR, fit_joint
from radiant_lens.detectors.refit import refit_joint
from radiant_lens.detectors.steady import damping
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, NotFittedError


def two_signs(n: int, seed: int = 0, *, strength: float = 0.0) -> rl.HeadCache:
    """Classes that differ much along one axis and less along another; edits of this strength move them on the first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    z = torch.randn(n, 2, 3, 4, generator=generator)
    z[..., 0] += (2.0 - strength * 3.5) * labels[:, None, None]
    z[..., 1] += 1.2 * labels[:, None, None]
    names = tuple(f"group {seed}-{i // 2}" for i in range(n))
    return rl.HeadCache(z, labels, torch.arange(n), torch.zeros(n, dtype=torch.long), names, names)


def pairs(n: int, seed: int = 0) -> list[tuple[rl.HeadCache, rl.HeadCache]]:
    return [(two_signs(n, seed), two_signs(n, seed, strength=strength)) for strength in (1.0, 4.0)]


@pytest.fixture(scope="module")
def fitted() -> rl.RiskAwareDetector:
    return rl.RiskAwareDetector(joint=True).fit(two_signs(800), two_signs(400, seed=1))


@pytest.fixture(scope="module")
def refitted(fitted) -> rl.RiskAwareDetector:
    return refit_joint(fitted, two_signs(800), two_signs(400, seed=1), pairs(400))


def found(detector, cache) -> float:
    """The share of undesirable examples that layer 1 flags."""
    return float(detector.joint_flags(cache)[cache.labels == 1, 1].double().mean())


def test_what_an_edit_hides_is_found_again(fitted, refitted):
    caches = [two_signs(1000, seed=2, strength=strength) for strength in (0.0, 1.0, 4.0)]
    assert found(fitted, caches[0]) > 0.9 and found(fitted, caches[1]) < 0.1
    before, *under = (refitted.joint_flags(cache)[:, 1] for cache in caches)
    assert before[caches[0].labels == 1].double().mean() > 0.6 and before[caches[0].labels == 0].double().mean() < 0.3
    # The score loses little to edits, and does not read in them that the text is undesirable: not even where each
    # head moves by fourteen times the spread of its class.
    for flags, share in zip(under, (0.9, 0.7)):
        assert (flags == before).double().mean() > share


def test_more_penalty_less_change(fitted):
    train, validation = two_signs(800), two_signs(400, seed=1)
    plain, edited = (two_signs(1000, seed=2, strength=strength).z[:, 0].flatten(1) for strength in (0.0, 1.0))
    changes = []
    for penalty in (0.0, 0.01, 0.1, 1.0):
        weights = refit_joint(fitted, train, validation, pairs(400), change_penalty=penalty).joint_weights_[0].flatten()
        changes.append(float(((edited - plain) @ weights).square().mean().sqrt() / (plain @ weights).std()))
    assert changes == sorted(changes, reverse=True) and changes[-1] < 0.1 * changes[0]


def test_the_penalty_is_the_mean_square_of_the_change_of_the_score():
    """The map before the fit against the objective itself, minimised in double precision."""
    train, l2, penalty = two_signs(800), 1e-3, 0.05
    steady = damping(train, pairs(400), penalty / (L2_FACTOR * l2))
    joint = fit_joint(Part.whole(train), Part.whole(two_signs(400, seed=1)), (0, 1), l2, 200, steady)
    x = train.z[:, 0].flatten(1).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    moved = [edited.z[:, 0].flatten(1).double() - plain.z[:, 0].flatten(1).double() for plain, edited in pairs(400)]
    change = torch.cat(moved) / train.z[:, 0].flatten(1).double().std(0, correction=0)
    sign = 1.0 - 2.0 * train.labels.double()
    weights = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective():
        optimiser.zero_grad()
        losses = torch.nn.functional.softplus(sign * (x @ weights[:-1] + weights[-1]))
        ridge = L2_FACTOR * l2 / 2 * weights[:-1].square().sum()
        # Means of both classes; half of the examples are of each.
        value = 2 * losses.mean() + ridge + penalty / 2 * (change @ weights[:-1]).square().mean()
        value.backward()
        return value

    optimiser.step(objective)
    expected = weights[:-1].detach() / train.z[:, 0].flatten(1).double().std(0, correction=0)
    torch.testing.assert_close(joint.weights[0].flatten().double(), expected, rtol=1e-2, atol=1e-3)


def test_a_layer_that_edits_leave_as_it_is_keeps_its_score(fitted):
    def first_alone(pair):
        z = pair[1].z.clone()
        z[:, 1] = pair[0].z[:, 1]
        return pair[0], replace(pair[1], z=z)

    again = refit_joint(fitted, two_signs(800), two_signs(400, seed=1), map(first_alone, pairs(400)))
    assert not torch.allclose(again.joint_weights_[0], fitted.joint_weights_[0])
    # Up to its share beside the layer below.
    ratio = again.joint_weights_[1] / fitted.joint_weights_[1]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)
    untouched = refit_joint(fitted, two_signs(800), two_signs(400, seed=1), [(two_signs(400), two_signs(400))])
    for name in ("joint_weights_", "joint_biases_", "joint_carry_", "joint_ramps_", "joint_fpr_", "joint_fnr_"):
        torch.testing.assert_close(getattr(untouched, name), getattr(fitted, name))


def test_its_rates_are_those_of_unsteered_text_of_other_groups(refitted):
    new = two_signs(4000, seed=3)
    flags, bad = refitted.joint_flags(new), new.labels == 1
    assert abs(refitted.joint_fnr_[1] - (~flags[bad, 1]).double().mean()) < 0.1
    assert abs(refitted.joint_fpr_[1] - flags[~bad, 1].double().mean()) < 0.1


def test_heads_stay_and_the_first_detector_too(fitted):
    before = copy.deepcopy(vars(fitted))
    other = refit_joint(fitted, two_signs(400, seed=4), two_signs(400, seed=5), pairs(400, seed=4))
    for name, value in before.items():
        assert torch.equal(getattr(fitted, name), value) if isinstance(value, torch.Tensor) else True
    for name in ("weights_", "biases_", "vote_thresholds_", "head_risk_"):
        assert torch.equal(getattr(other, name), getattr(fitted, name))
    assert not torch.equal(other.joint_weights_, fitted.joint_weights_)
    # No certificate may be given on any text that it has seen.
    assert {*fitted.training_groups_, "group 4-0"} <= set(other.training_groups_)
    assert {*fitted.validation_groups_, "group 5-0"} <= set(other.validation_groups_)


def test_a_layer_that_was_not_collected_keeps_no_score():
    def first_alone(cache: rl.HeadCache) -> rl.HeadCache:
        z = cache.z.clone()
        z[:, 1] = 0
        return replace(cache, z=z, meta={"layers": [0]})

    train, validation = first_alone(two_signs(800)), first_alone(two_signs(400, seed=1))
    detector = refit_joint(rl.RiskAwareDetector(joint=True).fit(train, validation), train, validation, pairs(400))
    assert detector.joint_fpr_[1].isnan() and not detector.joint_fpr_[0].isnan()
    with pytest.raises(InvalidArgumentError, match=r"whose activations were collected: \(0,\); got 1"):
        refit_joint(rl.RiskAwareDetector(joint=True).fit(two_signs(800)), train, validation, pairs(400))


def test_what_cannot_be_fitted_is_refused(fitted):
    train, validation, changes = two_signs(400), two_signs(400, seed=1), pairs(400)
    with pytest.raises(NotFittedError):
        refit_joint(rl.RiskAwareDetector(joint=True), train, validation, changes)
    with pytest.raises(InvalidArgumentError, match=r"no joint scores: fit a `RiskAwareDetector\(joint=True\)`"):
        refit_joint(rl.RiskAwareDetector().fit(train, validation), train, validation, changes)
    with pytest.raises(InvalidArgumentError, match="`train` must be a HeadCache"):
        refit_joint(fitted, train.z, validation, changes)
    with pytest.raises(InvalidArgumentError, match=r"train\.z"):
        refit_joint(fitted, replace(train, z=train.z[..., :2]), validation, changes)
    with pytest.raises(InvalidArgumentError, match="`change_penalty` must lie at or above 0"):
        refit_joint(fitted, train, validation, changes, change_penalty=-1.0)
    with pytest.raises(InvalidArgumentError, match=r"`detector\.l2` must lie strictly above 0"):
        refit_joint(rl.RiskAwareDetector(joint=True, l2=0.0).fit(train, validation), train, validation, changes)
    with pytest.raises(InvalidArgumentError, match="Each pair must hold the same tokens without and with edits"):
        refit_joint(fitted, train, validation, [(train, two_signs(400, seed=3))])
    with pytest.raises(LeakageError):
        refit_joint(fitted, train, train, changes)
    for bad in (validation.select(validation.labels == 0), validation.select([])):
        with pytest.raises(DataError, match="the validation data has no"):
            refit_joint(fitted, train, bad, changes)
    broken = replace(train, z=train.z.clone())
    broken.z[3] = torch.nan
    for given in ((broken, changes), (train, [(train, broken)])):
        with pytest.raises(DataError, match="finite"):
            refit_joint(fitted, given[0], validation, given[1])
