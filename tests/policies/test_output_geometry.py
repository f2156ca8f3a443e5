"""`RadiantPolicy(geometry="output")`: the detector's constraint at least change of what the model says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.analysis.families import Family
from radiant_lens.analysis.sensitivity import fisher_scores
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.evaluation import score_statements
from radiant_lens.linalg import masked_moments
from radiant_lens.policies.head_sample import prepare
from radiant_lens.steering.maps import RankOneMaps

HEADS = [(1, 2), (1, 5), (2, 0)]


def policy(geometry="output", **options):
    return rl.RadiantPolicy(**{"gamma": 0.05, "geometry": geometry, "heads": HEADS, **options})


@pytest.fixture(scope="module")
def texts(experiment):
    return experiment.train.head(40)


@pytest.fixture(scope="module")
def fisher(model, texts, experiment):
    return rl.fisher_blocks(model, texts, experiment.detector, heads=HEADS)


@pytest.fixture(scope="module")
def fitted(experiment, fisher):
    return policy().fit(experiment.train_cache, experiment.detector, fisher=fisher)


@pytest.fixture(scope="module")
def sample(experiment, fitted):
    return prepare(experiment.train_cache, experiment.detector, lambda _: fitted.sites, "head")


def predicted_kl(steering, sample, information):
    """`E d' F d / 2` over the activations that the gate passes, for each head."""
    values = []
    for i, edit in enumerate(steering.maps().values()):
        z = sample.rows[:][sample.gated[:, i], i].double()
        d = z @ edit.G.T + edit.g - z
        values.append(float(torch.einsum("ni,ij,nj->n", d, information[i], d).mean() / 2))
    return torch.tensor(values)


def test_the_image_meets_the_constraint_and_activations_do_not(fitted, sample):
    moments = masked_moments(sample.rows, sample.gated).ridged(1e-6)
    for i, edit in enumerate(fitted.maps().values()):
        theta, bias, kappa = sample.weights[i], sample.biases[i], edit.certificate.margin

        def excess(mean, covariance, theta=theta, bias=bias, kappa=kappa):
            return float(bias + theta @ mean + kappa * (theta @ covariance @ theta).sqrt())

        before = excess(moments.mean[i], moments.covariance[i])
        after = excess(edit.G @ moments.mean[i] + edit.g, edit.G @ moments.covariance[i] @ edit.G.T)
        assert before > 0
        assert abs(after) < 1e-6 * before
        assert edit.certificate.method == "output"
        assert abs(edit.certificate.gap) < 1e-6


def test_it_is_the_closed_form_in_the_metric_of_the_information(fitted, fisher, sample, experiment):
    """`a' = a + M theta (y' - y) / (theta' M theta)` with `M = (F + ridge)^{-1}`; twice the KL is the value."""
    information = fisher.regularised(fitted.sites)
    moments = masked_moments(sample.rows, sample.gated).ridged(1e-6)
    kappa = policy().kappa
    for i, edit in enumerate(fitted.maps().values()):
        theta = sample.weights[i]
        pulled = torch.linalg.solve(information[i], theta)
        spread = (theta @ sample.class_moments(undesirable=False).covariance[i] @ theta).sqrt()
        m = sample.biases[i] + theta @ moments.mean[i]
        s = (theta @ moments.covariance[i] @ theta).sqrt()
        x = (m + kappa * s) / (1 + kappa**2)
        std = torch.maximum(s - kappa * x, spread)
        z = sample.rows[:][sample.gated[:, i], i].double()
        y = sample.biases[i] + z @ theta
        shift = -kappa * std + std / s * (y - m) - y
        expected = shift[:, None] * pulled / (theta @ pulled)
        torch.testing.assert_close(z @ edit.G.T + edit.g - z, expected, rtol=1e-6, atol=1e-8)
        cost = torch.einsum("ni,ij,nj->n", expected, information[i], expected).mean()
        # The value is of the ridged moments.
        assert edit.certificate.value == pytest.approx(float(cost), rel=1e-3)
    wasserstein = policy("wasserstein").fit(experiment.train_cache, experiment.detector)
    one, other = (next(iter(steering.maps().values())).G for steering in (fitted, wasserstein))
    assert not torch.allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein"])
def test_no_other_geometry_predicts_less_kl_for_the_same_constraint(fitted, fisher, sample, experiment, geometry):
    other = policy(geometry).fit(experiment.train_cache, experiment.detector)
    information = fisher.regularised(fitted.sites)
    own, rival = (predicted_kl(steering, sample, information) for steering in (fitted, other))
    assert bool((own < 0.95 * rival).all())
    # Without the ridge, which the solver sees and the texts do not.
    assert bool((predicted_kl(fitted, sample, fisher.blocks) < predicted_kl(other, sample, fisher.blocks)).all())


def test_blocks_are_those_of_all_scores_and_foretell_a_small_kl(model, texts):
    texts = replace(texts, contexts=None)
    desirable = [s for s in texts.statements if s.label == 0]
    fisher = rl.fisher_blocks(model, texts, gate="none", heads="L1H5", n_draws=8)
    shift = torch.randn((1, model.cfg.d_head), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    template = rl.LeastKLPolicy(heads="L1H5").make_family(model, texts).template
    scores = fisher_scores(model, desirable, Family("constant", template), n_draws=8)
    expected = torch.einsum("nsi,nsj->sij", scores.scores.double(), scores.scores.double()) / scores.n_tokens.sum()
    torch.testing.assert_close(fisher.blocks, expected)
    assert fisher.meta["n_tokens"] * 8 == int(scores.n_tokens.sum())
    shift = shift / shift.norm()
    scored = score_statements(model, desirable, replace(template, head_maps=RankOneMaps.translation(0.5 * shift)))
    measured = float(scored.kl.sum() / scored.n_tokens.sum())
    foretold = float(0.25 * shift[0] @ fisher.blocks[0] @ shift[0] / 2)
    assert foretold == pytest.approx(measured, rel=0.35)


def test_a_head_whose_gate_passes_nothing_has_the_identity(model, texts, experiment, fisher):
    shut = replace_biases(experiment.detector, -1e6)
    blocks = rl.fisher_blocks(model, texts.head(12), shut, heads=HEADS)
    assert not bool(blocks.blocks.any())
    assert torch.equal(blocks.regularised(blocks.sites)[0], torch.eye(model.cfg.d_head, dtype=torch.float64))
    assert bool(fisher.blocks.any())


def replace_biases(detector, value):
    other = rl.RiskAwareDetector(**detector.get_params())
    other.__dict__.update(detector.__dict__)
    other.biases_ = torch.full_like(detector.biases_, value)
    return other


def test_it_is_saved_and_certified_like_any_other(fitted, experiment, texts, tmp_path):
    loaded = rl.Steering.load(fitted.save(tmp_path / "s"))
    z = experiment.train_cache.z[:50, 1]
    assert torch.equal(loaded.edit(z, 1), fitted.edit(z, 1))
    assert loaded.meta == fitted.meta
    record = fitted.meta["fisher"]
    assert (record["ridge"], record["gate"], record["n_draws"], record["data"]) == (0.1, "head", 2, texts.name)
    assert set(texts.groups) <= set(fitted.meta["seen_groups"])
    certificate = fitted.certify(experiment.test_cache())
    assert 0 <= certificate.overall.interval.value < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "output"}, 'The geometry "output" needs the Fisher blocks of the heads: give `fit'),
        ({"fisher": True}, "`fisher` goes with the geometry \"output\" and with no other; got 'mahalanobis'"),
        ({"geometry": "output", "fisher": True, "gate": "none"}, "measured under the gate 'head', and the policy has"),
        ({"geometry": "output", "fisher": True, "heads": "L0H0 L1H2"}, "`fisher` has no block of L0H0: measure it"),
    ],
)
def test_what_does_not_fit_is_refused(experiment, fisher, options, message):
    options = dict(options)
    given = fisher if options.pop("fisher", False) else None
    chosen = rl.RadiantPolicy(**{"heads": HEADS, **options})
    with pytest.raises(InvalidArgumentError, match=message):
        chosen.fit(experiment.train_cache, experiment.detector, fisher=given)


def test_blocks_of_another_detector_are_refused(experiment, fisher):
    other = replace_biases(experiment.detector, 0.5)
    with pytest.raises(InvalidArgumentError, match="measured under the gate of another detector"):
        policy().fit(experiment.train_cache, other, fisher=fisher)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ridge": 0}, InvalidArgumentError, "`ridge` must lie strictly above 0; got 0"),
        ({"n_draws": 0}, InvalidArgumentError, "`n_draws` must be a whole number of at least 1"),
        ({"gate": "heads"}, InvalidArgumentError, "`gate` must be one of"),
        ({}, InvalidArgumentError, "`gate` 'head' needs a detector"),
        ({"gate": "none", "data": (1,)}, DataError, "has no desirable statements"),
        ({"data": ()}, DataError, "has no statements: the Fisher information is measured on them"),
    ],
)
def test_measurements_are_refused_before_any_work(model, texts, options, error, message):
    options = dict(options)
    labels = options.pop("data", (0, 1))
    data = replace(texts, atoms=tuple(s for s in texts.atoms if s.label in labels), contexts=None)
    with pytest.raises(error, match=message):
        rl.fisher_blocks(model, data, **options)


def test_layer_by_layer_it_is_refused(model, experiment):
    with pytest.raises(InvalidArgumentError, match="measured on the unsteered model, and `fit_sequential` steers it"):
        policy().fit_sequential(model, experiment.train, experiment.detector)


def test_one_call_measures_by_itself(model, facts):
    fitted = rl.fit(model, replace(facts.head(120), contexts=None), rl.RadiantPolicy(geometry="output", heads="L1H5"))
    assert fitted.steering.meta["fisher"]["gate"] == "head"
    assert fitted.steering.certificates[0].method == "output"


def test_a_study_measures_by_itself(facts):
    arm = studies.Arm("output", options={"geometry": "output", "gate": "none"}, heads="L1H5")
    study = rl.Study("output", [arm], data=replace(facts.head(60), contexts=None), n_samples=1, max_new_tokens=2)
    # The controls too: random directions, and a fit on shuffled labels.
    assert "shuffled" in study.run().to_markdown()
