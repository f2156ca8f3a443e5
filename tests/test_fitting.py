"""Head effects: the estimate against real edits, and what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

import radiant_lens as rl
from radiant_lens._errors import DataError, ModelMismatchError


@pytest.fixture(scope="module")
def every_head(experiment):
    """A steering on all significant heads, and a quarter of the validation questions to measure on."""
    steering = rl.RadiantPolicy(gate="vote").fit(experiment.train_cache, experiment.detector)
    return steering, experiment.validation.head(16)


@pytest.fixture(scope="module")
def measured(model, every_head):
    steering, data = every_head
    return rl.head_effects(model, data, steering).exact()


def test_estimates_agree_with_real_edits(measured):
    assert len(measured.sites) >= 16
    assert torch.isfinite(measured.measured).all()
    assert stats.pearsonr(measured.estimated, measured.measured).statistic > 0.95
    assert stats.spearmanr(measured.estimated, measured.measured).statistic > 0.95


def test_estimates_are_exact_for_small_edits(model, every_head):
    steering, data = every_head
    tiny = replace(steering, head_maps=replace(steering.head_maps, write=1e-3 * steering.head_maps.write))
    effects = rl.head_effects(model, data.head(4), tiny).exact(3)
    best = effects.estimated.argsort(descending=True)[:3]
    torch.testing.assert_close(effects.measured[best], effects.estimated[best], rtol=0.05, atol=2e-5)


def test_detecting_is_not_doing(measured, experiment):
    """Risk ranks heads otherwise than effect does; if it did not, effects would not be needed."""
    risk = [-float(experiment.detector.head_risk_[site]) for site in measured.sites]
    assert stats.spearmanr(risk, measured.measured).statistic < 0.9


def test_frozen_weights_give_the_same_effects(model, every_head):
    steering, data = every_head
    small = data.head(3)
    expected = rl.head_effects(model, small, steering).estimated
    for parameter in model.original_model.parameters():
        parameter.requires_grad_(False)
    try:
        torch.testing.assert_close(rl.head_effects(model, small, steering).estimated, expected)
    finally:
        for parameter in model.original_model.parameters():
            parameter.requires_grad_(True)


def test_batching_does_not_matter(model, every_head):
    steering, data = every_head
    small = data.head(3)
    one, other = (rl.head_effects(model, small, steering, max_tokens=n).estimated for n in (4096, 60))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_table_is_sorted_and_intervals_hold_their_value(measured):
    table = measured.to_dataframe()
    assert table["estimated"].is_monotonic_decreasing
    assert ((table["low"] <= table["estimated"]) & (table["estimated"] <= table["high"])).all()


def test_refusals(model, every_head, facts, foreign_folder):
    steering, data = every_head
    with pytest.raises(DataError, match="no prompt with both"):
        rl.head_effects(model, replace(data, bare_prompts=()), steering)
    with pytest.raises(ModelMismatchError, match="architecture"):
        rl.head_effects(rl.load_model(foreign_folder), data, steering)
