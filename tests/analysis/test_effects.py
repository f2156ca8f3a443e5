"""Head effects: the estimate against real edits, and its use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import logits_set
from scipy import stats

import radiant_lens as rl
from radiant_lens.errors import DataError, ModelMismatchError, NothingToEditError, RadiantError


@pytest.fixture(scope="module")
def every_head(experiment):
    """A steering on all significant heads, and a quarter of the validation questions to measure on."""
    steering = rl.RadiantPolicy(gate="vote").fit(experiment.train_cache, experiment.detector)
    return steering, experiment.validation.head(16)


@pytest.fixture(scope="module")
def measured(model, every_head):
    steering, data = every_head
    return rl.head_effects(model, data, steering).exact()


def test_estimates_agree_with_real_edits(measured):
    assert len(measured.sites) >= 16
    assert torch.isfinite(measured.measured).all()
    assert stats.pearsonr(measured.estimated, measured.measured).statistic > 0.95
    assert stats.spearmanr(measured.estimated, measured.measured).statistic > 0.95


def test_estimates_are_exact_for_small_edits(model, every_head):
    steering, data = every_head
    # A thousandth of each edit: the second-order term is a millionth, below the tolerance.
    tiny = replace(steering, head_maps=replace(steering.head_maps, write=1e-3 * steering.head_maps.write))
    effects = rl.head_effects(model, data.head(4), tiny).exact(3)
    best = effects.estimated.argsort(descending=True)[:3]
    torch.testing.assert_close(effects.measured[best], effects.estimated[best], rtol=0.05, atol=2e-5)


def test_heads_that_detect_best_are_not_those_with_most_effect(measured, experiment):
    """Risk ranks heads otherwise than effect does; if it did not, effects would not be needed."""
    risk = [-float(experiment.detector.head_risk_[site]) for site in measured.sites]
    assert stats.spearmanr(risk, measured.measured).statistic < 0.9


def test_frozen_weights_give_the_same_effects(model, every_head):
    steering, data = every_head
    small = data.head(3)
    expected = rl.head_effects(model, small, steering).estimated
    for parameter in model.original_model.parameters():
        parameter.requires_grad_(False)
    try:
        torch.testing.assert_close(rl.head_effects(model, small, steering).estimated, expected)
    finally:
        for parameter in model.original_model.parameters():
            parameter.requires_grad_(True)


def test_batching_does_not_matter(model, every_head):
    steering, data = every_head
    small = data.head(3)
    one, other = (rl.head_effects(model, small, steering, max_tokens=n).estimated for n in (4096, 60))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_effects_record_the_groups_of_their_prompts(model, every_head):
    """Heads that are chosen by effects have seen those groups: they cannot certify the steering."""
    steering, data = every_head
    small = data.head(3)
    # Prompts without answers take no part, and neither does their group.
    unanswered = replace(small.bare_prompts[0], group="unanswered", correct_answers=())
    effects = rl.head_effects(
        model, replace(small, bare_prompts=(*small.bare_prompts, unanswered), contexts=None), steering
    )
    assert effects.group_names == tuple(sorted({p.group for p in small.bare_prompts}))
    assert effects.exact(1).group_names == effects.group_names


def test_table_is_sorted_and_intervals_hold_their_value(measured):
    table = measured.to_dataframe()
    assert table["estimated"].is_monotonic_decreasing
    assert ((table["low"] <= table["estimated"]) & (table["estimated"] <= table["high"])).all()


def test_an_impossible_token_changes_no_effect(model, every_head):
    steering, data = every_head
    effects = []
    for logit in (-1e4, -torch.inf):
        with logits_set(model, model.tokenizer.pad_token_id, logit):
            effects.append(rl.head_effects(model, data.head(4), steering).estimated)
    torch.testing.assert_close(*effects)


def test_nan_in_the_logits_raises_an_error(model, every_head):
    steering, data = every_head
    with logits_set(model, 3, torch.nan), pytest.raises(RadiantError, match="logits are not numbers"):
        rl.head_effects(model, data.head(4), steering)


def test_data_without_answers_and_another_model_raise_errors(model, every_head, facts, foreign_folder):
    steering, data = every_head
    with pytest.raises(DataError, match="no prompt with both"):
        rl.head_effects(model, replace(data, bare_prompts=()), steering)
    with pytest.raises(ModelMismatchError, match="architecture"):
        rl.head_effects(rl.load_model(foreign_folder), data, steering)


@pytest.fixture(scope="module")
def sequential(model, experiment):
    policy = rl.RadiantPolicy(gamma=0.05)
    train = experiment.train.head(60)
    return policy, train, policy.fit_sequential(model, train, experiment.detector)


def test_each_layer_is_fitted_under_the_edits_of_the_earlier_ones(model, experiment, sequential):
    policy, train, fit = sequential
    layers = fit.steering.layers
    assert len(layers) > 1
    earlier = fit.steering.select([s for s in fit.steering.sites if s.layer < layers[-1]])
    here = [s for s in fit.steering.sites if s.layer == layers[-1]]
    under = rl.collect(model, train, steering=earlier)
    expected = replace(policy, heads=here).fit(under, experiment.detector)
    joint = replace(policy, heads=here).fit(rl.collect(model, train), experiment.detector)
    for site in here:
        torch.testing.assert_close(fit.steering.maps()[site].g, expected.maps()[site].g)
    assert any((fit.steering.maps()[s].g - joint.maps()[s].g).abs().max() > 1e-3 for s in here)


def test_first_layer_is_fitted_as_without_steering(model, experiment, sequential):
    policy, train, fit = sequential
    joint = policy.fit(rl.collect(model, train), experiment.detector)
    for site in joint.sites:
        if site.layer == fit.steering.layers[0]:
            torch.testing.assert_close(fit.steering.maps()[site].G, joint.maps()[site].G)


def test_moments_are_reported_to_have_moved(sequential):
    _, _, fit = sequential
    moved = fit.moved
    first = moved["layer"] == fit.steering.layers[0]
    assert (moved.loc[first, "distance"] < 1e-6).all()
    assert (moved.loc[first, "flagged"] == moved.loc[first, "flagged_before"]).all()
    assert (moved.loc[~first, "distance"] > 0.01).all()
    assert len(moved) == len(fit.steering.sites)
    assert "moments moved by" in repr(fit)


def test_collected_activations_are_those_before_the_edits_of_their_own_layer(model, experiment, steering):
    test = experiment.test.head(6)
    last = steering.layers[-1]
    earlier = steering.select([s for s in steering.sites if s.layer < last]) if len(steering.layers) > 1 else None
    under = rl.collect(model, test, steering=steering)
    expected = rl.collect(model, test, steering=earlier)
    torch.testing.assert_close(under.z[:, last], expected.z[:, last])
    # Unsteered answers share the rows of their prompts, which changes the order of sums.
    unsteered = slice(0, steering.layers[0] + 1)
    torch.testing.assert_close(under.z[:, unsteered], rl.collect(model, test).z[:, unsteered], rtol=1e-4, atol=1e-5)


def test_sequential_fit_of_heads_that_flag_nothing_raises_an_error(model, experiment):
    shy = rl.RiskAwareDetector()
    shy.__dict__.update(experiment.detector.__dict__)
    shy.biases_ = experiment.detector.biases_ - 1e6
    with pytest.raises(NothingToEditError, match="No layer has anything to edit"):
        rl.fit_sequential(model, experiment.train.head(10), shy, rl.RadiantPolicy())
