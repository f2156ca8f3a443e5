"""A thousand steered generations in one process: nothing grows, nothing slows down, nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.soak import slope, soak
from plain_models import random_steering


@pytest.mark.slow
def test_a_thousand_generations(model):
    steering = random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    found = soak(model, steering, 1000)
    # A leak of one trace, the smallest thing a generation makes, is some 20 kB.
    assert found.growth < 2_000
    assert found.slowdown < 0.3
    assert found.same_text and found.other_text


def test_a_leak_would_be_seen():
    flat, leaking = np.full(1000, 1e9), 1e9 + 20_000.0 * np.arange(1000)
    assert slope(flat) == pytest.approx(0, abs=1e-3)
    assert slope(leaking) == pytest.approx(20_000)
