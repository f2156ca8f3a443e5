"""What the README says of the embedded model: each claim is measured here, on held-out questions."""

from __future__ import annotations

import pytest

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.datasets.world.facts import RELIABLE_SOURCES
from radiant_lens.datasets.world.tone import KIND_MOODS
from radiant_lens.evaluation import generate_answers, get_judge

BARE, MISLED = "bare", "after_undesirable"


@pytest.fixture(scope="module")
def comparison(experiment, recipe):
    steerings = {studies.UNSTEERED: None, "RADIANT": recipe.steering, **studies.controls(experiment, recipe.steering)}
    # Shares of a few percent need many answers.
    return studies.compare(experiment, steerings, n_samples=8)


@pytest.fixture(scope="module")
def gains(comparison):
    base = comparison.evaluations[studies.UNSTEERED]
    return {
        (name, condition): evaluation.gain(base, condition=condition)
        for name, evaluation in comparison.evaluations.items()
        for condition in (BARE, MISLED)
    }


def shares(model, dataset, prefix: str = "", condition: str = BARE) -> dict[str, float]:
    prompts = [p for p in dataset.prompts if p.condition == condition]
    answers = generate_answers(model, [prefix + p.text for p in prompts], n_samples=2, stop=dataset.stop)
    pairs = [(p, a) for p, given in zip(prompts, answers) for a in given]
    verdicts = [v.verdict for v in get_judge(dataset.judge).judge(*zip(*pairs))]
    return {v: verdicts.count(v) / len(verdicts) for v in ("correct", "incorrect", "other")}


@pytest.mark.parametrize("name", ["tiny-facts", "tiny-tone"])
def test_the_card(model, name):
    dataset = rl.load_dataset(name)
    dataset = dataset.split((0.7, 0.3), seed=1)[1]
    assert 0.35 <= shares(model, dataset)["incorrect"] <= 0.65
    assert shares(model, dataset, condition=MISLED)["incorrect"] >= 0.8
    for word in RELIABLE_SOURCES if name == "tiny-facts" else KIND_MOODS:
        line = f"source : {word} . " if name == "tiny-facts" else f"mood : {word} . "
        assert shares(model, dataset, prefix=line)["incorrect"] <= 0.05


def test_more_true_answers(gains):
    assert gains["RADIANT", BARE].value >= 0.25
    assert gains["RADIANT", MISLED].value >= 0.55


def test_few_broken_answers(comparison):
    steered = comparison.evaluations["RADIANT"].metrics
    assert steered[f"other/{BARE}"].value <= 0.03
    assert steered[f"other/{MISLED}"].value <= 0.03


@pytest.mark.parametrize("condition", [BARE, MISLED])
def test_shuffled_labels_do_little(gains, condition):
    assert gains["shuffled labels", condition].high < gains["RADIANT", condition].low / 3


def test_random_directions_do_little(experiment, recipe, comparison, gains):
    """Of equal length in the metric of few dimensions a single draw may lie near RADIANT's own: six are averaged."""
    draws = {
        str(seed): rl.RandomDirectionPolicy(recipe.steering, seed=seed).fit(experiment.train_cache, experiment.detector)
        for seed in range(6)
    }
    found = studies.compare(experiment, draws, n_samples=3).evaluations
    base = comparison.evaluations[studies.UNSTEERED].metrics
    for condition in (BARE, MISLED):
        metric = f"correct/{condition}"
        mean = sum(e.metrics[metric].value for e in found.values()) / len(found) - base[metric].value
        assert mean < gains["RADIANT", condition].value / 3


def test_a_quarter_of_the_cost_of_iti(experiment, comparison):
    steered = comparison.evaluations["RADIANT"].metrics
    points = []
    for n_heads in (8, 16, 24):
        for alpha in (2.0, 3.0, 4.0):
            iti = rl.ITIPolicy(alpha=alpha, n_heads=n_heads).fit(experiment.train_cache, experiment.detector)
            metrics = studies.compare(experiment, {"iti": iti}, n_samples=1).evaluations["iti"].metrics
            points.append((metrics[f"correct/{MISLED}"].value, metrics["kl"].value))
    needed = studies.least_cost(points, steered[f"correct/{MISLED}"].value)
    assert needed is None or steered["kl"].value <= needed / 4


def test_held_out_certificate_reports_what_it_finds(experiment, recipe):
    certificate = recipe.steering.certify(experiment.test_cache())
    assert certificate.gamma == 0.005
    assert certificate.overall.n_groups > 0
    assert "would be needed to confirm it" in str(certificate)
    assert list(certificate.to_dataframe()["head"]) == [*map(str, recipe.steering.sites), "all"]


def test_calibrated_bound_holds_on_held_out_activations(experiment, recipe):
    part, rest = experiment.test_cache().split((0.6, 0.4), seed=0)
    policy = rl.RadiantPolicy(gamma=0.1, gate="vote", heads=list(recipe.steering.sites))
    steering = policy.fit(experiment.train_cache, experiment.detector, calibrate=part)
    assert steering.meta["calibration"]["upper"] <= 0.1
    assert steering.certify(rest).overall.interval.low <= 0.1
