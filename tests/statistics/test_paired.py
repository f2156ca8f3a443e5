"""Paired differences: hand-computed and SciPy's values, coverage and level by sampling, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.statistics.bounds import bootstrap_ratio
from radiant_lens.statistics.paired import GroupSums, paired_difference

quick = settings(deadline=None, max_examples=30)


def means(values) -> GroupSums:
    values = torch.as_tensor(values, dtype=torch.float64)
    return GroupSums(values, torch.ones_like(values))


def uneven(n_groups: int, seed: int, rate: float) -> GroupSums:
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 9, n_groups)
    return GroupSums(torch.tensor(rng.binomial(n, rate)), torch.tensor(n))


def test_a_difference_by_hand():
    # Differences 3, 2, 1: of the 8 flips two reach an absolute sum of 6, and four one of 4.
    assert paired_difference(means([3, 2, 1]), means([0, 0, 0])).p_value == 2 / 8
    assert paired_difference(means([3, 2, -1]), means([0, 0, 0])).p_value == 4 / 8
    assert paired_difference(means([3, 2, 1]), means([0, 0, 0])).value == 2


@quick
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=10), st.integers(0, 99))
def test_the_exact_test_agrees_with_scipy(differences, seed):
    baseline = np.random.default_rng(seed).normal(size=len(differences))
    ours = paired_difference(means(baseline + differences), means(baseline), n_resamples=10)
    # An alternative with halves of the null's mass on both sides would double the smaller tail: so does SciPy.
    scipy = stats.permutation_test(
        (np.array(differences, dtype=float),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert ours.p_value == pytest.approx(scipy.pvalue)
    assert ours.value == pytest.approx(np.mean(differences))


def test_many_groups_are_drawn_and_agree_with_scipy_and_the_t_test():
    differences = np.random.default_rng(0).normal(0.15, 1, 200)
    ours = paired_difference(means(differences), means(np.zeros(200)))
    scipy = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert 0.005 < scipy.pvalue < 0.2
    assert ours.p_value == pytest.approx(scipy.pvalue, abs=0.012)
    assert ours.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.012)
    assert ours == paired_difference(means(differences), means(np.zeros(200)))
    assert ours.p_value != paired_difference(means(differences), means(np.zeros(200)), seed=1).p_value


def test_drawn_p_values_are_never_zero():
    certain = paired_difference(means(torch.ones(40)), means(torch.zeros(40)), n_permutations=99)
    assert certain.p_value == 1 / 100
    assert paired_difference(means(torch.ones(40)), means(torch.ones(40)), n_permutations=99) == (0, 0, 0, 1)


def test_uneven_denominators_exchange_whole_groups():
    one, other = uneven(8, 0, 0.7), uneven(8, 1, 0.3)

    def difference(first, second):
        return sum(n for n, _ in first) / sum(d for _, d in first) - sum(n for n, _ in second) / sum(
            d for _, d in second
        )

    pairs = list(zip(zip(*map(torch.Tensor.tolist, one)), zip(*map(torch.Tensor.tolist, other))))
    observed = difference(*zip(*pairs))
    extreme = 0
    for choice in itertools.product([False, True], repeat=8):
        exchanged = [pair[::-1] if swap else pair for pair, swap in zip(pairs, choice)]
        extreme += abs(difference(*zip(*exchanged))) >= abs(observed) - 1e-9
    result = paired_difference(one, other)
    assert result.value == pytest.approx(observed)
    assert result.p_value == extreme / 2**8
    assert 0 < result.p_value < 1


def test_the_interval_is_that_of_the_differences_where_denominators_are_equal():
    n = torch.tensor([1.0, 2, 3, 4, 5, 2, 2])
    a, b = torch.tensor([1.0, 1, 3, 2, 5, 0, 1]), torch.tensor([0.0, 2, 1, 2, 3, 0, 2])
    result = paired_difference(GroupSums(a, n), GroupSums(b, n))
    assert result[:3] == pytest.approx(bootstrap_ratio(a - b, n))
    unpaired = paired_difference(GroupSums(a.flip(0), n.flip(0)), GroupSums(b, n))
    assert unpaired[:3] != pytest.approx(bootstrap_ratio(a - b, n))


def test_the_interval_agrees_with_scipy():
    one, other = uneven(60, 0, 0.7), uneven(60, 1, 0.4)

    def difference(a, b, c, d):
        return a.sum(-1) / b.sum(-1) - c.sum(-1) / d.sum(-1)

    scipy = stats.bootstrap(
        [t.numpy() for t in (*one, *other)], difference, paired=True, vectorized=False, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    result = paired_difference(one, other)
    assert (result.low, result.high) == pytest.approx(tuple(scipy), abs=0.012)
    assert result.high - result.low > 0.05


def test_a_link_is_applied_to_both_ratios():
    result = paired_difference(means([1.0, 1, 1]), means([0.0, 0, 0]), link=np.exp)
    assert result.value == pytest.approx(math.e - 1)
    assert (result.low, result.high) == pytest.approx((math.e - 1, math.e - 1))


def test_coverage_and_level():
    """On 200 made-up studies of 40 groups: the interval holds the truth, and the test rejects, as often as said."""
    rng = np.random.default_rng(0)
    covered = rejected = seen = 0
    for seed in range(200):
        baseline = rng.normal(size=40)
        noise = rng.normal(size=40)
        options = {"seed": seed, "n_resamples": 400, "n_permutations": 199}
        shifted = paired_difference(means(baseline + noise + 0.5), means(baseline), **options)
        covered += shifted.low <= 0.5 <= shifted.high
        seen += shifted.p_value <= 0.05
        rejected += paired_difference(means(baseline + noise), means(baseline), **options).p_value <= 0.05
    assert 0.90 <= covered / 200 <= 0.985
    assert stats.binomtest(rejected, 200, 0.05).pvalue > 0.01
    assert seen / 200 > 0.75


def test_without_a_denominator_nothing_is_known():
    empty = GroupSums(torch.zeros(2), torch.zeros(2))
    assert all(math.isnan(v) for v in paired_difference(means([1, 2]), empty))
    half = GroupSums(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    other_half = GroupSums(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
    # Two of the four exchanges leave a side without a denominator: they count as extreme, as the other two are.
    assert paired_difference(half, other_half).p_value == 1
    assert paired_difference(half, means([0, 0])).p_value == 0.5


def test_of_infinite_ratios_nothing_is_known():
    endless = GroupSums(torch.tensor([torch.inf, torch.inf]), torch.ones(2))
    assert all(math.isnan(v) for v in paired_difference(endless, means([1, 2])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": 1.0}, "`confidence` must lie strictly between 0 and 1"),
        ({"n_resamples": 0}, "`n_resamples` must be a whole number of at least 1"),
        ({"n_permutations": 0}, "`n_permutations` must be a whole number of at least 1"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        paired_difference(means([1]), means([1]), **options)


def test_other_groups_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"must be of the same groups; got lengths \[1, 2\]"):
        paired_difference(means([1]), means([1, 2]))
