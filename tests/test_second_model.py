"""The recipe is not tuned to one model: the same defaults on another architecture and seed, trained here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.tiny.train import TrainingConfig, train


@pytest.fixture(scope="module")
def second_model(tmp_path_factory):
    """A GPT-2 architecture of 5 layers, trained here, or loaded from the folder that RADIANT_SECOND_MODEL names."""
    trained = os.environ.get("RADIANT_SECOND_MODEL")
    folder = Path(trained) if trained else tmp_path_factory.mktemp("second")
    if trained is None:
        model, tokenizer = train(TrainingConfig("gpt2", n_layers=5, seed=1, steps=3000))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return rl.load_model(folder)


@pytest.mark.slow
def test_the_same_defaults_work_on_another_model(second_model, facts):
    experiment = studies.prepare(second_model, facts)
    recipe = studies.effective(experiment)
    steerings = {
        studies.UNSTEERED: None,
        "RADIANT": recipe.steering,
        "not forced": studies.shuffled_labels(experiment, recipe.steering, force=False),
        **studies.controls(experiment, recipe.steering),
    }
    comparison = studies.compare(experiment, steerings, n_samples=3)
    pooled = comparison.pooled()
    misled = pooled[pooled["metric"] == "correct/after_undesirable"].set_index("row")
    least = misled.loc["RADIANT", "difference_low"]
    assert least > 0.2
    for control in ("not forced", "random direction"):
        assert misled.loc[control, "difference_high"] < least / 3
    # Forced to edit, detectors of shuffled labels move truth by chance; on average they stay behind.
    assert misled.loc["shuffled labels", "difference"] < misled.loc["RADIANT", "difference"] / 2
    assert comparison.evaluations["RADIANT"].metrics["other"].value <= 0.05
