"""Gradients of the gain and Fisher scores against finite differences and measured KL, on the embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shifted_heads import every_head

import radiant_lens as rl
from radiant_lens.analysis.families import FAMILIES
from radiant_lens.analysis.sensitivity import GainGradient, fisher_scores, gain_gradient
from radiant_lens.analysis.strength import mean_kl
from radiant_lens.errors import DataError
from radiant_lens.evaluation import score_choices
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import HeadScores
from radiant_lens.steering.maps import Certificate, RankOneMaps


def make_shift(model, site: tuple[int, int], shift: torch.Tensor) -> rl.Steering:
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    scores = HeadScores(torch.zeros(*shape, model.cfg.d_head), -torch.ones(shape), torch.ones(shape[0]).long())
    maps = RankOneMaps.translation(shift[None].double())
    return rl.Steering((HeadSite(*site),), maps, scores, "none", (Certificate("shift"),))


@pytest.fixture(scope="module")
def small(facts):
    return replace(facts.head(12), contexts=None)


@pytest.mark.parametrize("gate", ["none", "head", "vote"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(model, small, kind, gate):
    family = every_head(model, kind, gate)
    result = gain_gradient(model, small.prompts, family)
    assert result.mc2 == pytest.approx(score_choices(model, small.prompts)["mc2"].mean(), abs=1e-4)
    direction = result.gradient / result.gradient.norm()
    step = 0.02
    high, low = (
        gain_gradient(
            model, small.prompts, family, replace(family.template, head_maps=family.maps(c * direction))
        ).value
        for c in (step, -step)
    )
    assert (high - low) / (2 * step) == pytest.approx(float(result.gradient.norm()), rel=0.03)


def test_the_gradient_under_edits_is_taken_where_the_edits_lead(model, small):
    """Gates and bases read the activations before the edits, gradients are those after them."""
    family = every_head(model, "affine", "head")
    generator = torch.Generator().manual_seed(1)
    parameters = 0.05 * torch.randn(len(family.sites), family.n_parameters, generator=generator).double()

    def at(offset: torch.Tensor) -> GainGradient:
        steering = replace(family.template, head_maps=family.maps(parameters + offset))
        return gain_gradient(model, small.prompts, family, steering)

    here = at(torch.zeros(1))
    direction = here.gradient / here.gradient.norm()
    slope = (at(0.02 * direction).value - at(-0.02 * direction).value) / 0.04
    assert slope == pytest.approx(float(here.gradient.norm()), rel=0.03)
    assert not torch.allclose(here.gradient, gain_gradient(model, small.prompts, family).gradient, rtol=0.05)


def test_batches_do_not_change_the_gradient(model, small):
    whole, parted = (gain_gradient(model, small.prompts, every_head(model), max_tokens=n) for n in (4096, 1))
    torch.testing.assert_close(whole.gradient, parted.gradient, rtol=1e-3, atol=1e-6)
    assert whole.value == pytest.approx(parted.value, abs=1e-5)


@pytest.mark.parametrize("site", [(1, 5), (2, 0), (0, 3)])
def test_scores_predict_the_kl_of_a_small_shift(model, facts, site):
    texts = [s for s in replace(facts, contexts=None).statements if s.label == 0][:200]
    scores = fisher_scores(model, texts, every_head(model), n_draws=4)
    unit = torch.randn(model.cfg.d_head, generator=torch.Generator().manual_seed(0))
    unit = unit / unit.norm()
    predicted = 0.5 * float(
        (scores.scores[:, site[0] * model.cfg.n_heads + site[1]] @ unit).square().sum() / scores.n_tokens.sum()
    )
    measured = mean_kl(model, texts, make_shift(model, site, unit))
    assert measured == pytest.approx(predicted, rel=0.3)
    assert mean_kl(model, texts, make_shift(model, site, 2 * unit)) > 2 * measured


def test_draws_are_those_of_their_seed(model, small):
    texts = small.statements[:6]
    one, same, other = (fisher_scores(model, texts, every_head(model), seed=seed).scores for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_no_prompt_with_both_kinds_of_answers_is_refused(model, small):
    with pytest.raises(DataError, match="no gain to differentiate"):
        gain_gradient(model, [replace(p, incorrect_answers=()) for p in small.prompts], every_head(model))
    with pytest.raises(DataError, match="no statements to measure the KL on"):
        mean_kl(model, [], make_shift(model, (0, 0), torch.ones(model.cfg.d_head)))
