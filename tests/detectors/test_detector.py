"""`RiskAwareDetector`: what it learns and what it answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detector_states import altered, fitted_attributes, same
from sklearn.base import clone

from radiant_lens import RiskAwareDetector
from radiant_lens.detectors.scores import LOSSES
from radiant_lens.errors import (
    UnknownNameError,
)
from radiant_lens.statistics.rates import error_rates

# What is learned


@pytest.mark.parametrize("loss", LOSSES)
def test_fitted_attributes_have_their_shapes(loss, train, validation):
    d = RiskAwareDetector(loss=loss, max_iterations=10).fit(train, validation)
    shapes = {n: tuple(v.shape) for n, v in fitted_attributes(d).items() if isinstance(v, torch.Tensor)}
    per_head = {
        "biases_",
        "head_fpr_",
        "head_fnr_",
        "head_risk_",
        "head_p_value_",
        "head_significant_",
        "head_constant_",
    }
    per_layer = {"layer_risk_", "vote_thresholds_", "vote_fpr_", "vote_fnr_", "vote_risk_", "vote_certified_"}
    assert shapes == {"weights_": (2, 3, 4), **dict.fromkeys(per_head, (2, 3)), **dict.fromkeys(per_layer, (2,))}


def test_attributes_agree_with_each_other(fitted):
    torch.testing.assert_close(fitted.head_risk_, fitted.head_fpr_ + fitted.head_fnr_)
    torch.testing.assert_close(fitted.layer_risk_, fitted.head_risk_.mean(1))
    torch.testing.assert_close(fitted.vote_risk_, fitted.vote_fpr_ + fitted.vote_fnr_)
    assert float(fitted.layer_risk_[fitted.best_layer_]) == float(fitted.layer_risk_.min())
    assert bool(((fitted.vote_thresholds_ >= 1) & (fitted.vote_thresholds_ <= 3)).all())


def test_the_risk_weighs_misses(train, validation):
    d = RiskAwareDetector(fnr_weight=2.0).fit(train, validation)
    torch.testing.assert_close(d.head_risk_, d.head_fpr_ + 2 * d.head_fnr_)
    torch.testing.assert_close(d.vote_risk_, d.vote_fpr_ + 2 * d.vote_fnr_)


def test_a_greater_shift_has_a_smaller_risk(fitted):
    assert bool((fitted.head_risk_.diff(dim=1) < -0.1).all())


def test_the_best_layer_is_the_one_with_signal(gaussian_cache):
    caches = [gaussian_cache(100, n_layers=3, seed=seed) for seed in (0, 1)]
    for cache in caches:
        cache.z[:, [0, 2]] = torch.randn(len(cache), 2, 3, 4, generator=torch.Generator().manual_seed(len(cache.texts)))
    assert RiskAwareDetector().fit(*caches).best_layer_ == 1


def test_signal_is_significant_and_chance_is_not(fitted):
    assert fitted.head_significant_.tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize("loss", LOSSES)
def test_chance_heads_are_seldom_significant(loss, gaussian_cache):
    n_fits = 0
    for seed in range(4):
        caches = [gaussian_cache(60, n_layers=3, n_heads=6, shift=0.0, seed=s) for s in (2 * seed, 2 * seed + 1)]
        n_fits += bool(RiskAwareDetector(loss=loss, max_iterations=20).fit(*caches).head_significant_.any())
    assert n_fits <= 1


def test_shuffled_labels_leave_nothing_significant(train, validation):
    control = RiskAwareDetector().fit(train.with_shuffled_labels(seed=1), validation.with_shuffled_labels(seed=2))
    assert not control.head_significant_.any()


@pytest.mark.parametrize(
    "setting",
    [{"loss": "cross_entropy"}, {"loss": "lda"}, {"l2": 1.0}, {"max_iterations": 1}, {"fnr_weight": 2.0}],
    ids=str,
)
def test_every_setting_reaches_the_fit(setting, train, validation, fitted):
    other = RiskAwareDetector(**setting).fit(train, validation)
    assert not torch.allclose(other.weights_, fitted.weights_, rtol=1e-4)
    assert torch.equal(RiskAwareDetector(**setting).fit(train, validation).weights_, other.weights_)


def test_fitting_is_deterministic_and_follows_its_seed(train, validation):
    one, again, other = (RiskAwareDetector(seed=seed).fit(train, validation) for seed in (0, 0, 1))
    assert same(fitted_attributes(one), fitted_attributes(again))
    assert not same(fitted_attributes(one), fitted_attributes(other))


def test_a_refit_does_not_depend_on_the_first_fit(train, validation, fitted):
    assert same(
        fitted_attributes(clone(fitted).fit(validation, train).fit(train, validation)), fitted_attributes(fitted)
    )


def test_scores_depend_on_the_stop_half_and_not_on_the_test_half(train, validation, fitted):
    index = validation.text_index
    halves = [set(part.texts) for part in validation.split((0.5, 0.5), seed=0)]
    for half, shapes in zip(halves, (True, False)):
        flip = torch.tensor([validation.texts[t] in half for t in index.tolist()])
        other = validation.with_labels(torch.where(flip, 1 - validation.labels, validation.labels))
        assert torch.equal(RiskAwareDetector().fit(train, other).weights_, fitted.weights_) is not shapes


def test_without_validation_a_fifth_of_the_groups_is_set_apart(train):
    d = RiskAwareDetector().fit(train)
    assert len(d.training_groups_) == 96
    first, held = train.split((0.8, 0.2), seed=0)
    assert same(fitted_attributes(d), fitted_attributes(RiskAwareDetector().fit(first, held)))


def test_half_precision_activations_give_nearly_the_same(train, validation, fitted):
    half = RiskAwareDetector().fit(*(altered(c, z=c.z.bfloat16()) for c in (train, validation)))
    assert half.weights_.dtype == torch.float32
    torch.testing.assert_close(half.head_risk_, fitted.head_risk_, atol=0.1, rtol=0)


# What it answers


def test_answers_agree_with_each_other_and_with_numpy(fitted, validation):
    naive = np.einsum("nlhd,lhd->nlh", validation.z, fitted.weights_) + fitted.biases_.numpy()
    np.testing.assert_allclose(fitted.decision_function(validation), naive, rtol=1e-4, atol=1e-5)
    votes = (fitted.decision_function(validation) >= 0).sum(-1)
    assert torch.equal(fitted.votes(validation), votes)
    for layer in (0, 1):
        assert torch.equal(
            fitted.predict(validation, layer), (votes[:, layer] >= fitted.vote_thresholds_[layer]).long()
        )
    assert torch.equal(fitted.predict(validation), fitted.predict(validation, fitted.best_layer_))
    assert not torch.equal(fitted.predict(validation, 0), fitted.predict(validation, 1))


def test_votes_on_unseen_data_have_the_rates_that_their_rule_aims_at(train, validation, gaussian_cache):
    unseen, rates = gaussian_cache(200, seed=7), {}
    for rule in ("fnr", "risk"):
        detector = RiskAwareDetector(vote_rule=rule).fit(train, validation)
        rates[rule] = error_rates(detector.predict(unseen) == 1, unseen.labels)
    assert float(rates["fnr"].fnr) < 0.05 < float(rates["risk"].fnr)
    assert float(rates["risk"].risk(1.0)) < 0.4 < float(rates["fnr"].risk(1.0))


def test_the_threshold_itself_flags(fitted, validation):
    nothing = altered(validation, z=torch.zeros_like(validation.z))
    fitted.biases_ = torch.zeros_like(fitted.biases_)
    assert bool((fitted.votes(nothing) == 3).all())
    fitted.biases_ -= 1e-6
    assert not fitted.votes(nothing).any()


@pytest.mark.parametrize("name", ["blocks.{}.attn.o.hook_in", "blocks.{}.attn.hook_z"])
def test_a_hook_sees_the_scores_of_decision_function_and_changes_nothing(fitted, validation, name):
    seen = []
    hook = fitted.hook(seen.append)
    for layer in (0, 1):
        z = validation.z[:, layer].reshape(40, 8, 3, 4)
        assert hook(z, SimpleNamespace(name=name.format(layer))) is z
        assert seen[-1].layer == layer
        expected = fitted.decision_function(validation)[:, layer].reshape(40, 8, 3)
        torch.testing.assert_close(seen[-1].scores, expected)
        assert torch.equal(seen[-1].votes, fitted.votes(validation)[:, layer].reshape(40, 8))
    assert not torch.allclose(seen[0].scores, seen[1].scores)


def test_hooks_name_every_layer(fitted, validation):
    seen = []
    pairs = fitted.hooks(seen.append)
    assert [name for name, _ in pairs] == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    for name, function in pairs:
        function(validation.z[:6, 0][None], SimpleNamespace(name=name))
    assert [d.layer for d in seen] == [0, 1]


def test_a_hook_at_another_place_is_refused(fitted):
    with pytest.raises(UnknownNameError, match="'blocks.0.hook_resid_pre' is not the name of a head hook"):
        fitted.hook(print)(torch.zeros(1, 1, 3, 4), SimpleNamespace(name="blocks.0.hook_resid_pre"))


def test_str_counts_significant_and_constant_heads(fitted):
    assert str(fitted) == (
        f"RiskAwareDetector(): 4 of 6 heads significant, 0 flag all or none; best layer {fitted.best_layer_}, "
        f"risk of its vote {float(fitted.vote_risk_[fitted.best_layer_]):.2f}"
    )
    assert str(RiskAwareDetector(fnr_weight=2.0)) == "RiskAwareDetector(fnr_weight=2.0)"


def test_heads_that_flag_everything_are_counted_and_never_significant(gaussian_cache):
    d = RiskAwareDetector(fnr_weight=8.0).fit(*(gaussian_cache(100, shift=0.2, seed=seed) for seed in (0, 1)))
    assert bool(d.head_constant_.any())
    assert not (d.head_constant_ & d.head_significant_).any()
    assert f"{int(d.head_constant_.sum())} flag all or none" in str(d)


@pytest.mark.parametrize("bias", [1e9, -1e9])
def test_a_head_that_flags_all_or_none_is_constant_and_no_other(gaussian_cache, bias):
    d = RiskAwareDetector().fit(gaussian_cache(60), gaussian_cache(60, seed=1))
    assert not d.head_constant_.any()
    d.biases_[1, 2] = bias
    assert d.judge(gaussian_cache(60, seed=2)).head_constant_.nonzero().tolist() == [[1, 2]]


def test_it_is_cloned_as_scikit_learn_does(fitted):
    copy = clone(RiskAwareDetector(fnr_weight=3.0, loss="lda", vote_layer=1))
    assert copy.get_params() == {**RiskAwareDetector().get_params(), "fnr_weight": 3.0, "loss": "lda", "vote_layer": 1}
    assert not fitted_attributes(clone(fitted))
