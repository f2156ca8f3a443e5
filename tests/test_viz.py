"""Figures draw the numbers that they are given."""

from __future__ import annotations

import pytest

import radiant_lens as rl
from radiant_lens._errors import NotFittedError


def test_head_risk_draws_every_head_and_frames_the_edited_ones(experiment, steering):
    figure = rl.viz.head_risk(experiment.detector, steering)
    assert [list(row) for row in figure.data[0].z] == experiment.detector.head_risk_.tolist()
    assert len(figure.layout.shapes) == len(steering.sites)
    assert not rl.viz.head_risk(experiment.detector).layout.shapes


def test_head_effects_draws_estimates_and_what_was_measured(experiment, recipe):
    effects = recipe.effects
    figure = rl.viz.head_effects(effects, experiment.detector, selected=recipe.steering.sites)
    assert [trace.name for trace in figure.data] == ["estimated, selected", "estimated, others"]
    drawn = sorted(y for trace in figure.data for y in trace.y)
    assert drawn == pytest.approx(sorted(effects.estimated.tolist()))
    assert len(figure.data[0].y) == len(recipe.steering.sites)
    without_risk = rl.viz.head_effects(effects)
    assert list(without_risk.data[0].x) == list(range(len(effects.sites)))


def test_an_unfitted_detector_is_told():
    with pytest.raises(NotFittedError, match="call `detector.fit"):
        rl.viz.head_risk(rl.RiskAwareDetector())
