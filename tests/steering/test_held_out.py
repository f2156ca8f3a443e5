"""Certificates of held-out activations, in numbers and in words."""

from __future__ import annotations

import math

import pytest
import torch

from radiant_lens.statistics.bounds import binomial_upper, bootstrap_ratio, clopper_pearson, group_sums, groups_needed
from radiant_lens.steering.held_out import Events, certificate, overall_counts


@pytest.fixture
def events():
    """Ten groups of one example; the first head is gated in all and fails once, the second is never gated."""
    gated = torch.tensor([[True, False]] * 10)
    still = torch.zeros(10, 2, dtype=torch.bool)
    still[3, 0] = True
    return Events(gated, still)


def made(events, gamma=0.05):
    return certificate(["L0H0", "L0H1"], events, torch.arange(10), gamma=gamma, confidence=0.95)


def test_shares_are_counted_by_hand(events):
    first = made(events).heads[0]
    assert (first.n_groups, first.n_still_flagged, first.n_tokens) == (10, 1, 10)
    assert first.interval.value == first.token_share.value == 0.1
    # P(at most 1 of 10) = 5% where (1 - p)^10 + 10 p (1 - p)^9 = 0.05.
    p = first.upper
    assert (1 - p) ** 10 + 10 * p * (1 - p) ** 9 == pytest.approx(0.05)


def test_one_token_of_each_group_counts_by_the_seed():
    """Of two tokens one is still flagged: which is counted is drawn anew for each seed, the same for the same."""
    events, groups = (
        Events(torch.ones(40, 1, dtype=torch.bool), torch.arange(40)[:, None] % 2 == 0),
        torch.arange(40) // 2,
    )
    counts = [overall_counts(events, groups, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert counts[0] == counts[1] == overall_counts(events, groups)
    assert {n for _, n in counts} == {20} and len(set(counts)) > 1


def test_a_head_that_is_never_gated_promises_nothing(events):
    never = made(events).heads[1]
    assert (never.n_groups, never.n_still_flagged, never.n_tokens, never.upper) == (0, 0, 0, 1.0)
    assert math.isnan(never.token_share.value) and never.token_share[1:] == (0.0, 1.0)


def test_words_give_the_bound_beside_gamma(events):
    text = str(made(events))
    assert text.startswith("1 of 10 held-out groups still flagged after the edit: 10.0% [")
    assert "with confidence 95%; over all 10 gated tokens 10.0%. Nominal gamma: 5.0%" in text
    assert text.endswith("; 59 groups without a failure would be needed to confirm it.")
    assert "would be needed" not in str(made(events, gamma=0.5))
    assert str(made(events, gamma=None)).endswith("over all 10 gated tokens 10.0%.")


def test_the_table_has_a_row_for_each_head_and_one_over_all(events):
    table = made(events).to_dataframe()
    assert table["head"].tolist() == ["L0H0", "L0H1", "all"]
    assert table["groups"].tolist() == [10, 0, 10]
    assert table["still flagged"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_every_interval_has_the_confidence_asked_for(events, confidence):
    found = certificate(["L0H0", "L0H1"], events, torch.arange(10), gamma=0.05, confidence=confidence)
    first = found.heads[0]
    assert first.interval == clopper_pearson(1, 10, confidence=confidence)
    assert first.upper == binomial_upper(1, 10, confidence=confidence)
    groups = group_sums(events.still_flagged[:, 0], torch.arange(10)), group_sums(torch.ones(10), torch.arange(10))
    assert first.token_share == bootstrap_ratio(*groups, confidence=confidence)
    assert f"; {groups_needed(0.05, confidence=confidence)} groups without a failure" in str(found)
