"""`refit_joint`: scores of layers that still find undesirable text where edits have taken away what others read."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.detectors.joint import L2_FACTOR, _share, fit_joint
from radiant_lens.detectors.refit import refit_joint
from radiant_lens.detectors.steady import Edited
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
    texts = tuple(f"text {seed}-{i}" for i in range(n))
    return rl.HeadCache(z, labels, torch.arange(n), torch.zeros(n, dtype=torch.long), texts, names)


def edited(n: int, seed: int = 0) -> list[rl.HeadCache]:
    return [two_signs(n, seed, strength=strength) for strength in (1.0, 4.0)]


@pytest.fixture(scope="module")
def fitted() -> rl.RiskAwareDetector:
    return rl.RiskAwareDetector(joint=True).fit(two_signs(800), two_signs(400, seed=1))


@pytest.fixture(scope="module")
def refitted(fitted) -> rl.RiskAwareDetector:
    return refit_joint(fitted, two_signs(800), two_signs(400, seed=1), edited(400), change_penalty=1.0)


def found(detector, cache) -> float:
    """The share of undesirable examples that layer 1 flags."""
    return float(detector.joint_flags(cache)[cache.labels == 1, 1].double().mean())


def test_what_an_edit_hides_is_found_again(fitted, refitted):
    plain, once, far = (two_signs(1000, seed=2, strength=strength) for strength in (0.0, 1.0, 4.0))
    assert found(fitted, plain) > 0.9 and found(fitted, once) < 0.1
    assert found(refitted, plain) > 0.6
    # It is not lost, and edits are not taken for a sign of undesirable text either; in the last, heads move by
    # fourteen times the spread of their class.
    assert abs(found(refitted, once) - found(refitted, plain)) < 0.1
    assert abs(found(refitted, far) - found(refitted, plain)) < 0.3
    for cache in (plain, once, far):
        assert refitted.joint_flags(cache)[cache.labels == 0, 1].double().mean() < 0.3


def joint_change(detector, plain, under, layer: int) -> float:
    """The root mean square of the change of a joint score, in units of the spread of the score."""
    scores = []
    for cache in (plain, under):
        own = torch.einsum("nlhd,lhd->nl", cache.z, detector.joint_weights_) + detector.joint_biases_
        scores.append(own[:, 0] if layer == 0 else own[:, 1] + detector.joint_carry_[1] * own[:, 0])
    return float((scores[1] - scores[0]).square().mean().sqrt() / scores[0].std())


@pytest.mark.parametrize("layer", [0, 1])
def test_more_penalty_less_change(fitted, layer):
    train, validation = two_signs(800), two_signs(400, seed=1)
    new = [two_signs(1000, seed=2, strength=strength) for strength in (0.0, 1.0)]
    changes = []
    for penalty in (0.0, 0.01, 0.1, 1.0):
        detector = refit_joint(fitted, train, validation, edited(400), change_penalty=penalty)
        changes.append(joint_change(detector, *new, layer))
    assert changes == sorted(changes, reverse=True) and changes[-1] < 0.1 * changes[0]


def test_without_a_penalty_the_scores_are_those_of_the_first_fit(fitted):
    same = refit_joint(fitted, two_signs(800), two_signs(400, seed=1), edited(400), change_penalty=0.0)
    for name in ("joint_weights_", "joint_biases_", "joint_carry_", "joint_ramps_", "joint_fpr_", "joint_fnr_"):
        torch.testing.assert_close(getattr(same, name), getattr(fitted, name), rtol=2e-2, atol=2e-2)


def of_any_scale(n: int, seed: int = 0, *, moved: float = 0.0) -> rl.HeadCache:
    """Activations with spreads over two decades and large means; edits move all of them, some more."""
    cache = two_signs(n, seed)
    generator = torch.Generator().manual_seed(99)
    scale, mean, size = (torch.rand(2, 3, 4, generator=generator) for _ in range(3))
    step = torch.randn(n, 2, 3, 4, generator=generator) * size * (moved * cache.labels)[:, None, None, None]
    return replace(cache, z=(cache.z - step - moved * cache.labels[:, None, None, None] + 5 * mean) * 10 ** (2 * scale))


def test_the_penalty_is_the_mean_square_of_the_change_of_the_score():
    """The map before the fit against the objective itself, minimised in double precision."""
    train, under, l2, penalty = of_any_scale(800), of_any_scale(400, moved=1.5), 1e-3, 0.3
    whole, stop = Part.whole(train), Part.whole(of_any_scale(400, seed=1))
    joint = fit_joint(whole, stop, (0, 1), l2, 200, [Edited.of(under, train)], penalty)
    z, plain = train.z[:, 0].flatten(1).double(), train.z[:400, 0].flatten(1).double()
    spread = z.std(0, correction=0)
    x, change = (z - z.mean(0)) / spread, (under.z[:, 0].flatten(1).double() - plain) / spread
    sign = 1.0 - 2.0 * train.labels.double()
    weights = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective(penalty=penalty):
        optimiser.zero_grad()
        losses = torch.nn.functional.softplus(sign * (x @ weights[:-1] + weights[-1]))
        ridge = L2_FACTOR * l2 / 2 * weights[:-1].square().sum()
        # Means of both classes; half of the examples are of each.
        value = 2 * losses.mean() + ridge + penalty / 2 * (change @ weights[:-1]).square().mean()
        value.backward()
        return value

    optimiser.step(objective)
    expected = weights[:-1].detach().clone()
    torch.testing.assert_close(joint.weights[0].flatten().double() * spread, expected, rtol=1e-2, atol=1e-3)
    # The penalty matters here.
    optimiser.step(lambda: objective(0.0))
    assert (weights[:-1] - expected).norm() > 0.3 * expected.norm()


def test_a_layer_that_edits_leave_as_it_is_carries_the_others(fitted):
    """Both layers tell the classes alike; the edits touch the upper one alone, whose score then reads the lower."""
    under = [replace(cache, z=cache.z.clone()) for cache in edited(400)]
    for cache in under:
        cache.z[:, 0] = two_signs(400).z[:, 0]
    again = refit_joint(fitted, two_signs(800), two_signs(400, seed=1), under)
    torch.testing.assert_close(again.joint_weights_[0], fitted.joint_weights_[0])
    below, own = (d.joint_carry_[1] / d.joint_weights_[1].norm() for d in (again, fitted))
    assert below > 1.5 * own
    new = [two_signs(1000, seed=2, strength=strength) for strength in (0.0, 1.0)]
    new[1].z[:, 0] = new[0].z[:, 0]
    assert joint_change(again, *new, 1) < 0.1 * joint_change(fitted, *new, 1)
    untouched = refit_joint(fitted, two_signs(800), two_signs(400, seed=1), [two_signs(400)])
    for name in ("joint_weights_", "joint_biases_", "joint_carry_", "joint_ramps_", "joint_fpr_", "joint_fnr_"):
        torch.testing.assert_close(getattr(untouched, name), getattr(fitted, name))


def test_tokens_are_found_by_text_group_and_position(fitted):
    train, validation = two_signs(800), two_signs(400, seed=1)
    in_order = refit_joint(fitted, train, validation, edited(400))
    backwards = [cache.select(list(range(len(cache)))[::-1]) for cache in edited(400)]
    torch.testing.assert_close(
        refit_joint(fitted, train, validation, backwards).joint_weights_, in_order.joint_weights_, rtol=1e-3, atol=1e-4
    )
    # Two positions of each text, and each text in two groups.
    few = two_signs(8)
    places = {"text_index": torch.arange(8) // 2, "positions": torch.arange(8) % 2}
    plain = replace(few, **places, texts=("a", "a", "b", "b"), group_names=("one", "two", "one", "two"))
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    assert Edited.of(plain.select(order), plain).rows.tolist() == order


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_the_share_of_the_layer_below_pays_for_the_change_of_the_sum(penalty):
    generator = torch.Generator().manual_seed(0)
    undesirable = torch.rand(600, generator=generator) < 0.2
    scores = 3 * torch.randn(600, 2, generator=generator) * torch.tensor([1.0, 0.1])
    scores += undesirable[:, None] * torch.tensor([3.0, 0.4])
    changes = torch.randn(300, 2, generator=generator) * torch.tensor([4.0, 0.1]) - 1.0
    share = _share(scores, undesirable, changes, penalty)
    factors = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([factors], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective():
        optimiser.zero_grad()
        sign = 1.0 - 2.0 * undesirable.double()
        losses = torch.nn.functional.softplus(sign * (scores.double() @ factors[:2] + factors[2]))
        value = losses.mean() + penalty / 4 * (changes.double() @ factors[:2]).square().mean()
        value.backward()
        return value

    optimiser.step(objective)
    # Up to scikit-learn's own penalty.
    found = torch.tensor([share.own, share.below, share.constant], dtype=torch.float64)
    torch.testing.assert_close(found, factors.detach(), rtol=0.03, atol=0.01)


def test_its_rates_are_those_of_unsteered_text_of_other_groups(refitted):
    new = two_signs(4000, seed=3)
    flags, bad = refitted.joint_flags(new), new.labels == 1
    assert abs(refitted.joint_fnr_[1] - (~flags[bad, 1]).double().mean()) < 0.1
    assert abs(refitted.joint_fpr_[1] - flags[~bad, 1].double().mean()) < 0.1


def test_heads_stay_and_the_first_detector_too(fitted):
    before = copy.deepcopy(vars(fitted))
    other = refit_joint(fitted, two_signs(400, seed=4), two_signs(400, seed=5), edited(400, seed=4))
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(fitted, name), value)
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
    under = [first_alone(cache) for cache in edited(400)]
    detector = refit_joint(rl.RiskAwareDetector(joint=True).fit(train, validation), train, validation, under)
    assert detector.joint_fpr_[1].isnan() and not detector.joint_fpr_[0].isnan()
    with pytest.raises(InvalidArgumentError, match=r"whose activations were collected: \(0,\); got 1"):
        refit_joint(rl.RiskAwareDetector(joint=True).fit(two_signs(800)), train, validation, under)


def test_what_cannot_be_fitted_is_refused(fitted):
    train, validation, under = two_signs(400), two_signs(400, seed=1), edited(400)
    with pytest.raises(NotFittedError):
        refit_joint(rl.RiskAwareDetector(joint=True), train, validation, under)
    with pytest.raises(InvalidArgumentError, match=r"no joint scores: fit a `RiskAwareDetector\(joint=True\)`"):
        refit_joint(rl.RiskAwareDetector().fit(train, validation), train, validation, under)
    with pytest.raises(InvalidArgumentError, match="`train` must be a HeadCache"):
        refit_joint(fitted, train.z, validation, under)
    with pytest.raises(InvalidArgumentError, match=r"train\.z"):
        refit_joint(fitted, replace(train, z=train.z[..., :2]), validation, under)
    with pytest.raises(InvalidArgumentError, match="`change_penalty` must lie at or above 0"):
        refit_joint(fitted, train, validation, under, change_penalty=-1.0)
    with pytest.raises(InvalidArgumentError, match=r"`detector\.l2` must lie strictly above 0"):
        refit_joint(rl.RiskAwareDetector(joint=True, l2=0.0).fit(train, validation), train, validation, under)
    with pytest.raises(InvalidArgumentError, match="`edited` must be one cache .* or more; got none"):
        refit_joint(fitted, train, validation, [])
    for given in ([train.z], train):
        with pytest.raises(InvalidArgumentError, match="`edited` must (hold HeadCache alone|be a list)"):
            refit_joint(fitted, train, validation, given)
    # Also texts that the held-out half would judge.
    for other in (two_signs(400, seed=3), validation, replace(train, meta={"layers": [0]})):
        with pytest.raises(InvalidArgumentError, match="must be of tokens that `train` holds, and of the same layers"):
            refit_joint(fitted, train, validation, [other])
    with pytest.raises(InvalidArgumentError, match=r"edited\.z"):
        refit_joint(fitted, train, validation, [replace(train, z=train.z.mT)])
    with pytest.raises(LeakageError):
        refit_joint(fitted, train, train, under)
    for bad in (validation.select(validation.labels == 0), validation.select([])):
        with pytest.raises(DataError, match="the validation data has no"):
            refit_joint(fitted, train, bad, under)
    broken = replace(train, z=train.z.clone())
    broken.z[3] = torch.nan
    for given in ((broken, under), (train, [broken])):
        with pytest.raises(DataError, match="finite"):
            refit_joint(fitted, given[0], validation, given[1])
