"""The detector of one head as a scikit-learn classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from radiant_lens import RiskAwareClassifier
from radiant_lens.detectors.scores import LOSSES, Sample, fit_heads


def blobs(seed=0, n=200, spread=2.0):
    return make_blobs(n, centers=[[0, 0, 0], [2, 1, 0]], cluster_std=spread, random_state=seed)


@parametrize_with_checks([RiskAwareClassifier(), *(RiskAwareClassifier(loss=loss) for loss in LOSSES[1:])])
def test_it_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_fit_of_one_head(loss):
    x, y = blobs()
    sample = Sample(torch.tensor(x)[None], torch.tensor(y))
    ours = RiskAwareClassifier(loss=loss, fnr_weight=2.0).fit(x, y)
    settings = {"l2": ours.l2, "max_iterations": ours.max_iterations}
    scores = fit_heads(sample, loss=loss, stop=sample, fnr_weight=2.0, **settings)
    np.testing.assert_array_equal(ours.coef_, scores.weights)
    np.testing.assert_array_equal(ours.intercept_, scores.biases)
    np.testing.assert_allclose(ours.decision_function(x), x @ ours.coef_[0] + ours.intercept_[0], rtol=1e-12)


def test_the_larger_label_is_undesirable():
    x, y = blobs(spread=0.3)
    names = np.where(y == 1, "toxic", "fine")
    named = RiskAwareClassifier().fit(x, names)
    assert named.classes_.tolist() == ["fine", "toxic"]
    np.testing.assert_array_equal(named.predict(x), names)
    np.testing.assert_array_equal(named.predict(x) == "toxic", named.decision_function(x) >= 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_greater_weight_misses_less(loss):
    x, y = blobs()
    flagged = [(RiskAwareClassifier(w, loss).fit(x, y).predict(x)[y == 1] == 1).mean() for w in (0.3, 1.0, 3.0)]
    assert flagged[0] < flagged[1] < flagged[2]


def test_it_can_be_cross_validated():
    assert cross_val_score(RiskAwareClassifier(), *blobs(), cv=3).mean() > 0.65


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fnr_weight": -1.0}, "`fnr_weight` must lie strictly above 0; got -1.0"),
        ({"loss": "hinge"}, "`loss` must be one of 'risk', .* got 'hinge'"),
        ({"l2": -1.0}, "`l2` must lie at or above 0; got -1.0"),
        ({"max_iterations": 0}, "`max_iterations` must be a whole number of at least 1; got 0"),
    ],
)
def test_parameters_out_of_range_are_refused_by_fit(parameters, message):
    with pytest.raises(ValueError, match=message):
        RiskAwareClassifier(**parameters).fit(*blobs(n=20))


@pytest.mark.parametrize(("y", "message"), [(np.zeros(9), "got 1 class"), (np.arange(9) % 3, "got 3 class")])
def test_two_classes_are_needed(y, message):
    with pytest.raises(ValueError, match=f"Only binary classification is supported.*{message}"):
        RiskAwareClassifier().fit(blobs(n=9)[0], y)


@pytest.mark.parametrize(("y", "kind"), [(np.zeros(9), "a single class"), (np.arange(9) % 3, "multiclass")])
def test_the_type_of_other_targets_is_named(y, kind):
    with pytest.raises(ValueError, match=f"type of the target is {kind}:"):
        RiskAwareClassifier().fit(blobs(n=9)[0], y)


@pytest.mark.parametrize("parameters", [{"l2": 1.0}, {"max_iterations": 1}])
def test_parameters_reach_the_fit(parameters):
    X, y = blobs()
    assert not np.allclose(RiskAwareClassifier(**parameters).fit(X, y).coef_, RiskAwareClassifier().fit(X, y).coef_)
