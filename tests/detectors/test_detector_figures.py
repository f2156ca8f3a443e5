"""`RiskAwareDetector`: data behind its figures, layers that were not collected, and too few groups."""

from __future__ import annotations

import pytest
import torch
from detector_states import altered, fitted_attributes, same

from radiant_lens import RiskAwareDetector
from radiant_lens.detectors.votes import VotingData, choose_thresholds
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
)
from radiant_lens.statistics.rates import error_rates

# Halves of the validation data


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


def test_judging_measures_what_layers_predict(fitted, gaussian_cache):
    held_out = gaussian_cache(150, seed=5)
    thresholds = fitted.vote_thresholds_.clone()
    fitted.judge(held_out)
    assert torch.equal(fitted.vote_thresholds_, thresholds)
    for layer in range(held_out.n_layers):
        rates = error_rates(fitted.predict(held_out, layer).bool()[:, None], held_out.labels)
        assert (fitted.vote_fpr_[layer], fitted.vote_fnr_[layer]) == (rates.fpr[0], rates.fnr[0])


def test_a_refused_judge_changes_nothing(fitted, gaussian_cache):
    held_out = gaussian_cache(60, seed=5)
    before = fitted_attributes(fitted)
    one_class = held_out.select(held_out.labels == 0)
    with pytest.raises(DataError, match="`cache`"):
        fitted.judge(one_class)
    held_out.z[1, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"`cache.z` must be finite; 1 values are not, .* at index \(1, 0, 0, 0\)"):
        fitted.judge(held_out)
    assert same(before, fitted_attributes(fitted))


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


def test_predicting_by_a_layer_that_was_not_collected_is_refused(train, validation, fitted):
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
