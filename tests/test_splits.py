"""Splitting groups."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.splits import split_groups

quick = settings(deadline=None, max_examples=100)
fractions = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda w: tuple(x / sum(w) for x in w))
group_lists = st.lists(st.integers(0, 99).map(str), min_size=5, max_size=80).filter(lambda g: len(set(g)) >= 5)


def test_sizes_of_a_hand_made_example():
    assert [len(p) for p in split_groups("abcdefghij", (0.5, 0.3, 0.2))] == [5, 3, 2]


@quick
@given(group_lists, fractions, st.integers(0, 100))
def test_parts_are_a_partition_and_none_is_empty(groups, shares, seed):
    parts = split_groups(groups, shares, seed=seed)
    assert len(parts) == len(shares)
    assert all(parts)
    assert sum(map(len, parts)) == len(set(groups))
    assert frozenset().union(*parts) == set(groups)


@quick
@given(st.integers(50, 300), fractions)
def test_sizes_are_those_of_the_fractions(n, shares):
    parts = split_groups(map(str, range(n)), shares)
    assert all(abs(len(part) - share * n) <= 1 for part, share in zip(parts, shares))


@quick
@given(group_lists.flatmap(lambda g: st.tuples(st.just(g), st.permutations(g))), st.integers(0, 100))
def test_order_and_repetition_do_not_matter(orders, seed):
    groups, other = orders
    assert split_groups(groups, (0.5, 0.5), seed=seed) == split_groups([*other, other[0]], (0.5, 0.5), seed=seed)


def test_another_seed_gives_other_parts():
    names = list(map(str, range(50)))
    assert split_groups(names, (0.5, 0.5), seed=0) != split_groups(names, (0.5, 0.5), seed=1)


def test_a_tiny_fraction_still_gets_a_group():
    assert [len(p) for p in split_groups("abc", (0.98, 0.01, 0.01))] == [1, 1, 1]
    assert [len(p) for p in split_groups("abc", (0.01, 0.01, 0.98))] == [1, 1, 1]


@pytest.mark.parametrize("bad", [(), (0.5, 0.4), (0.6, 0.6), (1.5, -0.5), (1.0, 0.0), (float("nan"), 1.0)])
def test_fractions_must_be_positive_and_add_up_to_one(bad):
    with pytest.raises(InvalidArgumentError, match="`fractions` must be positive and add up to 1; got"):
        split_groups("abcdef", bad)


def test_there_must_be_a_group_for_each_part():
    with pytest.raises(InvalidArgumentError, match="3 parts need as many groups; the data has 2"):
        split_groups("abab", (0.4, 0.3, 0.3))


# Strata


@quick
@given(st.integers(2, 40), st.integers(2, 40), fractions, st.integers(0, 100))
def test_every_part_has_about_its_share_of_every_stratum(n_rare, n_common, shares, seed):
    strata = {**{f"r{i}": "rare" for i in range(n_rare)}, **{f"c{i}": "common" for i in range(n_common)}}
    assume(len(strata) >= 5 * len(shares))
    for part, share in zip(split_groups(strata, shares, seed=seed, strata=strata), shares):
        for stratum, n in (("rare", n_rare), ("common", n_common)):
            assert abs(sum(strata[name] == stratum for name in part) - share * n) <= 2


def test_without_strata_a_rare_kind_is_often_missing():
    strata = {f"{i}": i < 2 for i in range(40)}

    def missing(**options):
        return sum(
            not any(strata[n] for n in split_groups(strata, (0.5, 0.5), seed=s, **options)[0]) for s in range(60)
        )

    assert missing(strata=strata) == 0
    assert missing() > 5


@quick
@given(group_lists, fractions, st.integers(0, 100))
def test_one_stratum_changes_nothing(groups, shares, seed):
    same = dict.fromkeys(groups, 0)
    assert split_groups(groups, shares, seed=seed, strata=same) == split_groups(groups, shares, seed=seed)
