"""Figures of all heads show the numbers of their input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, NotFittedError


def test_head_risk_draws_every_head_and_frames_the_edited_ones(experiment, steering):
    figure = rl.viz.head_risk(experiment.detector, steering)
    assert [list(row) for row in figure.data[0].z] == experiment.detector.head_risk_.tolist()
    # A frame is five points and a gap.
    assert len(figure.data[1].x) == 6 * len(steering.sites)
    layer, head = steering.sites[0]
    assert figure.data[1].x[:5] == (head - 0.5, head + 0.5, head + 0.5, head - 0.5, head - 0.5)
    assert figure.data[1].y[:5] == (layer - 0.5, layer - 0.5, layer + 0.5, layer + 0.5, layer - 0.5)
    assert len(rl.viz.head_risk(experiment.detector).data) == 1


def test_hovering_a_head_says_its_rates_and_whether_it_is_steered(experiment, steering):
    hover = rl.viz.head_risk(experiment.detector, steering).data[0].text
    detector, (layer, head) = experiment.detector, steering.sites[0]
    fpr, fnr = detector.head_fpr_[layer, head], detector.head_fnr_[layer, head]
    assert hover[layer][head] == f"FPR {fpr:.2f}, FNR {fnr:.2f}<br>steered"
    other = next((i, j) for i in range(4) for j in range(8) if (i, j) not in steering.sites)
    assert hover[other[0]][other[1]].endswith("<br>not steered")


def test_head_effects_draws_estimated_and_measured_effects(experiment, recipe):
    effects = recipe.effects
    figure = rl.viz.head_effects(effects, experiment.detector, selected=recipe.steering.sites)
    assert [trace.name for trace in figure.data] == ["estimated, selected", "estimated, others"]
    drawn = sorted(y for trace in figure.data for y in trace.y)
    assert drawn == pytest.approx(sorted(effects.estimated.tolist()))
    assert len(figure.data[0].y) == len(recipe.steering.sites)
    without_risk = rl.viz.head_effects(effects)
    assert list(without_risk.data[0].x) == list(range(len(effects.sites)))
    # Estimates say nothing of real edits, so measured effects have a trace of their own.
    measured = replace(effects, measured=torch.full_like(effects.measured, 2.0))
    assert set(rl.viz.head_effects(measured).data[-1].y) == {2.0}


def test_an_unfitted_detector_is_refused():
    with pytest.raises(NotFittedError, match="not fitted yet: call `fit"):
        rl.viz.head_risk(rl.RiskAwareDetector())
    with pytest.raises(NotFittedError, match="not fitted yet: call `fit"):
        rl.viz.layer_risk(rl.RiskAwareDetector())


def test_nan_is_refused(recipe, gaussian_cache):
    # Plotly would draw NaN as a gap, and the head would look as if it had not been measured.
    broken = replace(recipe.effects, estimated=recipe.effects.estimated * torch.nan)
    with pytest.raises(DataError, match=r"`effects.estimated` must be finite"):
        rl.viz.head_effects(broken)
    detector = rl.RiskAwareDetector().fit(gaussian_cache(60), gaussian_cache(60, seed=1))
    detector.head_risk_ = detector.head_risk_ * torch.nan
    with pytest.raises(DataError, match=r"`detector.head_risk_` must be finite"):
        rl.viz.head_risk(detector)


def test_a_steering_in_the_detectors_place_is_refused_in_one_sentence(experiment, steering, recipe, held_out):
    figures = {
        "head_risk": lambda: rl.viz.head_risk(steering),
        "layer_risk": lambda: rl.viz.layer_risk(steering),
        "vote_curves": lambda: rl.viz.vote_curves(steering, held_out),
        "roc": lambda: rl.viz.roc(steering, held_out),
        "head_effects": lambda: rl.viz.head_effects(recipe.effects, steering),
    }
    for name, draw in figures.items():
        with pytest.raises(InvalidArgumentError) as error:
            draw()
        message = str(error.value)
        assert message.startswith("`detector` must be a RiskAwareDetector; got Steering: "), name
        assert "head_risk(detector, steering)" in message
        assert "\n" not in message
        # "Not fitted" would send the reader to `fit`, which a steering does not have.
        assert not isinstance(error.value, NotFittedError)


def test_other_swapped_arguments_are_refused(experiment, steering, recipe, held_out, evaluations):
    detector = experiment.detector
    swapped = {
        "`steering` must be a Steering; got RiskAwareDetector": lambda: rl.viz.score_histogram(detector, held_out),
        "`cache` must be a HeadCache; got RiskAwareDetector": lambda: rl.viz.activation_scatter(steering, detector),
        "`steering` must be a Steering; got HeadCache": lambda: rl.viz.head_risk(detector, held_out),
        "`effects` must be a HeadEffects; got RiskAwareDetector": lambda: rl.viz.head_effects(detector),
        "`cache` must be a HeadCache; got Steering": lambda: rl.viz.roc(detector, steering),
        "`writes` must be an EditWrites; got Steering": lambda: rl.viz.edit_writes(steering),
        "`trace` must be a Trace; got Steering": lambda: rl.viz.vote_timeline(steering, ["a"]),
        "`patterns` must be an AttentionPatterns; got Steering": lambda: rl.viz.attention(steering),
        "`evaluations` must be a Mapping; got Evaluation": lambda: rl.viz.trade_off(evaluations["RADIANT"]),
        "`result` must be a result to draw; got dict": lambda: rl.viz.study(evaluations),
    }
    for message, draw in swapped.items():
        with pytest.raises(InvalidArgumentError) as error:
            draw()
        assert str(error.value).startswith(message)


def test_dark_cells_err_more_and_the_scale_starts_at_zero(experiment):
    heat = rl.viz.head_risk(experiment.detector).data[0]
    assert (heat.zmin, heat.zmax) == (0, float(experiment.detector.head_risk_.max()))
    # Sums of red, green and blue: 765 is white, 0 is black.
    first, last = (sum(map(int, color[1][4:-1].split(","))) for color in (heat.colorscale[0], heat.colorscale[-1]))
    assert last < 300 < 700 < first


def test_the_largest_effects_carry_their_names(experiment, recipe):
    effects = recipe.effects
    for detector in (None, experiment.detector):
        notes = rl.viz.head_effects(effects, detector).layout.annotations
        largest = effects.estimated.abs().argsort(descending=True)[:6].tolist()
        assert {note.text for note in notes} == {str(effects.sites[i]) for i in largest}
        assert {note.y for note in notes} == {effects.intervals[i].high for i in largest}
    assert rl.viz.head_effects(effects).layout.yaxis.rangemode == "tozero"
