"""Certificates of a steering are those of the maps that it stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import ConvergenceError
from radiant_lens.policies import radiant
from radiant_lens.policies.head_sample import prepare
from radiant_lens.sites import HeadSite

GEOMETRIES = ("mahalanobis", "wasserstein", "procrustes")


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    cache = gaussian_cache(500, n_layers=1, n_heads=2)
    return cache, rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(200, n_layers=1, n_heads=2, seed=1))


def policy(geometry, **options):
    return rl.RadiantPolicy(gamma=0.05, geometry=geometry, heads=[(0, 0), (0, 1)], **options)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("floor", ["desirable", None])
def test_slack_and_value_are_those_of_the_stored_map(fitted, geometry, floor):
    """Against the definitions, in NumPy's order: moments of the rows that the gate passes, moved by `G` and `g`."""
    cache, detector = fitted
    steering = policy(geometry, floor=floor).fit(cache, detector)
    sample = prepare(cache, detector, lambda _: (HeadSite(0, 0), HeadSite(0, 1)), "head")
    metrics = sample.within_class_covariance() if geometry == "mahalanobis" else torch.eye(4).double().expand(2, 4, 4)
    deviations = (sample.weights @ sample.class_moments(undesirable=False).covariance[1] @ sample.weights.T).diagonal()
    for i, edit in enumerate(steering.maps().values()):
        z = sample.rows[:][sample.gated[:, i], i].double()
        covariance = torch.cov(z.T, correction=0)
        covariance = covariance + 1e-6 * covariance.trace() / 4 * torch.eye(4)
        weight = sample.weights[i]
        spread = (weight @ sample.class_moments(undesirable=False).covariance[i] @ weight).sqrt()
        bias = sample.biases[i] + (0 if floor else 1e-3 * spread)
        mean, image = edit.G @ z.mean(0) + edit.g, edit.G @ covariance @ edit.G.T
        slack = -(bias + weight @ mean + edit.certificate.margin * (weight @ image @ weight).clamp_min(0).sqrt())
        assert edit.certificate.slack == pytest.approx(float(slack), abs=1e-6)
        if geometry != "procrustes":
            change = edit.G - torch.eye(4)
            shift = mean - z.mean(0)
            inverse = torch.linalg.inv(metrics[i])
            cost = (inverse @ change @ covariance @ change.T).trace() + shift @ inverse @ shift
            assert edit.certificate.value == pytest.approx(float(cost), rel=1e-6)
    assert deviations.min() > 0


def shorter(maps):
    """Scale all displacements of one head by a thousandth less."""
    factor = torch.tensor([1.0, 0.999], dtype=torch.float64)
    name = "write" if isinstance(maps, radiant.RankOneMaps) else "shift"
    value = getattr(maps, name)
    return replace(maps, **{name: value * factor.view(-1, *[1] * (value.ndim - 1))})


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_map_that_was_changed_before_it_was_stored_is_refused_with_its_head(fitted, geometry, monkeypatch):
    silenced = radiant._silenced
    monkeypatch.setattr(radiant, "_silenced", lambda maps, empty: shorter(silenced(maps, empty)))
    with pytest.raises(ConvergenceError, match=r"^L0H1: The \w+ solver failed on 1 of 2 problems"):
        policy(geometry).fit(*fitted)


def test_a_wrong_conversion_of_the_transport_is_refused(fitted, monkeypatch):
    rank_one = radiant.rank_one
    monkeypatch.setattr(radiant, "rank_one", lambda solution: replace(rank_one(solution), read=solution.theta))
    with pytest.raises(ConvergenceError, match="^L0H0, L0H1: The transport solver failed"):
        policy("mahalanobis").fit(*fitted)


def test_a_failed_head_is_named_among_those_with_activations(fitted, monkeypatch):
    """The first head flags nothing: it takes no part, and the second must not be reported in its place."""
    cache, detector = fitted
    shy = rl.RiskAwareDetector()
    shy.__dict__.update(detector.__dict__)
    shy.biases_ = detector.biases_.clone()
    shy.biases_[0, 0] = -1e6
    assert [c.method for c in policy("wasserstein").fit(cache, shy).certificates] == ["identity", "wasserstein"]
    silenced = radiant._silenced
    monkeypatch.setattr(radiant, "_silenced", lambda maps, empty: shorter(silenced(maps, empty)))
    with pytest.raises(ConvergenceError, match="^L0H1: The transport solver failed on 1 of 1"):
        policy("wasserstein").fit(cache, shy)
