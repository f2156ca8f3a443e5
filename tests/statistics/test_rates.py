"""Error rates of flags."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens.statistics.rates import ErrorRates, error_rates

quick = settings(deadline=None, max_examples=40)


def test_error_rates_of_a_hand_made_example():
    flags = torch.tensor([True, False, False, False, True, False])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert error_rates(flags, labels) == ErrorRates(torch.tensor(0.25), torch.tensor(0.5))


def test_risk_weighs_misses_only():
    rates = ErrorRates(torch.tensor(0.25), torch.tensor(0.5))
    assert float(rates.risk(1.0)) == 0.75
    assert float(rates.risk(3.0)) == 1.75


@quick
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_error_rates_equal_the_naive_ones(seed, n):
    rng = np.random.default_rng(seed)
    flags, labels = rng.random((n, 2, 3)) < 0.4, np.r_[0, 1, rng.integers(0, 2, n - 2)]
    fpr, fnr = error_rates(torch.tensor(flags), torch.tensor(labels))
    np.testing.assert_allclose(fpr, flags[labels == 0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(fnr, 1 - flags[labels == 1].mean(0), rtol=1e-12, atol=1e-15)
