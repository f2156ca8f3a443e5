"""Figures of all heads draw the numbers that they are given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, NotFittedError


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


def test_head_effects_draws_estimates_and_what_was_measured(experiment, recipe):
    effects = recipe.effects
    figure = rl.viz.head_effects(effects, experiment.detector, selected=recipe.steering.sites)
    assert [trace.name for trace in figure.data] == ["estimated, selected", "estimated, others"]
    drawn = sorted(y for trace in figure.data for y in trace.y)
    assert drawn == pytest.approx(sorted(effects.estimated.tolist()))
    assert len(figure.data[0].y) == len(recipe.steering.sites)
    without_risk = rl.viz.head_effects(effects)
    assert list(without_risk.data[0].x) == list(range(len(effects.sites)))
    measured = replace(effects, measured=torch.full_like(effects.measured, 2.0))
    assert set(rl.viz.head_effects(measured).data[-1].y) == {2.0}


def test_an_unfitted_detector_is_told():
    with pytest.raises(NotFittedError, match="call `detector.fit"):
        rl.viz.head_risk(rl.RiskAwareDetector())
    with pytest.raises(NotFittedError, match="call `detector.fit"):
        rl.viz.layer_risk(rl.RiskAwareDetector())


def test_nan_is_told(recipe, gaussian_cache):
    broken = replace(recipe.effects, estimated=recipe.effects.estimated * torch.nan)
    with pytest.raises(DataError, match=r"`effects.estimated` must be finite"):
        rl.viz.head_effects(broken)
    detector = rl.RiskAwareDetector().fit(gaussian_cache(60), gaussian_cache(60, seed=1))
    detector.head_risk_ = detector.head_risk_ * torch.nan
    with pytest.raises(DataError, match=r"`detector.head_risk_` must be finite"):
        rl.viz.head_risk(detector)
