"""`RiskAwareDetector`: the certified rule, and everything that it refuses."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from detector_states import altered, fitted_attributes, same

from radiant_lens import RiskAwareDetector
from radiant_lens.errors import (
    DataError,
    GuaranteeError,
    InvalidArgumentError,
    LeakageError,
    NotFittedError,
)

# The certified rule


def test_a_certified_vote_is_marked(train, validation):
    d = RiskAwareDetector(vote_rule="certified", target_fnr=0.2, vote_layer=1).fit(train, validation)
    assert d.vote_certified_.tolist() == [False, True]


def test_a_target_that_cannot_be_certified_is_an_error(train, validation):
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
    before = fitted_attributes(fitted)
    with pytest.raises(GuaranteeError):
        fitted.set_params(vote_rule="certified", target_fnr=0.001, loss="lda").fit(train, validation)
    assert not fitted_attributes(fitted) or same(fitted_attributes(fitted), before)


def test_the_error_of_the_certified_rule_has_the_number_of_misses(gaussian_cache):
    # Without signal a head misses about half, and so does a count of one vote some.
    train, validation = (gaussian_cache(120, seed=seed, shift=0.1) for seed in (0, 1))
    detector = RiskAwareDetector(vote_layer=0).fit(train, validation)
    with pytest.raises(GuaranteeError) as error:
        RiskAwareDetector(vote_rule="certified", target_fnr=0.001, vote_layer=0).fit(train, validation)
    match = re.search(r"on (\d+) undesirable groups \(tau = 1 misses at least (\d+)\)", str(error.value))
    n_groups, missed = int(match[1]), int(match[2])
    silent = detector.flags(validation).sum(-1)[validation.labels == 1][:, 0] < 1
    assert 0 < missed <= int(silent.sum())
    assert n_groups == 60


# Refusals


@pytest.mark.parametrize("method", ["decision_function", "votes", "predict"])
def test_methods_before_fit_are_refused(method, train):
    with pytest.raises(NotFittedError, match=re.escape("not fitted yet: call `fit(cache, validation=...)` first.")):
        getattr(RiskAwareDetector(), method)(train)


@pytest.mark.parametrize("method", ["hook", "hooks"])
def test_hooks_before_fit_are_refused(method):
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
    assert not fitted_attributes(detector)


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
def test_a_layer_out_of_range_is_refused(layer, fitted, validation):
    with pytest.raises(InvalidArgumentError, match="`layer` must be a whole number between 0 and 1"):
        fitted.predict(validation, layer)


def test_validation_data_of_one_group_cannot_be_halved(train, validation):
    one = altered(validation, group_names=("only",) * len(validation.texts))
    with pytest.raises(InvalidArgumentError, match="2 parts need as many groups; the data has 1"):
        RiskAwareDetector().fit(train, one)


def test_validation_that_is_not_a_cache_is_refused(gaussian_cache):
    with pytest.raises(InvalidArgumentError, match="`validation` must be a HeadCache"):
        RiskAwareDetector().fit(gaussian_cache(20), gaussian_cache(20, seed=1).z)


def test_hooks_take_the_layers_of_the_detector_only(fitted):
    n_layers, n_heads, d_head = fitted.weights_.shape
    detect = fitted.hook([].append)
    with pytest.raises(InvalidArgumentError, match=f"`layer` must be a whole number between 0 and {n_layers - 1}"):
        detect(torch.zeros(1, 1, n_heads, d_head), SimpleNamespace(name=f"blocks.{n_layers}.attn.hook_z"))


def test_scores_are_those_of_caches_of_the_same_heads(fitted, gaussian_cache):
    with pytest.raises(InvalidArgumentError, match="`cache` must be a HeadCache"):
        fitted.decision_function(gaussian_cache(20).z)
    wide = gaussian_cache(20, n_heads=5, seed=9)
    for answer in (fitted.decision_function, fitted.flags):
        with pytest.raises(InvalidArgumentError, match=r"`cache.z` must have axes .* of lengths \(any, 2, 3, 4\)"):
            answer(wide)


def test_hooks_need_a_callable_and_activations_split_into_heads(fitted):
    with pytest.raises(InvalidArgumentError, match="`recorder` must be callable.* got 3"):
        fitted.hook(3)
    n_heads, d_head = fitted.weights_.shape[1:]
    seen = []
    for shape in ((1, n_heads, d_head), (1, 1, n_heads + 1, d_head), (1, 1, n_heads * d_head)):
        with pytest.raises(InvalidArgumentError, match="`z of layer 1` must have axes `batch pos head d_head`"):
            fitted.hook(seen.append)(torch.zeros(shape), SimpleNamespace(name="blocks.1.attn.hook_z"))
    assert not seen
