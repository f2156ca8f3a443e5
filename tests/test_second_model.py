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
    """A GPT-2 architecture of 5 layers, trained anew; RADIANT_SECOND_MODEL names a folder to take it from instead."""
    given = os.environ.get("RADIANT_SECOND_MODEL")
    folder = Path(given) if given else tmp_path_factory.mktemp("second")
    if given is None:
        model, tokenizer = train(TrainingConfig("gpt2", n_layers=5, seed=1, steps=3000))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return rl.load_model(folder)


@pytest.mark.slow
def test_the_same_defaults_work_on_another_model(second_model, facts):
    experiment = studies.prepare(second_model, facts)
    recipe = studies.effective(experiment)
    steerings = {studies.UNSTEERED: None, "RADIANT": recipe.steering, **studies.controls(experiment, recipe.steering)}
    comparison = studies.compare(experiment, steerings, n_samples=3)
    base = comparison.evaluations[studies.UNSTEERED]
    misled = {
        name: evaluation.gain(base, condition="after_undesirable")
        for name, evaluation in comparison.evaluations.items()
    }
    assert misled["RADIANT"].low > 0.2
    assert misled["shuffled labels"].high < misled["RADIANT"].low / 3
    assert misled["random direction"].high < misled["RADIANT"].low / 3
    assert comparison.evaluations["RADIANT"].metrics["other"].value <= 0.05
