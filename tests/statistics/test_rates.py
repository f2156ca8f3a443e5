"""Error rates, exact bounds, and the intervals and tests that count groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radiant_lens.statistics.bounds import (
    binomial_upper,
    bootstrap_ratio,
    clopper_pearson,
    group_sums,
    groups_needed,
    one_per_group,
)
from radiant_lens.statistics.rates import ErrorRates, benjamini_hochberg, detection_p_values, error_rates

quick = settings(deadline=None, max_examples=40)


def clustered_flags(n_groups, n_heads, *, signal, seed, n_tokens=6, paired=True):
    """Flags of tokens that share most of their noise within a text; each group has a text of each class, or of one."""
    rng = np.random.default_rng(seed)
    n_texts = 2 * n_groups if paired else n_groups
    labels = np.repeat(np.arange(n_texts) % 2, n_tokens)
    groups = np.repeat(np.arange(n_texts) // (2 if paired else 1), n_tokens)
    shared = np.repeat(rng.normal(size=(n_texts, n_heads)), n_tokens, axis=0)
    score = shared + 0.3 * rng.normal(size=shared.shape) + signal * (labels[:, None] - 0.5)
    return torch.tensor(score >= 0), torch.tensor(labels), torch.tensor(groups)


# Error rates


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


# Many tests at once


def naive_benjamini_hochberg(p, rate):
    order, m = np.argsort(p), len(p)
    passing = [i for i in range(m) if p[order[i]] <= rate * (i + 1) / m]
    rejected = np.zeros(m, dtype=bool)
    rejected[order[: passing[-1] + 1 if passing else 0]] = True
    return rejected


@quick
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.01, 0.05, 0.2]))
def test_benjamini_hochberg_equals_the_naive_one(seed, m, rate):
    p = np.random.default_rng(seed).random(m) ** 4
    ours = benjamini_hochberg(torch.tensor(p), rate).numpy()
    np.testing.assert_array_equal(ours, naive_benjamini_hochberg(p, rate))


def test_benjamini_hochberg_keeps_the_shape_and_rejects_more_than_bonferroni():
    p = torch.tensor([[0.001, 0.02], [0.03, 0.9]])
    assert benjamini_hochberg(p).tolist() == [[True, True], [True, False]]
    assert (p < 0.05 / 4).tolist() == [[True, False], [False, False]]


def test_benjamini_hochberg_holds_its_rate_when_all_hypotheses_are_true():
    p = torch.tensor(np.random.default_rng(0).random((400, 20)))
    assert np.mean([bool(benjamini_hochberg(row).any()) for row in p]) < 0.08


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


# Is a head better than flagging all or none?


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n_groups", [8, 30, 100])
def test_chance_heads_are_rejected_no_more_often_than_promised(n_groups, paired):
    flags, labels, groups = clustered_flags(n_groups, 800, signal=0.0, seed=n_groups, paired=paired)
    assert float((detection_p_values(flags, labels, groups, 1.0) < 0.05).double().mean()) < 0.08


@pytest.mark.parametrize(("fnr_weight", "fpr", "fnr"), [(0.5, 0.2, 0.6), (1.0, 0.3, 0.7), (3.0, 0.4, 0.2)])
def test_a_risk_just_that_of_the_trivial_detectors_is_rejected_at_the_nominal_rate(fnr_weight, fpr, fnr):
    assert fpr + fnr_weight * fnr == pytest.approx(min(1, fnr_weight))
    rng, labels = np.random.default_rng(5), np.arange(160) % 2
    score = rng.normal(size=(160, 4000)) + rng.normal(size=(80, 4000)).repeat(2, axis=0)
    level = np.where(labels == 1, stats.norm.isf(1 - fnr), stats.norm.isf(fpr)) * np.sqrt(2)
    flags, groups = torch.tensor(score >= level[:, None]), torch.arange(160) // 2
    rejected = (detection_p_values(flags, torch.tensor(labels), groups, fnr_weight) < 0.05).double().mean()
    assert 0.03 < float(rejected) < 0.08


def test_counting_tokens_instead_of_groups_would_reject_too_often():
    flags, labels, _ = clustered_flags(30, 800, signal=0.0, seed=30)
    tokens = torch.arange(len(labels))
    assert float((detection_p_values(flags, labels, tokens, 1.0) < 0.05).double().mean()) > 0.15


def test_heads_with_signal_are_found():
    flags, labels, groups = clustered_flags(60, 200, signal=1.0, seed=1)
    assert float((detection_p_values(flags, labels, groups, 1.0) < 0.05).double().mean()) > 0.9


@pytest.mark.parametrize("fnr_weight", [0.3, 1.0, 3.0])
def test_heads_that_flag_all_or_none_have_p_one(fnr_weight):
    _, labels, groups = clustered_flags(20, 1, signal=0.0, seed=0)
    flags = torch.stack([torch.ones_like(labels).bool(), torch.zeros_like(labels).bool()], dim=1)
    assert detection_p_values(flags, labels, groups, fnr_weight).tolist() == [1.0, 1.0]


def test_heads_worse_than_the_trivial_ones_have_p_one():
    _, labels, groups = clustered_flags(20, 1, signal=0.0, seed=0)
    assert float(detection_p_values(labels == 0, labels, groups, 1.0)) == 1.0


@pytest.mark.parametrize(("n_groups", "certain"), [(2, False), (3, False), (60, True)])
def test_a_perfect_score_is_certain_only_with_many_groups(n_groups, certain):
    labels, groups = torch.tensor([0, 1] * n_groups), torch.arange(2 * n_groups) // 2
    p = float(detection_p_values(labels == 1, labels, groups, 1.0))
    assert 0 < p < 1
    assert (p < 0.001) is certain
    assert (p < 0.05) is certain


def test_a_greater_gain_has_a_smaller_p_value():
    labels, groups = torch.tensor([0, 1] * 40), torch.arange(80) // 2
    wrong = [torch.arange(80) < n for n in (2, 10, 30)]
    p = [float(detection_p_values((labels == 1) ^ w, labels, groups, 1.0)) for w in wrong]
    assert p == sorted(p)
    assert len(set(p)) == 3
