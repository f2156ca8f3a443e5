"""Held-out certificates: their counts, bounds and sentences."""

from __future__ import annotations

import math

import pytest
import torch

from radiant_lens.statistics.bounds import binomial_upper, bootstrap_ratio, clopper_pearson, group_sums, groups_needed
from radiant_lens.steering.held_out import Events, HeldOutCertificate, HeldOutShare, certificate, overall_counts


@pytest.fixture
def events():
    """Ten groups of one example; the first head is gated in all and fails in one, the second is never gated."""
    gated = torch.tensor([[True, False]] * 10)
    still = torch.zeros(10, 2, dtype=torch.bool)
    still[3, 0] = True
    return Events(gated, still)


def certify(events, gamma=0.05, **options):
    return certificate(["L0H0", "L0H1"], events, torch.arange(10), gamma=gamma, confidence=0.95, **options)


@pytest.fixture
def half():
    """Twenty groups of two tokens; the edit of the only head fails at one token of each."""
    return Events(torch.ones(40, 1, dtype=torch.bool), torch.arange(40)[:, None] % 2 == 0), torch.arange(40) // 2


def test_shares_are_counted_by_hand(events):
    first = certify(events).heads[0]
    assert (first.n_groups, first.n_still_flagged, first.n_tokens) == (10, 1, 10)
    assert first.interval.value == first.token_share.value == 0.1
    # P(at most 1 of 10) = 5% where (1 - p)^10 + 10 p (1 - p)^9 = 0.05.
    p = first.upper
    assert (1 - p) ** 10 + 10 * p * (1 - p) ** 9 == pytest.approx(0.05)


def test_one_token_of_each_group_counts_by_the_seed(half):
    events, groups = half
    counts = [overall_counts(events, groups, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert counts[0] == counts[1] == overall_counts(events, groups)
    assert {n for _, n in counts} == {20} and len(set(counts)) > 1


def test_a_head_that_is_never_gated_promises_nothing(events):
    never = certify(events).heads[1]
    assert (never.n_groups, never.n_still_flagged, never.n_tokens, never.upper) == (0, 0, 0, 1.0)
    assert math.isnan(never.token_share.value) and never.token_share[1:] == (0.0, 1.0)


def test_the_bounds_count_the_first_draw_and_the_other_draws_are_reported(half):
    events, groups = half
    drawn = certificate(["L0H0"], events, groups, gamma=None, confidence=0.95, seed=4, draws=50)
    counts = [overall_counts(events, groups, seed=seed)[0] for seed in range(4, 54)]
    # A seed whose draws differ, else the asserts below could not fail.
    assert len({counts[0], counts[1], max(counts)}) == 3
    for row in (*drawn.heads, drawn.overall):
        assert row.draw_counts == tuple(counts) and row.n_still_flagged == counts[0]
        assert row.interval == clopper_pearson(counts[0], 20) and row.upper == binomial_upper(counts[0], 20)
        assert row.mean_still_flagged == sum(counts) / 50 and row.most_still_flagged == max(counts)
        assert row.n_any_flagged == 20
    assert f"(first of 50 draws: {sum(counts) / 50:.1f} on average, {max(counts)} at most)" in str(drawn)
    one = certificate(["L0H0"], events, groups, gamma=None, confidence=0.95, seed=4, draws=1)
    assert "(1 draw)" in str(one) and one.overall.upper == drawn.overall.upper
    other = certificate(["L0H0"], events, groups, gamma=None, confidence=0.95, seed=5, draws=1)
    assert other.overall.n_still_flagged == counts[1]


def test_the_bound_of_one_draw_holds_as_often_as_it_says():
    """Sampled: groups with shares from 0 to 1, whose mean is the bounded share; a 90% bound covers it in 90%."""
    generator, covered = torch.Generator().manual_seed(0), 0
    groups = torch.arange(25).repeat_interleave(8)
    for trial in range(200):
        shares = torch.rand(25, generator=generator).square()
        still = torch.rand(200, generator=generator) < shares[groups]
        events = Events(torch.ones(200, 1, dtype=torch.bool), still[:, None])
        row = certificate(["L0H0"], events, groups, gamma=None, confidence=0.9, seed=trial, draws=1).overall
        # The mean of the square of a uniform variable is 1/3.
        covered += row.upper >= 1 / 3
    assert 0.86 <= covered / 200 <= 1


def test_a_group_that_fails_at_a_rare_token_counts_at_any_token():
    """Ten groups of 100 tokens with one failure each: a draw sees few of them, the count at any token all."""
    groups = torch.arange(10).repeat_interleave(100)
    events = Events(torch.ones(1000, 1, dtype=torch.bool), torch.arange(1000)[:, None] % 100 == 5)
    row = certificate(["L0H0"], events, groups, gamma=None, confidence=0.95).overall
    assert row.n_any_flagged == 10 > 3 * row.n_still_flagged and row.token_share.value == pytest.approx(0.01)
    assert "at any gated token 10 of 10; of all 1000 gated tokens 1.0%" in str(row_of(row))


def row_of(row):
    return HeldOutCertificate(None, 0.95, (), row)


def test_shares_of_earlier_versions_have_no_further_draws(events):
    row = certify(events).heads[0]
    old = HeldOutShare(*(getattr(row, name) for name in list(HeldOutShare.__dataclass_fields__)[:7]))
    assert (old.mean_still_flagged, old.most_still_flagged) == (1.0, 1)
    assert "(1 draw)" in str(row_of(old))


def test_the_sentence_says_what_it_counts(events):
    text = str(certify(events))
    assert text.startswith(
        "1 of 10 held-out groups still flagged after the edit at one random gated token and head: 10.0%"
    )
    assert "with confidence 95% (first of 20 draws: 1.0 on average, 1 at most); at any gated token 1 of 10;" in text
    assert "; of all 10 gated tokens 10.0%. Nominal gamma: 5.0%" in text
    assert text.endswith("; 59 groups without a failure would be needed to confirm it.")
    assert "would be needed" not in str(certify(events, gamma=0.5))
    assert str(certify(events, gamma=None)).endswith("of all 10 gated tokens 10.0%.")


def test_the_table_has_a_row_for_each_head_and_one_over_all(events):
    table = certify(events).to_dataframe()
    assert table["head"].tolist() == ["L0H0", "L0H1", "all"]
    assert table["groups"].tolist() == [10, 0, 10]
    assert table["still flagged"].tolist() == table["still flagged at any token"].tolist() == [1, 0, 1]
    unit = "one random gated token"
    assert table["counted in each group"].tolist() == [unit, unit, f"{unit} and head"]


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_every_interval_has_the_confidence_asked_for(events, confidence):
    result = certificate(["L0H0", "L0H1"], events, torch.arange(10), gamma=0.05, confidence=confidence)
    first = result.heads[0]
    assert first.interval == clopper_pearson(1, 10, confidence=confidence)
    assert first.upper == binomial_upper(1, 10, confidence=confidence)
    groups = group_sums(events.still_flagged[:, 0], torch.arange(10)), group_sums(torch.ones(10), torch.arange(10))
    assert first.token_share == bootstrap_ratio(*groups, confidence=confidence)
    assert f"; {groups_needed(0.05, confidence=confidence)} groups without a failure" in str(result)
