"""Curves of detection: hand-computed rates, areas as scikit-learn has them, and what cannot be drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import radiant_lens as rl
from radiant_lens.detectors.curves import roc
from radiant_lens.detectors.votes import rates_by_threshold
from radiant_lens.errors import DataError, InvalidArgumentError


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    return rl.RiskAwareDetector(vote_rule="risk").fit(gaussian_cache(80), gaussian_cache(80, seed=1))


@pytest.fixture(scope="module")
def held_out(gaussian_cache):
    return gaussian_cache(80, seed=2)


def test_rates_by_threshold_by_hand():
    counts = torch.tensor([[0], [1], [1], [2]])
    rates = rates_by_threshold(counts, torch.tensor([0, 0, 1, 1]), 2)
    assert rates.fpr.tolist() == [[0.5, 0.0]]
    assert rates.fnr.tolist() == [[0.0, 0.5]]


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_that_of_scikit_learn(pairs):
    scores, labels = torch.tensor([float(s) for s, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
    if len(set(labels.tolist())) == 2:
        found = roc(scores, labels)
        assert found.area == pytest.approx(roc_auc_score(labels, scores))
        assert (found.fpr[0], found.tpr[0], found.fpr[-1], found.tpr[-1]) == (0, 0, 1, 1)


def test_roc_marks_each_heads_own_threshold(fitted, held_out):
    figure = rl.viz.roc(fitted, held_out, heads=[(0, 2), (1, 1)])
    names = [trace.name for trace in figure.data if trace.mode == "lines"]
    assert names[0] == "chance"
    assert [name[:4] for name in names[1:]] == ["L0H2", "L1H1"]
    flagged = fitted.decision_function(held_out)[:, 0, 2] >= 0
    own = figure.data[2]
    assert own.x == (float(flagged[held_out.labels == 0].double().mean()),)
    assert own.y == (float(flagged[held_out.labels == 1].double().mean()),)
    assert "2 of 6 heads" in figure.layout.title.text


def test_without_heads_those_of_least_risk_are_drawn(fitted, held_out):
    best = divmod(int(fitted.head_risk_.argmin()), 3)
    assert f"L{best[0]}H{best[1]}," in str([trace.name for trace in rl.viz.roc(fitted, held_out).data])


def test_layer_risk_draws_heads_and_votes(fitted):
    figure = rl.viz.layer_risk(fitted)
    assert list(figure.data[0].y) == fitted.layer_risk_.tolist()
    assert list(figure.data[1].y) == fitted.vote_risk_.tolist()


def test_vote_curves_pass_through_the_chosen_threshold(fitted, held_out):
    figure = rl.viz.vote_curves(fitted, held_out, layers=[1])
    assert [trace.name for trace in figure.data] == ["FPR", "FNR", "risk"]
    tau = int(fitted.vote_thresholds_[1])
    assert figure.layout.shapes[0].x0 == tau
    flagged = fitted.predict(held_out, layer=1)[held_out.labels == 0].double().mean()
    assert figure.data[0].y[tau - 1] == pytest.approx(float(flagged))
    assert len(rl.viz.vote_curves(fitted, held_out).data) == 6


def test_one_layer_with_one_head(gaussian_cache):
    def cache(seed):
        return gaussian_cache(60, n_layers=1, n_heads=1, d_head=2, seed=seed)

    detector = rl.RiskAwareDetector().fit(cache(0), cache(1))
    for figure in (
        rl.viz.head_risk(detector),
        rl.viz.layer_risk(detector),
        rl.viz.vote_curves(detector, cache(2)),
        rl.viz.roc(detector, cache(2)),
    ):
        assert figure.to_json()


def test_bad_input_is_told(fitted, held_out):
    with pytest.raises(InvalidArgumentError, match=r"`layer` must be a whole number between 0 and 1; got 5"):
        rl.viz.vote_curves(fitted, held_out, layers=[5])
    with pytest.raises(InvalidArgumentError, match=r"`head` must be a whole number"):
        rl.viz.roc(fitted, held_out, heads=[(0, 9)])
    with pytest.raises(DataError, match=r"no undesirable \(1\) example"):
        rl.viz.roc(fitted, held_out.select(held_out.labels == 0))
    with pytest.raises(DataError, match=r"Both classes are needed"):
        rl.viz.vote_curves(fitted, held_out.select(held_out.labels == 0))
    with pytest.raises(DataError, match=r"must be finite"):
        rl.viz.roc(fitted, rl.HeadCache(**{**vars(held_out), "z": held_out.z * torch.nan}))


def test_a_detector_is_judged_anew(fitted, held_out, gaussian_cache):
    again = rl.RiskAwareDetector(vote_rule="risk").fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    before = again.head_risk_.clone()
    again.judge(held_out)
    flags = again.decision_function(held_out) >= 0
    fpr = flags[held_out.labels == 0].double().mean(0)
    fnr = (~flags[held_out.labels == 1]).double().mean(0)
    assert torch.allclose(again.head_risk_, fpr + fnr)
    assert not torch.allclose(again.head_risk_, before)
    assert torch.equal(again.vote_thresholds_, fitted.vote_thresholds_)
    with pytest.raises(DataError, match="Both classes"):
        again.judge(held_out.select(held_out.labels == 0))
