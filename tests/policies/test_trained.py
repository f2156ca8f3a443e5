"""`TrainedShiftPolicy`: training raises the gain, the penalty holds the KL, the budget is met."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shifted_heads import every_head

from radiant_lens.analysis.sensitivity import kl_gradient
from radiant_lens.analysis.strength import desirable_statements, mean_kl
from radiant_lens.errors import InvalidArgumentError, LeakageError
from radiant_lens.evaluation import score_choices
from radiant_lens.policies.trained import TrainedShiftPolicy


@pytest.fixture(scope="module")
def parts(facts):
    return [replace(part.head(n), contexts=None) for part, n in zip(facts.split((0.6, 0.2, 0.2), seed=0), (40, 15, 15))]


def test_the_gradient_of_the_kl_is_that_of_finite_differences(model, parts):
    family = every_head(model, "constant", "none")
    texts = desirable_statements(parts[2])
    generator = torch.Generator().manual_seed(0)
    parameters = 0.1 * torch.randn(len(family.sites), family.n_parameters, generator=generator).double()

    def at(offset: torch.Tensor):
        return kl_gradient(model, texts, family, replace(family.template, head_maps=family.maps(parameters + offset)))

    here = at(torch.zeros(1))
    steering = replace(family.template, head_maps=family.maps(parameters))
    assert here.value == pytest.approx(mean_kl(model, texts, steering), rel=1e-3)
    direction = here.gradient / here.gradient.norm()
    slope = (at(0.02 * direction).value - at(-0.02 * direction).value) / 0.04
    assert slope == pytest.approx(float(here.gradient.norm()), rel=0.03)


def test_correct_answers_gain_at_the_budget(model, parts):
    train, validation, test = parts
    steering = TrainedShiftPolicy(budget=0.02, epochs=2).fit(model, train, validation=validation)
    assert mean_kl(model, desirable_statements(validation), steering) == pytest.approx(0.02, rel=0.05)
    plain, steered = (score_choices(model, test.prompts, s)["mc2"].mean() for s in (None, steering))
    assert steered > plain + 0.02
    assert steering.meta["policy"]["name"] == "trained shift"
    assert set(train.groups) | set(validation.groups) <= set(steering.meta["seen_groups"])


def test_the_penalty_holds_the_kl(model, parts):
    train, validation, _ = parts
    texts = desirable_statements(validation)
    kl = []
    for weight in (0.0, 100.0):
        policy = TrainedShiftPolicy(budget=0.02, epochs=2, learning_rate=0.1, kl_weight=weight)
        steering = policy.fit(model, train, validation=validation)
        # The strength that meets the budget undoes the length of what was trained.
        kl.append(mean_kl(model, texts, steering.scaled(1 / steering.meta.get("strength", 1.0))))
    assert kl[1] < 0.5 * kl[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "`budget` must lie strictly above 0"),
        ({"family": "strength"}, "`family` must be one of 'constant', 'affine'"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` must lie strictly above 0"),
        ({"kl_weight": -1.0}, "`kl_weight` must lie at or above 0"),
    ],
)
def test_refusals(model, parts, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TrainedShiftPolicy(**options).fit(model, parts[0], validation=parts[1])
    with pytest.raises(LeakageError):
        TrainedShiftPolicy().fit(model, parts[0], validation=parts[0])
