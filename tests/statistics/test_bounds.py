"""Exact bounds, and intervals that count groups; coverage is tested by sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.statistics.bounds import (
    binomial_upper,
    bootstrap_ratio,
    clopper_pearson,
    group_sums,
    groups_needed,
    one_per_group,
    share_interval,
)

quick = settings(deadline=None, max_examples=40)


# Exact bounds


@quick
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_clopper_pearson_equals_scipy(k_of_n, confidence):
    k, n = k_of_n
    ours, theirs = (
        clopper_pearson(k, n, confidence=confidence),
        stats.binomtest(k, n).proportion_ci(confidence, "exact"),
    )
    np.testing.assert_allclose(ours, (k / n, theirs.low, theirs.high), rtol=1e-6, atol=1e-12)


@quick
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_binomial_upper_equals_the_one_sided_bound_of_scipy(k_of_n, confidence):
    k, n = k_of_n
    theirs = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, "exact").high
    assert binomial_upper(k, n, confidence=confidence) == pytest.approx(theirs, rel=1e-6)


def test_one_sided_bound_is_tighter_than_the_interval():
    assert binomial_upper(3, 50) < clopper_pearson(3, 50).high


def test_nothing_is_known_without_observations():
    interval = clopper_pearson(0, 0)
    assert np.isnan(interval.value)
    assert (interval.low, interval.high, binomial_upper(0, 0)) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.37, 0.8])
def test_exact_bounds_cover_as_often_as_they_promise(p):
    n, k = 40, np.arange(41)
    chance = stats.binom.pmf(k, n, p)
    covered = [clopper_pearson(int(i), n).low <= p <= clopper_pearson(int(i), n).high for i in k]
    assert chance @ covered >= 0.95
    assert chance @ [p <= binomial_upper(int(i), n) for i in k] >= 0.95


def test_the_normal_interval_covers_less_than_it_promises():
    n, p, k = 40, 0.02, np.arange(41)
    half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
    assert stats.binom.pmf(k, n, p) @ (np.abs(k / n - p) <= half) < 0.9


def test_exact_bound_holds_for_sampled_counts():
    counts = np.random.default_rng(0).binomial(60, 0.05, size=2000)
    bounds = {int(k): binomial_upper(int(k), 60) for k in np.unique(counts)}
    assert 0.94 <= np.mean([bounds[k] >= 0.05 for k in counts.tolist()]) < 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
def test_groups_needed_is_the_least_number_without_event(share, confidence):
    n = groups_needed(share, confidence=confidence)
    assert binomial_upper(0, n, confidence=confidence) <= share
    assert binomial_upper(0, n - 1, confidence=confidence) > share


# Groups


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 100))
def test_one_per_group_takes_one_of_each_in_order(groups, seed):
    groups = torch.tensor(groups)
    picked = one_per_group(groups, seed=seed)
    assert groups[picked].tolist() == groups.unique().tolist()
    assert picked.tolist() == one_per_group(groups, seed=seed).tolist()


def test_one_per_group_depends_on_the_seed_and_reaches_every_example():
    groups = torch.arange(60) // 3
    picks = [one_per_group(groups, seed=seed) for seed in range(40)]
    assert picks[0].tolist() != picks[1].tolist()
    assert set(torch.cat(picks).tolist()) == set(range(60))


def test_group_sums_of_a_hand_made_example():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert group_sums(values, torch.tensor([7, 2, 7])).tolist() == [[3.0, 4.0], [6.0, 8.0]]


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_group_sums_add_up_to_the_total(groups):
    values = torch.arange(len(groups), dtype=torch.float64)
    assert float(group_sums(values, torch.tensor(groups)).sum()) == float(values.sum())


def clustered_shares(rng, n_groups=60):
    sizes = rng.integers(1, 12, n_groups)
    return rng.binomial(sizes, rng.beta(0.5, 0.5, n_groups)).astype(float), sizes.astype(float)


def test_bootstrap_interval_covers_clustered_shares():
    rng = np.random.default_rng(0)
    covered, naive = [], []
    for seed in range(300):
        top, bottom = clustered_shares(rng)
        _, low, high = bootstrap_ratio(torch.tensor(top), torch.tensor(bottom), n_resamples=400, seed=seed)
        exact = clopper_pearson(int(top.sum()), int(bottom.sum()))
        covered.append(low <= 0.5 <= high)
        naive.append(exact.low <= 0.5 <= exact.high)
    assert 0.91 <= np.mean(covered) <= 0.985
    assert np.mean(naive) < 0.85  # counting tokens as independent promises too much


def test_bootstrap_is_the_ratio_of_sums_and_follows_its_seed():
    top, bottom = (torch.tensor(a) for a in clustered_shares(np.random.default_rng(1)))
    one, same, other = (bootstrap_ratio(top, bottom, seed=seed) for seed in (0, 0, 1))
    assert one.value == pytest.approx(float(top.sum() / bottom.sum()))
    assert one == same
    assert one != other


def test_bootstrap_narrows_with_less_confidence():
    top, bottom = (torch.tensor(a) for a in clustered_shares(np.random.default_rng(1)))
    wide, narrow = (bootstrap_ratio(top, bottom, confidence=c) for c in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_bootstrap_of_nothing_is_not_a_number():
    assert np.isnan(bootstrap_ratio(torch.zeros(3), torch.zeros(3))).all()


# Intervals of shares


def drawn_shares(rng, share, n_groups, *, correlation, log_normal):
    """Events and sizes of groups whose own shares are beta distributed; with correlation 1 they are 0 or 1."""
    sizes = np.maximum(1, np.round(8 * rng.lognormal(-0.5, 1, n_groups))) if log_normal else np.full(n_groups, 4.0)
    within = 1 / correlation - 1
    shares = rng.beta(share * within, (1 - share) * within, n_groups) if within else rng.random(n_groups) < share
    return torch.tensor(rng.binomial(sizes.astype(int), shares).astype(float)), torch.tensor(sizes)


def coverage(interval, share, n_groups, *, correlation, log_normal, n_draws, seed=0):
    rng, n_covered = np.random.default_rng(seed), 0
    for _ in range(n_draws):
        top, bottom = drawn_shares(rng, share, n_groups, correlation=correlation, log_normal=log_normal)
        _, low, high = interval(top, bottom, n_resamples=400)
        n_covered += low <= share <= high
    return n_covered / n_draws


@pytest.mark.parametrize(
    ("share", "n_groups", "correlation", "log_normal"),
    [
        (0.01, 20, 1.0, False),
        (0.03, 65, 1.0, True),
        (0.5, 65, 0.3, False),
        (0.97, 65, 0.3, True),
        (0.995, 400, 1.0, False),
    ],
)
def test_share_intervals_cover_as_promised(share, n_groups, correlation, log_normal):
    options = {"correlation": correlation, "log_normal": log_normal, "n_draws": 150}
    covered = coverage(share_interval, share, n_groups, **options)
    # Three standard errors of 150 draws below .95. Near the ends the interval is conservative, in the middle it is not.
    assert covered >= 0.90
    assert share != 0.5 or covered <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("log_normal", [False, True], ids=["even", "log-normal"])
@pytest.mark.parametrize("correlation", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("n_groups", [20, 65, 400])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.5, 0.97, 0.995])
def test_share_intervals_cover_as_promised_over_all_designs(share, n_groups, correlation, log_normal):
    options = {"correlation": correlation, "log_normal": log_normal, "n_draws": 1000}
    # Two standard errors of 1,000 draws below .93.
    assert coverage(share_interval, share, n_groups, **options) >= 0.916


@pytest.mark.parametrize("share", [0.01, 0.03, 0.97])
def test_a_percentile_bootstrap_covers_less_near_the_ends(share):
    assert coverage(bootstrap_ratio, share, 20, correlation=1.0, log_normal=False, n_draws=100) < 0.7


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_groups_that_all_agree_have_an_interval_with_width(value):
    bottom = torch.full((20,), 4.0)
    agreed = share_interval(value * bottom, bottom)
    exact = clopper_pearson(20 * value, 20)
    assert agreed == pytest.approx(exact)
    assert bootstrap_ratio(value * bottom, bottom)[1:] == (value, value)
    assert agreed.high - agreed.low > 0.1


def test_a_share_in_the_middle_has_about_the_bootstrap_interval():
    top, bottom = drawn_shares(np.random.default_rng(3), 0.5, 30, correlation=0.3, log_normal=False)
    ours, bootstrap = share_interval(top, bottom), bootstrap_ratio(top, bottom)
    assert ours == pytest.approx(bootstrap, abs=0.02)
    assert ours.low <= bootstrap.low and ours.high - ours.low > bootstrap.high - bootstrap.low


def test_one_group_tells_nearly_nothing_and_no_group_nothing():
    one = share_interval(torch.tensor([3.0]), torch.tensor([4.0]))
    assert (one.value, one.high - one.low > 0.9) == (0.75, True)
    assert np.isnan(share_interval(torch.zeros(2), torch.zeros(2))).all()
    assert np.isnan(share_interval(torch.tensor([float("nan"), 1.0]), torch.ones(2))).all()


def test_groups_without_examples_do_not_count():
    top, bottom = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, 2.0, 2.0])
    padded = share_interval(torch.cat([top, torch.zeros(5)]), torch.cat([bottom, torch.zeros(5)]))
    assert padded == share_interval(top, bottom)


def test_share_intervals_of_complements_mirror_each_other():
    top, bottom = drawn_shares(np.random.default_rng(1), 0.05, 50, correlation=0.5, log_normal=True)
    few, many = share_interval(top, bottom), share_interval(bottom - top, bottom)
    assert (1 - many.high, 1 - many.value, 1 - many.low) == pytest.approx((few.low, few.value, few.high))
    assert few.value != many.value


@pytest.mark.parametrize("top", [[-1.0, 1.0], [1.0, 3.0]])
def test_events_must_lie_between_zero_and_the_examples(top):
    with pytest.raises(InvalidArgumentError, match="`numerators` of a share must lie between 0 and their denominators"):
        share_interval(torch.tensor(top), torch.full((2,), 2.0))
