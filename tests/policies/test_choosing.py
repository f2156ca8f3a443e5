"""What policies learn from: moments of the chosen heads, shrunk where examples are few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import empirical_covariance, ledoit_wolf

import radiant_lens as rl
from radiant_lens.policies.choosing import _data_hash, choose_heads, prepare


def sample(gaussian_cache, n_groups):
    cache = gaussian_cache(n_groups, n_layers=1, n_heads=2)
    detector = rl.RiskAwareDetector(loss="lda").fit(gaussian_cache(100, n_layers=1, n_heads=2, seed=1))
    return cache, prepare(cache, detector, [(0, 1)], 1, "none")


def ridged(covariance: np.ndarray) -> torch.Tensor:
    return torch.tensor(covariance + 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))


@pytest.mark.parametrize(("n_groups", "few"), [(10, True), (30, True), (60, False)])
def test_fewer_than_ten_examples_a_dimension_are_shrunk_as_scikit_learn_does(gaussian_cache, n_groups, few):
    """Each group has one example of each class: 10, 30 and 60 a class of 4 dimensions, twice as many in all."""
    cache, made = sample(gaussian_cache, n_groups)
    parts = [cache.z[cache.labels == label, 0, 1].double().numpy() for label in (0, 1)]
    for label, part in enumerate(parts):
        expected = ridged(ledoit_wolf(part)[0] if few else empirical_covariance(part))
        torch.testing.assert_close(made.class_moments(bool(label)).covariance[0], expected, rtol=1e-6, atol=1e-9)
        assert not np.allclose(ledoit_wolf(part)[0], empirical_covariance(part), rtol=1e-4)
    around = np.concatenate([part - part.mean(0) for part in parts])
    shrunk = ridged(ledoit_wolf(around, assume_centered=True)[0] if len(around) < 40 else empirical_covariance(around))
    torch.testing.assert_close(made.within_class_covariance()[0], shrunk, rtol=1e-6, atol=1e-9)


def test_among_equals_the_first_heads_and_layers_are_chosen(gaussian_cache):
    cache = gaussian_cache(100, n_layers=40, n_heads=2)
    detector = rl.RiskAwareDetector(loss="lda").fit(cache)
    detector.head_risk_, detector.layer_risk_ = torch.full((40, 2), 0.5), torch.full((40,), 0.5)
    assert choose_heads(detector, 30, 1) == tuple(divmod(i, 2) for i in range(30))
    assert choose_heads(detector, "layer", 20) == tuple((layer, head) for layer in range(20) for head in range(2))


@pytest.mark.parametrize("name", ["texts", "text_index", "positions", "labels"])
def test_the_hash_of_the_data_depends_on_all_of_it(gaussian_cache, name):
    cache = gaussian_cache(20)
    value = getattr(cache, name)
    other = ("another", *value[1:]) if name == "texts" else 1 - value if name == "labels" else value.clamp_max(0) + 1
    assert _data_hash(replace(cache, **{name: other})) != _data_hash(cache)
