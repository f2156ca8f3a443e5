"""Strengths at a budget of KL, and bounds on behaviour."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.analysis.strength import KLCurve, desirable_statements, mean_kl, measure_kl, strength_at_kl
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError, LeakageError
from radiant_lens.evaluation import score_choices


@pytest.mark.parametrize("curve", [lambda c: 0.5 * c**2, lambda c: c**3, lambda c: 5 * c / (1 + c), lambda c: 0.01 * c])
@pytest.mark.parametrize("budget", [0.01, 0.2, 3.0])
def test_the_strength_meets_the_budget_on_any_rising_curve(curve, budget):
    result = strength_at_kl(curve, budget)
    assert result.kl == pytest.approx(budget, rel=0.03)
    assert curve(result.strength) == result.kl


def test_budgets_share_their_measurements():
    alone = []
    for budget in (0.02, 0.08, 0.3):
        curve = KLCurve(lambda c: 0.5 * c**1.7)
        curve.at(budget)
        alone.append(len(curve.trials))
    shared = KLCurve(lambda c: 0.5 * c**1.7)
    for budget in (0.02, 0.08, 0.3):
        assert shared.at(budget).kl == pytest.approx(budget, rel=0.03)
    n = len(shared.trials)
    assert n < sum(alone)
    shared.at(0.08)
    assert len(shared.trials) == n


def test_a_curve_that_bends_is_met_in_few_trials():
    curve = KLCurve(lambda c: 0.0003 * c**2 + 1e-6 * c**6)
    assert curve.at(0.02).kl == pytest.approx(0.02, rel=0.03)
    assert len(curve.trials) <= 9


def test_where_the_kl_falls_again_the_least_strength_is_taken():
    curve = KLCurve(lambda c: c if c < 2 else 4 - c, start=3.0)
    assert curve.at(0.5).strength == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("budget", [0.06, 0.1, 1.0])
@pytest.mark.parametrize("start", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("curve", [lambda c: 0.04 + 0.5 * c**2, lambda c: 0.04 - 0.02 * c + 0.03 * c**3])
def test_strengths_beyond_other_edits_meet_the_budget(curve, start, budget):
    result = KLCurve(curve, start=start, unmoved=0.04).at(budget)
    assert result.kl == pytest.approx(budget, rel=0.03)


@pytest.mark.parametrize("start", [0.1, 2.3, 50.0])
def test_where_the_kl_jumps_over_the_budget_the_strength_below_is_taken(start):
    for jump in (0.001, 0.3, 20.0):
        curve = KLCurve(lambda c, jump=jump: 0.002 * c**2 if c < 2.309 else 0.002 * c**2 + jump, start=start)
        result = curve.at(0.0111)
        assert result.kl < 0.0111
        assert result.strength == pytest.approx(2.309, rel=0.011)


@pytest.mark.parametrize("budget", [0.02, 0.08, 0.25])
def test_below_a_jump_half_of_the_budget_must_be_used(budget):
    with pytest.raises(ConvergenceError, match=f"No strength gives a KL of {budget}"):
        strength_at_kl(lambda c: 0.001 * c**2 if c < 1 else 0.5 * c**2 + 0.3, budget)


def test_a_step_that_lowers_the_kl_first_meets_the_budget():
    result = KLCurve(lambda c: 0.04 - 0.03 * c + 0.005 * c**2, unmoved=0.04).at(0.08)
    assert result.kl == pytest.approx(0.08, rel=0.03)


def test_other_edits_above_the_budget_are_refused():
    with pytest.raises(ConvergenceError, match=r"The KL is 0\.2 without this edit, above the budget of 0\.1"):
        KLCurve(lambda c: 0.2 + c**2, unmoved=0.2).at(0.1)


@pytest.mark.parametrize("curve", [lambda c: min(0.1 * c, 0.3), lambda c: 0.0])
def test_a_budget_that_no_strength_meets_is_refused(curve):
    with pytest.raises(ConvergenceError, match="No strength gives a KL of 0.5"):
        strength_at_kl(curve, 0.5)


@pytest.fixture(scope="module")
def shifted(experiment):
    return rl.MeanShiftPolicy(heads="all").fit(experiment.train_cache, experiment.detector)


def test_scaled_multiplies_every_displacement(experiment, steering, shifted):
    for one in (steering, shifted):
        layer = one.layers[0]
        z = experiment.train_cache.z[:20, layer].double()
        whole, part, back = (one.scaled(c).displace(z, layer) for c in (1.0, 0.25, -2.0))
        torch.testing.assert_close(part.displacement, 0.25 * whole.displacement)
        torch.testing.assert_close(back.displacement, -2 * whole.displacement)
        assert torch.equal(part.gated, whole.gated)
    twice = steering.scaled(0.5).scaled(3.0)
    assert twice.meta["strength"] == 1.5
    assert twice.meta["gamma"] is None
    assert all(c.slack != c.slack for c in twice.certificates)
    assert isinstance(twice, rl.Steering)


def test_steer_takes_a_strength(model, steering, experiment):
    tokens = torch.tensor([model.tokenizer(experiment.test.statements[0].text)["input_ids"]])
    logits = []
    for block in (
        rl.steer(model, steering, strength=0.5, start=0),
        rl.steer(model, steering.scaled(0.5), start=0),
        rl.steer(model, steering, start=0),
    ):
        with block, torch.no_grad():
            logits.append(model(tokens))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "2", True])
def test_a_strength_that_is_no_number_is_refused(model, steering, strength):
    with pytest.raises(InvalidArgumentError, match="`strength` must lie between -1e\\+06 and 1e\\+06"):
        steering.scaled(strength)
    with pytest.raises(InvalidArgumentError, match="`strength`"), rl.steer(model, steering, strength=strength):
        pass


def test_resampling_has_no_strength(experiment):
    resampled = rl.AblationPolicy("resample", heads="all").fit(experiment.train_cache, experiment.detector)
    with pytest.raises(InvalidArgumentError, match="it has no strength"):
        resampled.scaled(0.5)


@pytest.fixture(scope="module")
def at_budget(model, experiment, shifted):
    return shifted.at_kl(model, experiment.validation, 0.05)


def test_at_kl_meets_the_budget_and_records_it(model, experiment, shifted, at_budget):
    statements = desirable_statements(experiment.validation)
    assert mean_kl(model, statements, at_budget) == pytest.approx(0.05, rel=0.03)
    assert mean_kl(model, statements, shifted) != pytest.approx(0.05, rel=0.1)
    assert at_budget.meta["kl_budget"] == 0.05
    assert set(experiment.validation.groups) <= set(at_budget.meta["seen_groups"])


def test_with_a_confidence_the_bound_meets_the_budget(model, experiment, shifted, at_budget):
    safe = shifted.at_kl(model, experiment.validation, 0.05, confidence=0.95)
    kl = measure_kl(model, desirable_statements(experiment.validation), safe)
    assert kl.upper(0.95) == pytest.approx(0.05, rel=0.03)
    assert kl.mean < 0.05
    assert safe.meta["strength"] < at_budget.meta["strength"]


def test_certify_bounds_the_behaviour(model, experiment, at_budget):
    certificate = at_budget.certify(model, experiment.test)
    statements = desirable_statements(experiment.test)
    assert certificate.kl == pytest.approx(mean_kl(model, statements, at_budget))
    assert certificate.kl_upper > certificate.kl
    plain, steered = (score_choices(model, experiment.test.prompts, s) for s in (None, at_budget))
    assert certificate.n_questions == plain["group"].nunique()
    assert 0 < certificate.n_risen <= certificate.n_questions
    share = float((steered["mc2"] > plain["mc2"]).mean())
    assert certificate.risen.low - 0.1 < share < certificate.risen.high + 0.1
    assert certificate.risen.low < certificate.risen_lower < certificate.risen.value
    assert certificate.heads is not None
    for part in ("nats a token, at most", "budget 0.05", "held-out questions improve", "Heads: "):
        assert part in str(certificate)
    assert list(certificate.to_dataframe()["groups"]) == [certificate.n_kl_groups, certificate.n_questions]


def test_groups_that_set_the_strength_are_refused(model, experiment, at_budget):
    with pytest.raises(LeakageError):
        at_budget.certify(model, experiment.validation)


def test_wrong_arguments_are_refused(model, experiment, shifted):
    with pytest.raises(InvalidArgumentError, match="either a cache, or a model and a data set"):
        shifted.certify(model)
    with pytest.raises(InvalidArgumentError, match="`budget` must lie strictly above 0"):
        shifted.at_kl(model, experiment.validation, 0.0)
    with pytest.raises(InvalidArgumentError, match="`confidence` must lie strictly between 0.5 and 1"):
        shifted.at_kl(model, experiment.validation, 0.1, confidence=1.0)
    with pytest.raises(DataError, match="no desirable statements"):
        desirable_statements(rl.Dataset("questions", [], experiment.test.prompts[:1]))
