"""`LeastKLPolicy` on the embedded model: the budget is met where it is measured, and correct answers gain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError
from radiant_lens.evaluation import score_choices, score_statements


@pytest.fixture(scope="module")
def parts(facts):
    """Bare questions, so that a shift has something to move."""
    return [replace(part.head(n), contexts=None) for part, n in zip(facts.split((0.6, 0.2, 0.2), seed=0), (60, 20, 20))]


@pytest.fixture(scope="module")
def fitted(model, parts):
    train, validation, _ = parts
    return rl.LeastKLPolicy(budget=0.01).fit(model, train, validation=validation)


def kl(model, data, steering) -> float:
    scored = score_statements(model, [s for s in data.statements if s.label == 0], steering)
    return float(scored.kl.sum() / scored.n_tokens.sum())


def test_the_budget_is_met_on_validation_text(model, parts, fitted):
    _, validation, test = parts
    (step,) = fitted.meta["least_kl"]["steps"]
    assert kl(model, validation, fitted) == pytest.approx(0.01, rel=0.05)
    assert step["measured_kl"] == pytest.approx(kl(model, validation, fitted), rel=1e-4)
    assert 0.003 < kl(model, test, fitted) < 0.03


def test_correct_answers_gain_on_questions_of_other_groups(model, parts, fitted):
    prompts = parts[2].prompts
    plain, steered = (score_choices(model, prompts, steering)["mc2"] for steering in (None, fitted))
    assert (steered - plain).mean() > 0.02


def test_a_larger_budget_gains_more(model, parts, fitted):
    train, validation, test = parts
    larger = rl.LeastKLPolicy(budget=0.04).fit(model, train, validation=validation)
    one, other = (score_choices(model, test.prompts, steering)["mc2"].mean() for steering in (fitted, larger))
    assert other > one
    assert kl(model, validation, larger) == pytest.approx(0.04, rel=0.05)


def test_several_steps_share_the_budget(model, parts):
    train, validation, _ = parts
    steering = rl.LeastKLPolicy(budget=0.01, steps=2, coupling=0.3).fit(model, train, validation=validation)
    first, second = steering.meta["least_kl"]["steps"]
    assert first["measured_kl"] == pytest.approx(0.005, rel=0.05)
    assert second["measured_kl"] == pytest.approx(0.01, rel=0.05)
    assert second["gain_before"] > first["gain_before"]


def test_it_is_a_steering_like_any_other(model, parts, fitted, tmp_path):
    loaded = rl.Steering.load(fitted.save(tmp_path / "s"))
    assert loaded.meta == fitted.meta
    z = torch.randn(2, 3, model.cfg.n_heads, model.cfg.d_head)
    assert torch.equal(loaded.edit(z, 1), fitted.edit(z, 1))
    assert {len(fitted.sites), len(fitted.certificates)} == {model.cfg.n_layers * model.cfg.n_heads}
    assert all(c.method == "least KL" and c.gap < 1e-8 for c in fitted.certificates)
    with pytest.raises(LeakageError):
        fitted.certify(rl.collect(model, parts[0].head(2)))
    assert "least KL" in repr(fitted)


def test_chosen_heads_alone_are_moved(model, parts):
    train, validation, _ = parts
    steering = rl.LeastKLPolicy(budget=0.001, heads="L1H5 L2H0").fit(model, train, validation=validation)
    assert [str(site) for site in steering.sites] == ["L1H5", "L2H0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "`budget` must lie strictly above 0"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1"),
        ({"coupling": 1.0}, "`coupling` must lie in"),
        ({"heads": "significant"}, "`heads` must be 'all'"),
    ],
)
def test_refusals_come_before_any_work(model, parts, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        rl.LeastKLPolicy(**options).fit(model, parts[0], validation=parts[1])


def test_data_that_cannot_serve_are_refused(model, parts):
    train, validation, _ = parts
    with pytest.raises(LeakageError, match="training and validation must not share groups"):
        rl.LeastKLPolicy().fit(model, train, validation=train)
    with pytest.raises(DataError, match="no desirable statements"):
        rl.LeastKLPolicy().fit(model, train, validation=replace(validation, atoms=()))
