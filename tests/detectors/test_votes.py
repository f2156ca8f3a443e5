"""When a layer flags: rules worked out by hand, and a certificate that holds as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens.detectors import choose_thresholds
from radiant_lens.detectors.votes import VotingData
from radiant_lens.errors import GuaranteeError

OPTIONS = {"rule": "fnr", "fnr_weight": 1.0, "target_fnr": 0.05, "delta": 0.05, "layer": None, "seed": 0}


def voting(undesirable, desirable, groups=None) -> VotingData:
    """One list of counts for each class, or one column of counts for each layer."""
    counts = torch.tensor([*undesirable, *desirable]).reshape(len(undesirable) + len(desirable), -1)
    labels = torch.tensor([1] * len(undesirable) + [0] * len(desirable))
    return VotingData(counts, labels, torch.arange(len(labels)) if groups is None else torch.tensor(groups))


def choose(data, n_heads=3, **options):
    return choose_thresholds(data, n_heads, **{**OPTIONS, **options})


HAND = voting([3, 3, 2, 1], [0, 1, 1, 3])  # tau 1, 2, 3: FNR 0, 1/4, 1/2; FPR 3/4, 1/4, 1/4


@pytest.mark.parametrize(
    ("options", "tau", "fpr", "fnr"),
    [
        ({"rule": "fnr"}, 1, 0.75, 0.0),
        ({"rule": "risk"}, 2, 0.25, 0.25),
        ({"rule": "risk", "fnr_weight": 3.0}, 1, 0.75, 0.0),
        ({"rule": "fnr", "fnr_weight": 0.1}, 1, 0.75, 0.0),
    ],
)
def test_rules_worked_out_by_hand(options, tau, fpr, fnr):
    votes = choose(HAND, **options)
    assert (votes.thresholds.tolist(), votes.rates.fpr.tolist(), votes.rates.fnr.tolist()) == ([tau], [fpr], [fnr])
    assert votes.certified.tolist() == [False]


def test_ties_in_fnr_go_to_the_lesser_risk_and_then_to_the_larger_tau():
    assert choose(voting([3, 3], [0, 1])).thresholds.tolist() == [3]
    assert choose(voting([3, 2], [0, 1])).thresholds.tolist() == [2]
    assert choose(voting([3, 1], [0, 1])).thresholds.tolist() == [1]


def test_ties_in_risk_go_to_the_larger_tau():
    tied = voting([2, 1], [1, 0])  # risk 1/2 at tau 1 and 2
    assert choose(tied, n_heads=2, rule="risk").thresholds.tolist() == [2]
    assert choose(tied, n_heads=2, rule="fnr").thresholds.tolist() == [1]


def test_layers_are_chosen_each_for_itself():
    both = voting([[3, 3], [3, 3], [2, 3], [1, 3]], [[0, 0], [1, 1], [1, 1], [3, 1]])
    assert choose(both, rule="risk").thresholds.tolist() == [2, 3]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["fnr", "risk"]), st.sampled_from([0.5, 1.0, 2.0]))
def test_rules_equal_a_naive_search(seed, rule, fnr_weight):
    rng = np.random.default_rng(seed)
    n_heads, labels = int(rng.integers(1, 6)), np.r_[0, 1, rng.integers(0, 2, 10)]
    counts = rng.integers(0, n_heads + 1, (12, 2))
    data = VotingData(torch.tensor(counts), torch.tensor(labels), torch.arange(12))
    votes = choose(data, n_heads, rule=rule, fnr_weight=fnr_weight)
    for layer in range(2):
        ranked = []
        for tau in range(1, n_heads + 1):
            flags = counts[:, layer] >= tau
            fpr, fnr = flags[labels == 0].mean(), 1 - flags[labels == 1].mean()
            risk = round(fpr + fnr_weight * fnr, 9)
            ranked.append(((round(fnr, 9), risk) if rule == "fnr" else (risk,), -tau, fpr, fnr))
        _, minus_tau, fpr, fnr = min(ranked)
        assert int(votes.thresholds[layer]) == -minus_tau
        assert float(votes.rates.fpr[layer]) == pytest.approx(fpr)
        assert float(votes.rates.fnr[layer]) == pytest.approx(fnr)


# The certified rule


def test_the_largest_tau_without_a_miss_is_certified_by_59_groups():
    votes = choose(voting([2] * 59, [0, 3]), rule="certified", layer=0)
    assert (votes.thresholds.tolist(), votes.certified.tolist()) == ([2], [True])


@pytest.mark.parametrize("one_less", [voting([2] * 58, [0]), voting([2] * 58 + [0], [0])])
def test_58_groups_or_a_miss_are_not_enough(one_less):
    with pytest.raises(GuaranteeError, match="No vote threshold has an FNR below 0.05 with confidence 0.95"):
        choose(one_less, rule="certified", layer=0)


def test_one_layer_of_several_must_share_the_confidence_unless_named_beforehand():
    both = voting([[2, 3]] * 59, [[0, 0]])
    votes = choose(both, rule="certified", layer=1)
    assert (votes.thresholds.tolist()[1], votes.certified.tolist()) == (3, [False, True])
    with pytest.raises(GuaranteeError, match="with confidence 0.975 on 59 undesirable groups .* it takes 72 groups"):
        choose(both, rule="certified")
    assert choose(voting([[2, 3]] * 72, [[0, 0]]), rule="certified").thresholds.tolist() == [2, 3]


def test_layers_that_cannot_be_certified_say_so():
    votes = choose(voting([[2, 0]] * 72, [[0, 0]]), rule="certified")
    assert votes.certified.tolist() == [True, False]


def test_tokens_of_one_group_count_once():
    data = voting([2] * 100, [0], groups=[i // 10 for i in range(101)])
    with pytest.raises(GuaranteeError, match="on 10 undesirable groups"):
        choose(data, rule="certified", layer=0)


def test_desirable_groups_do_not_count():
    with pytest.raises(GuaranteeError, match="on 20 undesirable groups"):
        choose(voting([2] * 20, [0] * 100), rule="certified", layer=0)


def test_the_error_says_how_many_are_missed_and_how_many_groups_it_takes():
    message = r"on 40 undesirable groups \(tau = 1 misses at least 3\); without a miss it takes 29 groups"
    with pytest.raises(GuaranteeError, match=message):
        choose(voting([0] * 3 + [3] * 37, [0]), rule="certified", layer=0, target_fnr=0.1)


def test_the_error_speaks_of_the_layer_that_was_named():
    data = voting([[3, 0]] * 7 + [[3, 3]] * 93, [[0, 0]])
    with pytest.raises(GuaranteeError, match=r"tau = 1 misses at least 7"):
        choose(data, rule="certified", layer=1)


def test_a_looser_target_certifies_a_larger_tau():
    data = voting([1] * 5 + [2] * 15 + [3] * 180, [0])
    taus = [int(choose(data, rule="certified", layer=0, target_fnr=t).thresholds) for t in (0.03, 0.08, 0.2)]
    assert taus == [1, 2, 3]


def test_the_certificate_counts_one_random_token_of_each_group():
    data = voting([0, 3] * 80, [0], groups=[i // 2 for i in range(161)])
    options = {"rule": "certified", "layer": 0, "target_fnr": 0.999}
    assert choose(data, **options).thresholds.tolist() == [3]
    picked = set()
    for seed in range(8):
        with pytest.raises(GuaranteeError) as caught:
            choose(data, **{**options, "target_fnr": 0.1, "seed": seed})
        picked.add(str(caught.value))
    assert all("on 80 undesirable groups" in message for message in picked)
    assert len(picked) > 1


def test_a_certified_tau_misses_too_many_no_more_often_than_delta():
    # Of 4 heads each flags with probability .73, so tau = 1, 2, 3 miss .005, .063, .31: only tau = 1 keeps below .06.
    rng = np.random.default_rng(0)
    wrong, naive = [], []
    for _ in range(400):
        counts = rng.binomial(4, 0.73, 150)
        tau = int(choose(voting(counts, [0]), 4, rule="certified", layer=0, target_fnr=0.06, delta=0.1).thresholds)
        wrong.append(tau > 1)
        naive.append((counts < 2).mean() <= 0.06)
    assert np.mean(wrong) <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 400)
    assert np.mean(naive) > 0.3  # what believing the validation share would do
