"""Training and validation caches of one signal, and a detector fitted on them."""

from __future__ import annotations

import pytest

from radiant_lens import RiskAwareDetector


@pytest.fixture
def train(gaussian_cache):
    return gaussian_cache(120, seed=0)


@pytest.fixture
def validation(gaussian_cache):
    return gaussian_cache(160, seed=1)


@pytest.fixture
def fitted(train, validation):
    return RiskAwareDetector().fit(train, validation)
