"""The moves of one head's activations, computed by hand, and the figures of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.analysis.moves import head_moves
from radiant_lens.analysis.restored import restored_detector
from radiant_lens.errors import DataError, InvalidArgumentError


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    return rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))


@pytest.fixture(scope="module")
def edited(fitted, gaussian_cache):
    return rl.RadiantPolicy(gamma=0.05, heads=[(0, 2), (1, 2)]).fit(gaussian_cache(80), fitted)


@pytest.fixture(scope="module")
def held_out(gaussian_cache):
    return gaussian_cache(80, seed=2)


def test_moves_are_those_of_edit(edited, fitted, held_out):
    moves = head_moves(edited, held_out, (1, 2))
    assert torch.allclose(moves.after, edited.edit(held_out.z[:, 1].double(), 1)[:, 2])
    scores = fitted.decision_function(held_out)[:, 1, 2].double()
    assert torch.allclose(moves.scores(moves.before), scores, atol=1e-4)
    assert torch.equal(moves.gated, scores >= 0)
    assert torch.equal(moves.before[~moves.gated], moves.after[~moves.gated])
    assert not torch.equal(moves.before, moves.after)


def test_the_plane_shows_distance_and_an_orthogonal_direction(edited, held_out):
    moves = head_moves(edited, held_out, (0, 2))
    before, after = moves.plane()
    assert torch.allclose(before[:, 0] * moves.weight.norm(), moves.scores(moves.before))
    # A step along the detector's direction leaves the second component alone.
    unit = moves.weight / moves.weight.norm()
    shifted = type(moves)(**{**vars(moves), "after": moves.before + 3 * unit})
    along = shifted.plane()[1]
    assert torch.allclose(along[:, 0], before[:, 0] + 3)
    assert torch.allclose(along[:, 1], before[:, 1], atol=1e-6)
    assert not torch.allclose(after[:, 0], before[:, 0])
    assert float(before[:, 1].var()) > 0.1


def test_with_one_dimension_nothing_is_orthogonal(gaussian_cache):
    def cache(seed):
        return gaussian_cache(60, n_layers=1, n_heads=2, d_head=1, seed=seed)

    detector = rl.RiskAwareDetector().fit(cache(0), cache(1))
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(0, 1)]).fit(cache(0), detector)
    assert head_moves(steering, cache(2), (0, 1)).plane()[0][:, 1].abs().max() < 1e-9
    assert rl.viz.activation_scatter(steering, cache(2)).to_json()


def test_histogram_counts_what_is_gated(edited, held_out):
    certificate = edited.certify(held_out)
    figure = rl.viz.score_histogram(edited, held_out, (0, 2), certificate=certificate)
    moves = head_moves(edited, held_out, (0, 2))
    assert [trace.name for trace in figure.data] == ["desirable text, unedited", "gated, before", "gated, after"]
    for trace in figure.data:
        assert sum(trace.y) == pytest.approx(1)
    # No gated activation lies on the desirable side before the edit, up to the width of a bin.
    width = figure.data[1].width
    assert all(x + width / 2 >= 0 for x, y in zip(figure.data[1].x, figure.data[1].y) if y)
    still = float((moves.scores(moves.after)[moves.gated] >= 0).double().mean())
    title = re.sub("<.*?>", " ", figure.layout.title.text)
    words = " ".join(title.split())
    assert f"{still:.1%} of them still flagged" in words
    assert f"at most {certificate.heads[0].upper:.1%} with confidence 95%" in words
    assert "Certified" not in rl.viz.score_histogram(edited, held_out, (0, 2)).layout.title.text


def test_the_axes_of_the_scatter_are_standardised(edited, held_out):
    figure = rl.viz.activation_scatter(edited, held_out, (0, 2), max_points=10_000)
    # The activations before the edit: those left alone, and those gated.
    traces = [trace for trace in figure.data if trace.name and trace.name != "gated, after"]
    for axis in ("x", "y"):
        values = torch.tensor([value for trace in traces for value in trace[axis]])
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_scatter_draws_each_kind_and_lines_between(edited, held_out):
    figure = rl.viz.activation_scatter(edited, held_out, (0, 2), max_points=20)
    by_name = {trace.name: trace for trace in figure.data}
    before, after = by_name["gated, before"], by_name["gated, after"]
    assert len(before.x) == len(after.x) == 20
    assert min(before.x) >= 0
    # Without the gap (None), one line would join the end of a move to the start of the next.
    lines = next(trace for trace in figure.data if trace.mode == "lines")
    assert lines.x[:3] == (before.x[0], after.x[0], None)
    assert "(standard deviations)" in figure.layout.xaxis.title.text
    assert "(standard deviations)" in figure.layout.yaxis.title.text


def test_a_closed_gate_is_reported_in_words(edited, held_out):
    shut = head_moves(edited, held_out, (0, 2)).gated
    left = held_out.select(~shut)
    figure = rl.viz.score_histogram(edited, left, (0, 2))
    assert not figure.data
    assert "Nothing was edited" in figure.layout.annotations[0].text
    assert "passes none of the" in figure.layout.annotations[0].text
    title = rl.viz.activation_scatter(edited, left, (0, 2)).layout.title.text
    assert "Nothing was edited: the gate passes 0 of" in title


def test_bad_input_is_refused(edited, held_out):
    with pytest.raises(InvalidArgumentError, match="`site` must be an edited head, such as L0H2; got L0H1"):
        rl.viz.score_histogram(edited, held_out, (0, 1))
    # A head without a direction has a score, but no distance to its boundary.
    blind = replace(edited, scores=replace(edited.scores, weights=torch.zeros_like(edited.scores.weights)))
    with pytest.raises(InvalidArgumentError, match="The detector's weight is zero at L0H2: there is no direction"):
        rl.viz.score_histogram(blind, held_out, (0, 2))
    with pytest.raises(DataError, match="has no examples"):
        rl.viz.activation_scatter(edited, held_out.select([]))
    broken = rl.HeadCache(**{**vars(held_out), "z": held_out.z * torch.nan})
    with pytest.raises(DataError, match="must be finite"):
        rl.viz.score_histogram(edited, broken)


def test_a_saved_steering_restores_its_detector(edited, fitted, held_out, tmp_path):
    loaded = rl.Steering.load(edited.save(tmp_path / "s"))
    restored = restored_detector(loaded, held_out)
    assert torch.equal(restored.decision_function(held_out), fitted.decision_function(held_out))
    assert restored.get_params() == fitted.get_params()
    assert set(fitted.training_groups_) < set(restored.training_groups_)
    assert not torch.equal(restored.head_risk_, fitted.head_risk_)
    # Steerings of other tools may record nothing about their detector.
    nameless = replace(edited, meta={})
    with pytest.raises(DataError, match="does not say which detector"):
        restored_detector(nameless, held_out)
    with pytest.raises(InvalidArgumentError, match="`steering` must be a Steering; got RiskAwareDetector"):
        restored_detector(fitted, held_out)
    assert restored.collected_layers_ == (0, 1)


def test_a_restored_detector_has_the_collected_layers_alone(gaussian_cache):
    def cache(seed):
        whole = gaussian_cache(80, seed=seed)
        # A cache of some layers holds zeros in the others.
        z = whole.z.clone()
        z[:, 0] = 0
        return replace(whole, z=z, meta={**whole.meta, "layers": [1]})

    detector = rl.RiskAwareDetector().fit(cache(0), cache(1))
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(1, 2)]).fit(cache(0), detector)
    # Even where the new cache holds all layers: the scores of the others were never fitted.
    restored = restored_detector(steering, gaussian_cache(80, seed=2))
    assert restored.collected_layers_ == detector.collected_layers_ == (1,)
    assert bool(restored.head_risk_[0].isinf().all())
    assert bool(restored.head_risk_[1].isfinite().all())
