"""`RiskAwareDetector`: what it learns, what it claims, and what it refuses."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from radiant_lens import HeadCache, RiskAwareDetector
from radiant_lens.detectors.scores import LOSSES
from radiant_lens.detectors.votes import VotingData, choose_thresholds
from radiant_lens.errors import (
    DataError,
    GuaranteeError,
    InvalidArgumentError,
    LeakageError,
    NotFittedError,
    UnknownNameError,
)
from radiant_lens.statistics.rates import error_rates


@pytest.fixture
def train(gaussian_cache):
    return gaussian_cache(120, seed=0)


@pytest.fixture
def validation(gaussian_cache):
    return gaussian_cache(160, seed=1)


@pytest.fixture
def fitted(train, validation):
    return RiskAwareDetector().fit(train, validation)


def altered(cache, **changes):
    names = ("z", "labels", "text_index", "positions", "texts", "group_names")
    return HeadCache(**{**{n: getattr(cache, n) for n in names}, **changes})


def state(detector):
    return {n: v for n, v in vars(detector).items() if n.endswith("_")}


def same(one, other):
    return all(
        torch.equal(a, other[n]) if isinstance(a, torch.Tensor) else a == other[n] for n, a in one.items()
    ) and one.keys() == other.keys()  # fmt: skip


# What is learned


@pytest.mark.parametrize("loss", LOSSES)
def test_fitted_attributes_have_their_shapes(loss, train, validation):
    d = RiskAwareDetector(loss=loss, max_iterations=10).fit(train, validation)
    shapes = {n: tuple(v.shape) for n, v in state(d).items() if isinstance(v, torch.Tensor)}
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
    found = 0
    for seed in range(4):
        caches = [gaussian_cache(60, n_layers=3, n_heads=6, shift=0.0, seed=s) for s in (2 * seed, 2 * seed + 1)]
        found += bool(RiskAwareDetector(loss=loss, max_iterations=20).fit(*caches).head_significant_.any())
    assert found <= 1


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
    assert same(state(one), state(again))
    assert not same(state(one), state(other))


def test_a_refit_forgets_the_first_fit(train, validation, fitted):
    assert same(state(clone(fitted).fit(validation, train).fit(train, validation)), state(fitted))


def test_figures_come_from_the_test_half_only(fitted, validation):
    stop, test = validation.split((0.5, 0.5), seed=0)
    risks = {}
    for name, part in {"stop": stop, "test": test, "all": validation}.items():
        risks[name] = error_rates(fitted.decision_function(part) >= 0, part.labels).risk(1.0)
    assert torch.equal(fitted.head_risk_, risks["test"])
    assert not torch.equal(fitted.head_risk_, risks["stop"])
    assert not torch.equal(fitted.head_risk_, risks["all"])


def chosen_votes(detector, part, **options):
    return choose_thresholds(
        VotingData(detector.votes(part), part.labels, part.groups),
        3,
        **{"rule": "fnr", "fnr_weight": 1.0, "target_fnr": 0.1, "delta": 0.05, "layer": None, "seed": 0, **options},
    )


@pytest.mark.parametrize("rule", ["fnr", "risk"])
def test_vote_thresholds_come_from_the_stop_half_and_their_figures_from_the_test_half(rule, gaussian_cache):
    """Weak heads and few groups, so that the halves prefer different thresholds."""
    differed = 0
    for seed in range(6):
        train, validation = (gaussian_cache(30, n_heads=6, shift=0.2, seed=2 * seed + i) for i in (0, 1))
        stop, test = validation.split((0.5, 0.5), seed=0)
        fitted = RiskAwareDetector(vote_rule=rule).fit(train, validation)
        best_on_stop, best_on_test = (
            choose_thresholds(
                VotingData(fitted.votes(part), part.labels, part.groups), 6,
                rule=rule, fnr_weight=1.0, target_fnr=0.1, delta=0.05, layer=None, seed=0,
            ).thresholds
            for part in (stop, test)
        )  # fmt: skip
        assert torch.equal(fitted.vote_thresholds_, best_on_stop)
        rates = error_rates(fitted.votes(test) >= fitted.vote_thresholds_, test.labels)
        assert torch.equal(fitted.vote_risk_, rates.risk(1.0))
        assert torch.equal(fitted.vote_fpr_, rates.fpr) and torch.equal(fitted.vote_fnr_, rates.fnr)
        differed += not torch.equal(best_on_stop, best_on_test)
    assert differed


def test_the_risk_of_votes_is_not_optimistic(gaussian_cache):
    """Over many fits of chance heads the reported risk is that on new data; the risk that was chosen is far below."""
    reported, chosen = [], []
    for seed in range(25):
        train, validation = (gaussian_cache(24, n_heads=12, shift=0.0, seed=2 * seed + i) for i in (0, 1))
        fitted = RiskAwareDetector(vote_rule="risk", loss="lda").fit(train, validation)
        test = validation.split((0.5, 0.5), seed=0)[1]
        reported.append(fitted.vote_risk_.mean())
        flags = fitted.votes(test)[:, :, None] >= torch.arange(1, 13)
        chosen.append(error_rates(flags, test.labels).risk(1.0).amin(1).mean())
    # Labels have nothing to do with the activations: every detector has risk 1.
    assert abs(float(torch.stack(reported).mean()) - 1) < 0.06
    assert float(torch.stack(chosen).mean()) < 0.9


def test_the_certified_rule_chooses_on_the_test_half_that_no_training_saw(train, validation):
    options = {"target_fnr": 0.2, "vote_layer": 1}
    fitted = RiskAwareDetector(vote_rule="certified", **options).fit(train, validation)
    stop, test = validation.split((0.5, 0.5), seed=0)
    expected = chosen_votes(fitted, test, rule="certified", target_fnr=0.2, layer=1)
    assert torch.equal(fitted.vote_thresholds_[1], expected.thresholds[1])
    assert torch.equal(fitted.vote_fnr_[1], expected.rates.fnr[1])
    assert not torch.equal(
        fitted.vote_fnr_[1], error_rates(fitted.votes(stop) >= fitted.vote_thresholds_, stop.labels).fnr[1]
    )


# Layers that were not collected


def with_layers(cache, layers):
    """The cache as `collect(layers=...)` would return it: zeros in all other layers."""
    z = torch.zeros_like(cache.z)
    z[:, list(layers)] = cache.z[:, list(layers)]
    return altered(cache, z=z, meta={**cache.meta, "layers": list(layers)})


def test_heads_of_layers_not_collected_are_neither_significant_nor_best(gaussian_cache):
    caches = [gaussian_cache(100, n_layers=4, shift=0.0, seed=seed) for seed in (0, 1)]
    part = RiskAwareDetector().fit(*(with_layers(cache, (1, 3)) for cache in caches))
    assert part.collected_layers_ == (1, 3)
    # Chance heads have a risk of about 1, as zeros would have: only the infinite risk tells them apart.
    assert torch.isinf(part.head_risk_[[0, 2]]).all() and torch.isfinite(part.head_risk_[[1, 3]]).all()
    assert torch.isinf(part.layer_risk_[[0, 2]]).all() and torch.isinf(part.vote_risk_[[0, 2]]).all()
    assert part.head_fpr_[[0, 2]].isnan().all() and part.vote_fnr_[[0, 2]].isnan().all()
    assert part.best_layer_ in (1, 3)
    assert not part.head_significant_[[0, 2]].any() and (part.head_p_value_[[0, 2]] == 1).all()
    assert RiskAwareDetector().fit(*caches).collected_layers_ == (0, 1, 2, 3)


def test_collected_layers_have_the_figures_that_they_have_alone(gaussian_cache):
    caches = [gaussian_cache(100, n_layers=3, seed=seed) for seed in (0, 1)]
    part = RiskAwareDetector().fit(*(with_layers(cache, (0, 2)) for cache in caches))
    whole = RiskAwareDetector().fit(*caches)
    for name in ("head_risk_", "vote_risk_", "vote_thresholds_"):
        torch.testing.assert_close(getattr(part, name)[[0, 2]], getattr(whole, name)[[0, 2]])
    assert torch.equal(part.head_significant_[[0, 2]], whole.head_significant_[[0, 2]])
    assert part.least_p_value_ == pytest.approx(whole.least_p_value_ * 2 / 3)


def test_no_vote_is_certified_in_a_layer_that_was_not_collected(train, validation):
    """Zeros may all be flagged: no miss, so every threshold would seem certified."""
    options = {"vote_rule": "certified", "target_fnr": 0.2}
    part = RiskAwareDetector(**options).fit(with_layers(train, (1,)), with_layers(validation, (1,)))
    assert part.vote_certified_.tolist() == [False, True]
    with pytest.raises(InvalidArgumentError, match=r"`vote_layer` must be a layer whose activations were collected"):
        RiskAwareDetector(**options, vote_layer=0).fit(with_layers(train, (1,)), validation)


def test_a_layer_that_was_not_collected_answers_nothing(train, validation, fitted):
    message = r"`layer` must be a layer whose activations were collected: \(1,\); got 0"
    with pytest.raises(InvalidArgumentError, match=message):
        fitted.predict(with_layers(validation, (1,)), 0)
    part = RiskAwareDetector().fit(with_layers(train, (1,)), validation)
    with pytest.raises(InvalidArgumentError, match=message):
        part.predict(validation, 0)
    assert torch.equal(part.predict(validation, 1), part.predict(validation))


def test_caches_without_a_common_layer_are_refused(train, validation, fitted):
    with pytest.raises(InvalidArgumentError, match=r"at least one layer in common; they hold \(0,\) and \(1,\)"):
        RiskAwareDetector().fit(with_layers(train, (0,)), with_layers(validation, (1,)))
    part = RiskAwareDetector().fit(with_layers(train, (0,)), validation)
    with pytest.raises(InvalidArgumentError, match=r"`cache` holds layers \(1,\); the detector was fitted on \(0,\)"):
        part.judge(with_layers(validation, (1,)))
    assert torch.isinf(fitted.judge(with_layers(validation, (1,))).layer_risk_).tolist() == [True, False]


# Too few groups


def test_too_few_groups_are_counted_and_enough_are_not_mentioned(gaussian_cache, fitted):
    few = RiskAwareDetector().fit(gaussian_cache(40, shift=9.0), gaussian_cache(8, shift=9.0, seed=1))
    # Four pairs of texts in the test half: 2 ** 4 assignments of labels.
    assert few.least_p_value_ == pytest.approx(6 / 16)
    assert (few.n_groups_, few.groups_needed_) == (8, 14)
    assert "8 validation groups cannot show that one head alone is significant, which takes 14" in str(few)
    assert fitted.least_p_value_ < 1e-6 and (fitted.n_groups_, fitted.groups_needed_) == (160, 160)
    enough = RiskAwareDetector().fit(gaussian_cache(40, shift=9.0), gaussian_cache(14, shift=9.0, seed=1))
    assert enough.least_p_value_ <= 0.05 and "cannot show" not in str(enough)


def test_groups_of_one_class_are_spread_over_both_halves(gaussian_cache):
    """Four undesirable groups of forty: halves drawn at random would often have none."""
    caches = []
    for seed in (0, 1):
        cache = gaussian_cache(40, seed=seed)
        caches.append(cache.with_labels((cache.text_index < 8).long()))
    for seed in range(12):
        assert RiskAwareDetector(seed=seed, loss="lda").fit(*caches).n_groups_ == 40


def test_the_test_half_does_not_shape_the_scores_and_the_stop_half_does(train, validation, fitted):
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
    assert same(state(d), state(RiskAwareDetector().fit(first, held)))


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


def test_votes_hold_on_unseen_data_what_their_rule_is_for(train, validation, gaussian_cache):
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


def test_a_detector_tells_its_significant_and_constant_heads(fitted):
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
    assert not state(clone(fitted))


# The certified rule


def test_a_certified_vote_is_marked(train, validation):
    d = RiskAwareDetector(vote_rule="certified", target_fnr=0.2, vote_layer=1).fit(train, validation)
    assert d.vote_certified_.tolist() == [False, True]


def test_a_promise_that_cannot_be_kept_is_an_error(train, validation):
    with pytest.raises(GuaranteeError, match="No vote threshold has an FNR below 0.001 .* it takes 3688 groups"):
        RiskAwareDetector(vote_rule="certified", target_fnr=0.001).fit(train, validation)


def test_a_fit_that_failed_leaves_the_detector_unfitted(train, validation):
    d = RiskAwareDetector(vote_rule="certified", target_fnr=0.001)
    with pytest.raises(GuaranteeError):
        d.fit(train, validation)
    assert str(d) == repr(d)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        d.predict(validation)


def test_a_refit_that_failed_does_not_mix_two_fits(train, validation, fitted):
    before = state(fitted)
    with pytest.raises(GuaranteeError):
        fitted.set_params(vote_rule="certified", target_fnr=0.001, loss="lda").fit(train, validation)
    assert not state(fitted) or same(state(fitted), before)


# Refusals


@pytest.mark.parametrize("method", ["decision_function", "votes", "predict"])
def test_nothing_is_answered_before_fit(method, train):
    with pytest.raises(NotFittedError, match=re.escape("not fitted yet: call `fit(cache, validation=...)` first.")):
        getattr(RiskAwareDetector(), method)(train)


@pytest.mark.parametrize("method", ["hook", "hooks"])
def test_there_are_no_hooks_before_fit(method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(RiskAwareDetector(), method)(print)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fnr_weight": 0}, "`fnr_weight` must lie strictly above 0; got 0."),
        ({"fnr_weight": float("nan")}, "`fnr_weight` must lie strictly above 0; got nan."),
        ({"loss": "hinge"}, "`loss` must be one of 'risk', 'cross_entropy', 'mass_mean', 'lda'; got 'hinge'."),
        ({"vote_rule": "any"}, "`vote_rule` must be one of 'fnr', 'risk', 'certified'; got 'any'."),
        ({"target_fnr": 1.0}, "`target_fnr` must lie strictly between 0 and 1; got 1.0."),
        ({"delta": 0.0}, "`delta` must lie strictly between 0 and 1; got 0.0."),
        ({"l2": -1.0}, "`l2` must lie at or above 0; got -1.0."),
        ({"max_iterations": 0}, "`max_iterations` must be a whole number of at least 1; got 0."),
        ({"vote_layer": 2}, "`vote_layer` must be a whole number between 0 and 1; got 2."),
    ],
)
def test_parameters_out_of_range_are_refused_by_fit_and_stored_by_init(parameters, message, train):
    detector = RiskAwareDetector(**parameters)
    with pytest.raises(InvalidArgumentError, match=f"^{re.escape(message)}$"):
        detector.fit(train)
    assert not state(detector)


def test_one_class_is_refused(train, validation):
    ones, zeros = torch.ones_like(train.labels), torch.zeros_like(validation.labels)
    with pytest.raises(DataError, match=re.escape("the training data has no desirable (0) example.")):
        RiskAwareDetector().fit(train.with_labels(ones), validation)
    with pytest.raises(DataError, match=re.escape("the validation data has no undesirable (1) example.")):
        RiskAwareDetector().fit(train, validation.with_labels(zeros))


def test_a_half_of_the_validation_data_without_a_class_is_refused(train, validation):
    first = torch.tensor([name == validation.group_names[0] for name in validation.group_names])[validation.text_index]
    one_group = validation.with_labels(torch.where(first, 1, 0))
    with pytest.raises(
        DataError, match=r"the (stop|test) half of the validation data has no undesirable \(1\) example"
    ):
        RiskAwareDetector().fit(train, one_group)


def test_other_labels_are_refused(train, validation):
    with pytest.raises(DataError, match=re.escape("Labels must be 0 (desirable) or 1 (undesirable)")):
        RiskAwareDetector().fit(train.with_labels(train.labels + 1), validation)


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(where, bad, train, validation):
    broken = (train if where == "training" else validation).z
    broken[3, 1, 2, 0] = bad
    message = f"`activations of the {where} data` must be finite; 1 values are not, the first at index (3, 1, 2, 0)."
    with pytest.raises(DataError, match=re.escape(message)):
        RiskAwareDetector().fit(train, validation)


def test_a_group_on_both_sides_is_refused(train, validation):
    shared = altered(validation, group_names=(train.group_names[0], *validation.group_names[1:]))
    with pytest.raises(
        LeakageError, match="training and validation must not share groups; 1 are in both, such as '0-0'"
    ):
        RiskAwareDetector().fit(train, shared)


def test_another_shape_is_refused(train, fitted, gaussian_cache):
    wide = gaussian_cache(20, n_heads=5, seed=9)
    with pytest.raises(InvalidArgumentError, match=r"`validation.z` must have axes .* got shape \(40, 2, 5, 4\)"):
        RiskAwareDetector().fit(train, wide)
    with pytest.raises(InvalidArgumentError, match=r"`cache.z` must have axes .* of lengths \(any, 2, 3, 4\)"):
        fitted.predict(wide)


@pytest.mark.parametrize("layer", [-1, 2, 0.5])
def test_a_layer_that_is_not_there_is_refused(layer, fitted, validation):
    with pytest.raises(InvalidArgumentError, match="`layer` must be a whole number between 0 and 1"):
        fitted.predict(validation, layer)


def test_validation_data_of_one_group_cannot_be_halved(train, validation):
    one = altered(validation, group_names=("only",) * len(validation.texts))
    with pytest.raises(InvalidArgumentError, match="2 parts need as many groups; the data has 1"):
        RiskAwareDetector().fit(train, one)


def test_validation_that_is_no_cache_is_refused(gaussian_cache):
    with pytest.raises(InvalidArgumentError, match="`validation` must be a HeadCache"):
        RiskAwareDetector().fit(gaussian_cache(20), gaussian_cache(20, seed=1).z)


def test_judging_measures_what_layers_predict(fitted, gaussian_cache):
    held_out = gaussian_cache(150, seed=5)
    thresholds = fitted.vote_thresholds_.clone()
    fitted.judge(held_out)
    assert torch.equal(fitted.vote_thresholds_, thresholds)
    for layer in range(held_out.n_layers):
        rates = error_rates(fitted.predict(held_out, layer).bool()[:, None], held_out.labels)
        assert (fitted.vote_fpr_[layer], fitted.vote_fnr_[layer]) == (rates.fpr[0], rates.fnr[0])


def test_hooks_take_the_layers_of_the_detector_only(fitted):
    n_layers, n_heads, d_head = fitted.weights_.shape
    detect = fitted.hook([].append)
    with pytest.raises(InvalidArgumentError, match=f"`layer` must be a whole number between 0 and {n_layers - 1}"):
        detect(torch.zeros(1, 1, n_heads, d_head), SimpleNamespace(name=f"blocks.{n_layers}.attn.hook_z"))


def test_judging_refuses_what_it_cannot_measure_and_keeps_what_it_knew(fitted, gaussian_cache):
    held_out = gaussian_cache(60, seed=5)
    before = state(fitted)
    one_class = held_out.select(held_out.labels == 0)
    with pytest.raises(DataError, match="`cache`"):
        fitted.judge(one_class)
    held_out.z[1, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"`cache.z` must be finite; 1 values are not, .* at index \(1, 0, 0, 0\)"):
        fitted.judge(held_out)
    assert same(before, state(fitted))


def test_scores_are_those_of_caches_of_the_same_heads(fitted, gaussian_cache):
    with pytest.raises(InvalidArgumentError, match="`cache` must be a HeadCache"):
        fitted.decision_function(gaussian_cache(20).z)
    wide = gaussian_cache(20, n_heads=5, seed=9)
    for answer in (fitted.decision_function, fitted.flags):
        with pytest.raises(InvalidArgumentError, match=r"`cache.z` must have axes .* of lengths \(any, 2, 3, 4\)"):
            answer(wide)


def test_hooks_need_someone_to_tell_and_activations_split_into_heads(fitted):
    with pytest.raises(InvalidArgumentError, match="`recorder` must be callable.* got 3"):
        fitted.hook(3)
    n_heads, d_head = fitted.weights_.shape[1:]
    seen = []
    for shape in ((1, n_heads, d_head), (1, 1, n_heads + 1, d_head), (1, 1, n_heads * d_head)):
        with pytest.raises(InvalidArgumentError, match="`z of layer 1` must have axes `batch pos head d_head`"):
            fitted.hook(seen.append)(torch.zeros(shape), SimpleNamespace(name="blocks.1.attn.hook_z"))
    assert not seen


def test_a_promise_that_cannot_be_kept_tells_how_many_it_missed(gaussian_cache):
    # Without signal a head misses about half, and so does a count of one vote some.
    train, validation = (gaussian_cache(120, seed=seed, shift=0.1) for seed in (0, 1))
    detector = RiskAwareDetector(vote_layer=0).fit(train, validation)
    with pytest.raises(GuaranteeError) as error:
        RiskAwareDetector(vote_rule="certified", target_fnr=0.001, vote_layer=0).fit(train, validation)
    said = re.search(r"on (\d+) undesirable groups \(tau = 1 misses at least (\d+)\)", str(error.value))
    n_groups, missed = int(said[1]), int(said[2])
    silent = detector.flags(validation).sum(-1)[validation.labels == 1][:, 0] < 1
    assert 0 < missed <= int(silent.sum())
    assert n_groups == 60
