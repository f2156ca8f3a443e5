"""Figures of detection: rates computed by hand, areas against scikit-learn, and refused input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
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
    # With one vote needed, half of the desirable examples are flagged; with two, half of the undesirable ones missed.
    counts = torch.tensor([[0], [1], [1], [2]])
    rates = rates_by_threshold(counts, torch.tensor([0, 0, 1, 1]), 2)
    assert rates.fpr.tolist() == [[0.5, 0.0]]
    assert rates.fnr.tolist() == [[0.0, 0.5]]


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_that_of_scikit_learn(pairs):
    scores, labels = torch.tensor([float(s) for s, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
    assume(len(set(labels.tolist())) == 2)
    curve = roc(scores, labels)
    assert curve.area == pytest.approx(roc_auc_score(labels, scores))
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)


def test_roc_marks_each_heads_own_threshold(fitted, held_out):
    figure = rl.viz.roc(fitted, held_out, heads=[(0, 2), (1, 1)])
    names = [trace.name for trace in figure.data if trace.mode == "lines"]
    assert names[0] == "chance"
    assert [name[:4] for name in names[1:]] == ["L0H2", "L1H1"]
    flagged = fitted.decision_function(held_out)[:, 0, 2] >= 0
    # Chance comes first, then a curve and a marker for each head.
    own = figure.data[2]
    assert own.x == (float(flagged[held_out.labels == 0].double().mean()),)
    assert own.y == (float(flagged[held_out.labels == 1].double().mean()),)
    assert "2 of 6 heads" in figure.layout.title.text


def test_by_default_the_heads_of_least_risk_are_drawn(fitted, held_out):
    best = divmod(int(fitted.head_risk_.argmin()), 3)
    assert f"L{best[0]}H{best[1]}," in str([trace.name for trace in rl.viz.roc(fitted, held_out).data])


def test_roc_is_square_and_names_its_markers(fitted, held_out):
    figure = rl.viz.roc(fitted, held_out, heads=[(0, 2), (1, 1)])
    assert (figure.layout.yaxis.scaleanchor, figure.layout.yaxis.scaleratio) == ("x", 1)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range == (-0.02, 1.02)
    labels = {note.text: (note.x, note.y) for note in figure.layout.annotations}
    assert labels == {
        "L0H2": (figure.data[2].x[0], figure.data[2].y[0]),
        "L1H1": (figure.data[4].x[0], figure.data[4].y[0]),
    }


def test_axes_start_at_zero_and_their_titles_are_words(fitted, held_out):
    risk = rl.viz.layer_risk(fitted).layout
    assert (risk.yaxis.rangemode, risk.xaxis.title.text, risk.yaxis.title.text) == ("tozero", "layer", "risk")
    assert "Risk: false alarm rate + miss rate." in risk.title.text.replace("<br>", " ")
    votes = rl.viz.vote_curves(fitted, held_out).layout
    assert votes.yaxis.rangemode == votes.yaxis2.rangemode == "tozero"
    assert votes.yaxis.title.text == "rate or risk"
    curve = rl.viz.roc(fitted, held_out).layout
    assert "FPR" not in curve.xaxis.title.text + curve.yaxis.title.text


def test_layers_that_were_not_collected_are_blank_or_refused(gaussian_cache):
    def cache(seed):
        whole = gaussian_cache(80, n_layers=3, seed=seed)
        z = whole.z.clone()
        # A cache of some layers holds zeros in the others.
        z[:, 1] = 0
        return replace(whole, z=z, meta={**whole.meta, "layers": [0, 2]})

    detector = rl.RiskAwareDetector().fit(cache(0), cache(1))
    figure = rl.viz.head_risk(detector)
    assert list(figure.data[0].z[1]) == [None, None, None]
    assert figure.data[0].zmax < 2
    assert "Blank: 1 layer that was not" in figure.layout.title.text.replace(
        "</span><br><span style='font-size:12px'>", " "
    )
    assert rl.viz.layer_risk(detector).data[0].y[1] is None
    assert len(rl.viz.vote_curves(detector, cache(2)).data) == 6
    assert not [t.name for t in rl.viz.roc(detector, cache(2)).data if (t.name or "").startswith("L1")]
    with pytest.raises(InvalidArgumentError, match=r"Layer 1 was not collected: the detector has layers \(0, 2\)"):
        rl.viz.roc(detector, cache(2), heads=[(1, 0)])
    with pytest.raises(InvalidArgumentError, match=r"Layer 1 was not collected"):
        rl.viz.vote_curves(detector, cache(2), layers=[1])


def test_layer_risk_draws_heads_and_votes(fitted):
    figure = rl.viz.layer_risk(fitted)
    assert list(figure.data[0].y) == fitted.layer_risk_.tolist()
    assert list(figure.data[1].y) == fitted.vote_risk_.tolist()


def test_vote_curves_pass_through_the_chosen_threshold(fitted, held_out):
    figure = rl.viz.vote_curves(fitted, held_out, layers=[1])
    assert [trace.name for trace in figure.data] == ["FPR", "FNR", "risk"]
    # The curves start at one vote, so threshold `tau` is at index `tau - 1`.
    tau = int(fitted.vote_thresholds_[1])
    assert figure.layout.shapes[0].x0 == tau
    flagged = fitted.predict(held_out, layer=1)[held_out.labels == 0].double().mean()
    assert figure.data[0].y[tau - 1] == pytest.approx(float(flagged))
    assert len(rl.viz.vote_curves(fitted, held_out).data) == 6


def test_one_layer_with_one_head(gaussian_cache):
    # The smallest model: every grid of panels and every colour scale has one entry.
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


def test_bad_input_is_refused(fitted, held_out):
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


def test_judge_measures_a_detector_again(fitted, held_out, gaussian_cache):
    again = rl.RiskAwareDetector(vote_rule="risk").fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    # A copy: `judge` may write into the same tensor.
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
