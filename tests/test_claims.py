"""Claims about the embedded model under the settings tuned to it, each measured here on held-out questions."""

from __future__ import annotations

import pytest

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.datasets.world.facts import RELIABLE_SOURCES
from radiant_lens.datasets.world.tone import KIND_MOODS
from radiant_lens.evaluation import generate_answers, get_judge

pytestmark = pytest.mark.slow

BARE, MISLED = "bare", "after_undesirable"


@pytest.fixture(scope="module")
def comparison(experiment, recipe, tuned):
    unforced = studies.shuffled_labels(experiment, recipe.steering, tuned, force=False)
    steerings = {studies.UNSTEERED: None, "RADIANT": recipe.steering, "shuffled labels, not forced": unforced}
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


@pytest.fixture(scope="module")
def controls(experiment, recipe, tuned):
    """Controls that edit, each averaged over several draws: a single one may come near RADIANT by chance."""
    drawn = {
        metric: [
            rl.RandomDirectionPolicy(recipe.steering, metric=metric, seed=seed).fit(
                experiment.train_cache, experiment.detector
            )
            for seed in range(6)
        ]
        for metric in ("mahalanobis", "total")
    }
    shuffled = studies.controls(experiment, recipe.steering, tuned, n_shuffles=6)["shuffled labels"]
    result = studies.compare(experiment, {studies.UNSTEERED: None, "shuffled labels": shuffled, **drawn}, n_samples=2)
    return result.pooled().set_index(["row", "metric"])


def shares(model, dataset, prefix: str = "", condition: str = BARE) -> dict[str, float]:
    prompts = [p for p in dataset.prompts if p.condition == condition]
    answers = generate_answers(model, [prefix + p.text for p in prompts], n_samples=2, stop=dataset.stop)
    pairs = [(prompt, answer) for prompt, samples in zip(prompts, answers) for answer in samples]
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
def test_shuffled_labels_do_little_under_the_recipes_gate(gains, condition):
    """A detector that learned nothing flags almost nothing."""
    assert gains["shuffled labels, not forced", condition].high < gains["RADIANT", condition].low / 3


def test_shuffled_labels_that_are_forced_to_edit(controls, gains):
    """The metric holds the true difference, so a chance direction is largely that difference, with either sign."""
    assert controls.loc[("shuffled labels", "edited_share"), "least"] > 0.5
    bare, misled = (controls.loc[("shuffled labels", f"correct/{condition}")] for condition in (BARE, MISLED))
    assert bare["least"] < controls.loc[(studies.UNSTEERED, f"correct/{BARE}"), "value"] < bare["largest"]
    assert misled["difference"] < gains["RADIANT", MISLED].value / 2


@pytest.mark.parametrize("metric", ["mahalanobis", "total"])
def test_random_directions_do_little(controls, gains, metric):
    for condition in (BARE, MISLED):
        assert controls.loc[(metric, f"correct/{condition}"), "difference"] < gains["RADIANT", condition].value / 3


def test_a_quarter_of_the_cost_of_iti(experiment, comparison):
    steered = comparison.evaluations["RADIANT"].metrics
    points = []
    for n_heads in (8, 16, 24):
        for alpha in (2.0, 3.0, 4.0):
            iti = rl.ITIPolicy(alpha=alpha, n_heads=n_heads).fit(experiment.train_cache, experiment.detector)
            metrics = studies.compare(experiment, {"iti": iti}, n_samples=1).evaluations["iti"].metrics
            points.append((metrics[f"correct/{MISLED}"].value, metrics["kl"].value))
    # None: no ITI of the sweep reaches the share at all.
    needed = studies.least_cost(points, steered[f"correct/{MISLED}"].value)
    assert needed is None or steered["kl"].value <= needed / 4


def test_the_held_out_certificate_says_how_many_groups_it_needs(experiment, recipe):
    certificate = recipe.steering.certify(experiment.test_cache())
    # So small a share takes 598 groups without a failure to confirm, more than are held out here.
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
