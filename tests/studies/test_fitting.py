"""`fit`: the same as its steps by hand, in one call; and what it returns where there is no steering."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.analysis.behaviour import BehaviourCertificate
from radiant_lens.detectors import load_detector
from radiant_lens.errors import ArtefactError, DataError, InvalidArgumentError, NothingToEditError


@pytest.fixture(scope="module")
def fitted(model, facts, tuned):
    return rl.fit(model, facts, tuned, detector=rl.RiskAwareDetector(fnr_weight=0.65, vote_rule="risk"))


@pytest.fixture(scope="module")
def few(model, facts):
    """Ten groups: two of validation, which cannot show that a head is significant."""
    return rl.fit(model, replace(facts.head(10), contexts=None))


def test_one_call_equals_its_steps(fitted, recipe, experiment, facts):
    assert fitted.steering.sites == recipe.steering.sites
    assert all(
        torch.equal(one.G, other.G)
        for one, other in zip(fitted.steering.maps().values(), recipe.steering.maps().values())
    )
    assert torch.equal(fitted.detector.weights_, experiment.detector.weights_)
    assert fitted.certificate == recipe.steering.certify(experiment.test_cache())
    assert [part.groups for part in fitted.splits] == [part.groups for part in facts.split((0.6, 0.2, 0.2), seed=0)]
    assert fitted.splits.test.groups == set(fitted.held_out.group_names)


def test_another_policy_keeps_its_heads(model, facts):
    small = facts.head(40)
    fitted = rl.fit(model, small, rl.ITIPolicy(n_heads=5), seed=1)
    assert len(fitted.steering.sites) == 5
    assert fitted.effects is None
    assert fitted.splits.train.groups == small.split((0.6, 0.2, 0.2), seed=1)[0].groups


def test_the_choice_by_effect(model, facts):
    small = facts.head(60)
    every = rl.fit(model, small, select=None)
    two = rl.fit(model, small, select=2)
    assert len(two.steering.sites) == 2 < len(every.steering.sites)
    assert set(two.steering.sites) < set(every.steering.sites)
    # Without prompts there is no effect to choose by.
    without = replace(small, bare_prompts=())
    assert rl.fit(model, without).steering.sites == every.steering.sites


def test_least_kl_is_certified_by_what_it_does(model, facts):
    fitted = rl.fit(model, facts.head(40), rl.LeastKLPolicy(budget=0.05))
    assert isinstance(fitted.certificate, BehaviourCertificate)
    assert fitted.certificate.kl_budget == 0.05
    assert "KL of" in repr(fitted)
    assert "Validation risk of each head" in fitted.report().html


def test_too_few_groups_leave_the_detector(few, tmp_path):
    with pytest.raises(
        NothingToEditError, match="2 validation groups cannot show that a head is significant"
    ) as raised:
        _ = few.steering
    assert raised.value is few.result
    assert few.certificate is None and few.effects is None
    assert "2 validation groups" in repr(few)
    assert "What these data cannot show" in few.report().html
    few.save(tmp_path / "few")
    restored = load_detector(tmp_path / "few")
    assert torch.equal(restored.weights_, few.detector.weights_)
    assert restored.to_dataframe().equals(few.detector.to_dataframe())
    assert str(restored) == str(few.detector)


def test_a_steering_replaces_a_detector_but_not_the_other_way_round(few, fitted, tmp_path):
    few.save(tmp_path / "out")
    fitted.save(tmp_path / "out")
    with pytest.raises(ArtefactError, match="exists and is not a saved detector; it is left alone"):
        few.save(tmp_path / "out")
    assert rl.Steering.load(tmp_path / "out").sites == fitted.steering.sites
    with pytest.raises(ArtefactError, match="is not a saved detector"):
        load_detector(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "radiant"}, "`policy` must be an unfitted policy, such as RadiantPolicy.. or ITIPolicy..; got str"),
        ({"policy": rl.ITIPolicy}, "`policy` must be an unfitted policy, .*; got the class ITIPolicy"),
        ({"policy": rl.RadiantPolicy(gamma=0.7)}, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
        ({"data": ["a"]}, "`data` must be a Dataset; got list: `load_dataset` makes one"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(options, words, facts):
    # There is no model: nothing may be run.
    with pytest.raises(InvalidArgumentError, match=words):
        rl.fit(None, **{"data": facts, **options})


def test_too_few_groups_of_a_class_are_refused_before_anything_is_collected(model, monkeypatch):
    def collected(*arguments: object, **options: object) -> None:
        raise AssertionError("activations were collected")

    monkeypatch.setattr("radiant_lens.studies.experiment.collect", collected)
    for n, words in (
        (6, "training part needs at least 1 of its 4 groups with an und"),
        (9, "validation part needs at least 2 of its 2 groups"),
    ):
        statements = tuple(rl.Statement(f"the soup {i} .", int(i > 6), f"group {i}") for i in range(n))
        with pytest.raises(DataError, match=words) as raised:
            rl.fit(model, rl.Dataset("few", statements))
        assert "Give more groups of that class, or this part a larger share." in str(raised.value)


def test_a_detector_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(rl.errors.NotFittedError, match="not fitted yet"):
        rl.detectors.save_detector(rl.RiskAwareDetector(), tmp_path / "d")
    assert studies.Fitted.__dataclass_params__.frozen


def test_the_defaults_are_those_of_the_classes(model, facts):
    fitted = rl.fit(model, facts.sample(120, seed=1))
    assert fitted.detector.get_params() == rl.RiskAwareDetector().get_params()
    policy = fitted.steering.meta["policy"]
    assert (policy["gamma"], policy["gate"]) == (rl.RadiantPolicy().gamma, rl.RadiantPolicy().gate)
