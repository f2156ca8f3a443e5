"""A report with all its sections, written once for all tests."""

from __future__ import annotations

import pytest

import radiant_lens as rl

PROMPT = "Q : what is the capital of dupeka ? A :"


@pytest.fixture(scope="session")
def held_out(experiment):
    return experiment.test_cache()


@pytest.fixture(scope="session")
def evaluations(model, experiment, steering):
    few = experiment.test.head(12)
    control = rl.RandomDirectionPolicy(steering).fit(experiment.train_cache, experiment.detector)
    steerings = {"no steering": None, "RADIANT": steering, "random direction": control}
    return {name: rl.evaluate(model, few, s, n_samples=2) for name, s in steerings.items()}


@pytest.fixture(scope="session")
def measured(model, steering, experiment):
    questions = rl.Dataset("questions", (), experiment.test.bare_prompts[:10])
    return rl.side_effects(model, steering, benchmark=questions, max_new_tokens=20)


@pytest.fixture(scope="session")
def full_report(model, facts, experiment, recipe, held_out, evaluations, measured):
    return rl.report(
        recipe.steering,
        detector=experiment.detector,
        cache=held_out,
        effects=recipe.effects,
        evaluations=evaluations,
        writes=rl.edit_writes(model, experiment.test.statements[:60], recipe.steering),
        side_effects=measured,
        answer=rl.trace_answer(model, PROMPT, recipe.steering, stop=facts.stop),
        title="A report & all of it",
    )
