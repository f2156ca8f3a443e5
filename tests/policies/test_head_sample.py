"""Samples of policies: moments of the chosen heads, shrunk where examples are few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import empirical_covariance, ledoit_wolf

import radiant_lens as rl
from radiant_lens.policies.head_sample import prepare
from radiant_lens.policies.heads import choose_heads
from radiant_lens.sites import HeadSite
from radiant_lens.solvers.procrustes import solve_procrustes
from radiant_lens.solvers.transport import solve_transport


def sample(gaussian_cache, n_groups):
    cache = gaussian_cache(n_groups, n_layers=1, n_heads=2)
    detector = rl.RiskAwareDetector(loss="lda").fit(gaussian_cache(100, n_layers=1, n_heads=2, seed=1))
    return cache, prepare(cache, detector, lambda _: (HeadSite(0, 1),), "none")


def ridged(covariance: np.ndarray) -> torch.Tensor:
    return torch.tensor(covariance + 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))


@pytest.mark.parametrize(("n_groups", "few"), [(10, True), (30, True), (60, False)])
def test_fewer_than_ten_examples_a_dimension_are_shrunk_as_scikit_learn_does(gaussian_cache, n_groups, few):
    """Each group has one example of each class: 10, 30 and 60 a class of 4 dimensions, twice as many in all."""
    cache, drawn = sample(gaussian_cache, n_groups)
    parts = [cache.z[cache.labels == label, 0, 1].double().numpy() for label in (0, 1)]
    for label, part in enumerate(parts):
        expected = ridged(ledoit_wolf(part)[0] if few else empirical_covariance(part))
        torch.testing.assert_close(drawn.class_moments(bool(label)).covariance[0], expected, rtol=1e-6, atol=1e-9)
        assert not np.allclose(ledoit_wolf(part)[0], empirical_covariance(part), rtol=1e-4)
    around = np.concatenate([part - part.mean(0) for part in parts])
    shrunk = ridged(ledoit_wolf(around, assume_centered=True)[0] if len(around) < 40 else empirical_covariance(around))
    torch.testing.assert_close(drawn.within_class_covariance()[0], shrunk, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_groups", [15, 60])
@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_a_policy_solves_for_the_moments_of_its_classes(gaussian_cache, geometry, n_groups):
    """With gate "none": those of all activations, the floor those of the desirable ones, whose spread is another."""
    cache, _ = sample(gaussian_cache, n_groups)
    cache.z[cache.labels == 0] @= torch.tensor([[2.0, 0.3, 0, 0], [0, 1, 0.5, 0], [0, 0, 1.5, 0.2], [0.4, 0, 0, 1]])
    detector = rl.RiskAwareDetector(loss="lda").fit(gaussian_cache(100, n_layers=1, n_heads=2, seed=1))
    theta, bias = detector.weights_[0, 1].double(), detector.biases_[0, 1].double()
    z = cache.z[:, 0, 1].double()

    def covariance(rows: torch.Tensor) -> torch.Tensor:
        return ridged(ledoit_wolf(rows.numpy())[0] if len(rows) < 40 else empirical_covariance(rows.numpy()))

    desirable = covariance(z[cache.labels == 0])
    spread = (theta @ desirable @ theta).sqrt()
    matrices = []
    for floor in ("desirable", None):
        policy = rl.RadiantPolicy(gamma=0.01, geometry=geometry, floor=floor, gate="none", heads=[(0, 1)])
        steering = policy.fit(cache, detector)
        problem = (z.mean(0), covariance(z), theta, bias if floor else bias + 1e-3 * spread, policy.kappa)
        if geometry == "procrustes":
            solution = solve_procrustes(*problem, floor=desirable if floor else None)
            matrix, shift = solution.G, solution.g
        else:
            metric = prepare(cache, detector, lambda _: (HeadSite(0, 1),), "none").within_class_covariance()[0]
            solution = solve_transport(
                *problem, metric=metric if geometry == "mahalanobis" else None, floor_std=spread if floor else None
            )
            gain = solution.scale - 1
            matrix = torch.eye(4) + gain * torch.outer(solution.direction, solution.theta)
            shift = solution.direction * (gain * solution.bias + solution.offset)
        (edit,), (certificate,) = steering.maps().values(), steering.certificates
        torch.testing.assert_close(edit.G, matrix, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(edit.g, shift, rtol=1e-6, atol=1e-6)
        assert (certificate.method, certificate.n_flagged) == (geometry, 2 * n_groups)
        assert certificate.shrunk == (2 * n_groups < 40)
        assert certificate.ridge == pytest.approx(1e-6 * float(covariance(z).diagonal().mean()), rel=1e-4)
        matrices.append(edit.G)
    assert not torch.allclose(*matrices, atol=1e-2)


@pytest.mark.parametrize("gate", ["head", "vote"])
def test_a_head_that_is_never_gated_gets_the_identity(gaussian_cache, gate):
    cache = gaussian_cache(100, n_layers=2, n_heads=2)
    detector = rl.RiskAwareDetector(loss="lda").fit(cache)
    if gate == "head":
        detector.biases_[0, 1] = -1e6
    else:
        detector.vote_thresholds_[0], detector.vote_thresholds_[1] = 3, 1
    steering = rl.RadiantPolicy(gate=gate, heads=[(0, 1), (1, 1)]).fit(cache, detector)
    silent, other = steering.certificates
    assert (silent.method, silent.value, silent.gap, silent.n_flagged, silent.shrunk) == ("identity", 0, 0, 0, True)
    assert (other.method, other.n_flagged > 40, other.shrunk) == ("mahalanobis", True, False)
    assert torch.equal(steering.maps()[rl.HeadSite(0, 1)].G, torch.eye(4).double())


def test_ties_in_risk_go_to_the_first_heads_and_layers(gaussian_cache):
    cache = gaussian_cache(100, n_layers=40, n_heads=2)
    detector = rl.RiskAwareDetector(loss="lda").fit(cache)
    detector.head_risk_, detector.layer_risk_ = torch.full((40, 2), 0.5), torch.full((40,), 0.5)
    assert choose_heads(detector, 30, 1) == tuple(divmod(i, 2) for i in range(30))
    assert choose_heads(detector, "layer", 20) == tuple((layer, head) for layer in range(20) for head in range(2))


@pytest.mark.parametrize("name", ["texts", "text_index", "positions", "labels"])
def test_the_recorded_hash_of_the_data_depends_on_all_of_it(gaussian_cache, name):
    cache = gaussian_cache(20)
    detector = rl.RiskAwareDetector(loss="lda").fit(gaussian_cache(40, seed=1))
    value = getattr(cache, name)
    other = ("another", *value[1:]) if name == "texts" else 1 - value if name == "labels" else value.clamp_max(0) + 1

    def recorded(cache):
        return rl.MeanShiftPolicy(heads=[(0, 0)]).fit(cache, detector).meta["data_hash"]

    assert recorded(replace(cache, **{name: other})) != recorded(cache)
    # Activations may differ in their last bits between machines: they take no part.
    assert recorded(replace(cache, z=cache.z + 1)) == recorded(cache)
