"""Significance of detectors: label permutation within the design, by hand, against enumeration, and by sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radiant_lens.statistics.rates import error_rates
from radiant_lens.statistics.significance import Design, benjamini_hochberg, detection_p_values, detection_power

quick = settings(deadline=None, max_examples=40)


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


# Designs: texts with a label and a group, and tokens that share most of their noise within a text


def one_class_groups(n_undesirable, n_desirable):
    labels = np.r_[np.ones(n_undesirable, dtype=int), np.zeros(n_desirable, dtype=int)]
    return labels, np.arange(len(labels))


def paired_groups(n_groups):
    return np.tile([0, 1], n_groups), np.repeat(np.arange(n_groups), 2)


def drawn_flags(texts, n_heads, *, signal, seed, log_normal=False, n_tokens=6):
    """Flags of tokens; a head flags more often where its text's, its group's and its own random numbers are high."""
    rng, (labels, groups) = np.random.default_rng(seed), texts
    sizes = np.full(len(labels), n_tokens)
    if log_normal:
        sizes = np.maximum(1, np.round(n_tokens * rng.lognormal(-0.5, 1, len(labels)))).astype(int)
    of_text = 0.7 * rng.normal(size=(groups.max() + 1, n_heads))[groups] + rng.normal(size=(len(labels), n_heads))
    of_text += signal * (labels[:, None] - 0.5) + 0.5 * rng.normal(size=n_heads)
    score = np.repeat(of_text, sizes, axis=0)
    score += 0.5 * rng.normal(size=score.shape)
    columns = (labels, groups, np.arange(len(labels)))
    return torch.tensor(score >= 0), Design(*(torch.tensor(np.repeat(column, sizes)) for column in columns))


DESIGNS = {
    "4/36": one_class_groups(4, 36),
    "10/90": one_class_groups(10, 90),
    "20/180": one_class_groups(20, 180),
    "40/360": one_class_groups(40, 360),
    "10/10": one_class_groups(10, 10),
    "80/80": one_class_groups(80, 80),
    "20 pairs": paired_groups(20),
    "80 pairs": paired_groups(80),
}
N_HEADS = 144


def share_with_discovery(texts, n_draws, *, log_normal, p_values=detection_p_values):
    discoveries = []
    for seed in range(n_draws):
        flags, design = drawn_flags(texts, N_HEADS, signal=0.0, seed=seed, log_normal=log_normal)
        discoveries.append(bool(benjamini_hochberg(p_values(flags, design, 1.0)).any()))
    return float(np.mean(discoveries))


def t_test(flags, design, fnr_weight):
    """The test that this one replaces: a t-test of each group's share in the gain over flagging all or none."""
    gain = 1 - error_rates(flags, design.labels).risk(fnr_weight)
    undesirable = (design.labels == 1)[:, None]
    rates = error_rates(flags, design.labels)
    miss = ((~flags).double() - rates.fnr) / undesirable.sum()
    alarm = (flags.double() - rates.fpr) / (~undesirable).sum()
    sums = torch.zeros(int(design.groups.max()) + 1, flags.shape[1], dtype=torch.float64)
    sums.index_add_(0, design.groups, torch.where(undesirable, miss, alarm))
    n = len(sums)
    t = gain / ((sums.square().sum(0) + (gain / n).square()) * n / (n - 1)).clamp_min(1e-300).sqrt()
    p = torch.as_tensor(stats.t.sf(t.numpy(), n - 1))
    return torch.where((gain <= 0) | flags.all(0) | ~flags.any(0), 1.0, p)


@pytest.mark.parametrize(
    ("design", "log_normal"), [("4/36", True), ("10/90", False), ("10/10", True), ("20 pairs", False)]
)
def test_chance_heads_are_seldom_discovered(design, log_normal):
    # At a true 5%, 40 draws have more than 6 with a discovery once in 300 times.
    assert share_with_discovery(DESIGNS[design], 40, log_normal=log_normal) <= 6 / 40


@pytest.mark.slow
@pytest.mark.parametrize("log_normal", [False, True], ids=["even", "log-normal"])
@pytest.mark.parametrize("design", DESIGNS)
def test_chance_heads_are_seldom_discovered_in_any_design(design, log_normal):
    assert share_with_discovery(DESIGNS[design], 200, log_normal=log_normal) <= 0.07


@pytest.mark.parametrize(("design", "log_normal"), [("4/36", True), ("10/90", False)])
def test_a_t_test_would_discover_chance_heads(design, log_normal):
    assert share_with_discovery(DESIGNS[design], 20, log_normal=log_normal, p_values=t_test) > 0.4


@pytest.mark.parametrize("design", ["80/80", "80 pairs"])
def test_power_is_near_that_of_the_t_test_where_that_is_valid(design):
    powers = {}
    for name, p_values in (("ours", detection_p_values), ("theirs", t_test)):
        significant = []
        for seed in range(5):
            flags, drawn = drawn_flags(DESIGNS[design], N_HEADS, signal=0.8, seed=seed)
            chance, _ = drawn_flags(DESIGNS[design], N_HEADS, signal=0.0, seed=seed)
            flags[:, N_HEADS // 6 :] = chance[:, N_HEADS // 6 :]
            significant.append(benjamini_hochberg(p_values(flags, drawn, 1.0))[: N_HEADS // 6].double().mean())
        powers[name] = float(torch.stack(significant).mean())
    assert 0.3 < powers["theirs"] < 0.99
    assert powers["ours"] >= powers["theirs"] - 0.05


def test_heads_with_signal_are_discovered_beside_chance_heads():
    flags, design = drawn_flags(DESIGNS["20/180"], N_HEADS, signal=1.8, seed=1)
    chance, _ = drawn_flags(DESIGNS["20/180"], N_HEADS, signal=0.0, seed=1)
    flags[:, 20:] = chance[:, 20:]
    significant = benjamini_hochberg(detection_p_values(flags, design, 1.0))
    assert float(significant[:20].double().mean()) > 0.9
    assert int(significant[20:].sum()) <= 4


def test_one_head_alone_among_a_thousand_can_be_significant():
    labels, groups = DESIGNS["80/80"]
    design = Design(*(torch.tensor(column) for column in (labels, groups, groups)))
    flags = torch.rand((len(labels), 1024), generator=torch.Generator().manual_seed(0)) < 0.5
    flags[:, 7] = design.labels == 1
    assert benjamini_hochberg(detection_p_values(flags, design, 1.0)).nonzero().tolist() == [[7]]


# Against enumeration


def enumerated_p_value(flags, design, fnr_weight):
    """All assignments of labels that the design allows: to texts of a group, or to whole groups of one class."""
    labels, groups, texts = (column.numpy() for column in design)
    mixed = [g for g in np.unique(groups) if len(set(labels[groups == g])) == 2]
    strata = [[texts == t for t in np.unique(texts[groups == g])] for g in mixed]
    strata.append([groups == g for g in np.unique(groups) if g not in mixed])

    def assignments(units):
        values = [labels[unit][0] for unit in units]
        return set(itertools.permutations(values))

    risks = []
    for chosen in itertools.product(*(assignments(units) for units in strata)):
        relabelled = labels.copy()
        for units, values in zip(strata, chosen):
            for unit, value in zip(units, values):
                relabelled[unit] = value
        risks.append(float(error_rates(flags[:, None], torch.tensor(relabelled)).risk(fnr_weight)))
    observed = float(error_rates(flags[:, None], design.labels).risk(fnr_weight))
    return np.mean(np.array(risks) <= observed + 1e-9), len(risks)


SMALL_DESIGNS = {
    "one class": (np.array([1, 1, 0, 0, 0]), np.arange(5)),
    "both classes": (np.array([0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1])),
    "some of each": (np.array([0, 1, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 2, 3, 4, 4])),
    "several texts of one class": (np.array([1, 1, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 2, 3])),
}


@pytest.mark.parametrize("name", SMALL_DESIGNS)
@pytest.mark.parametrize("seed", range(4))
def test_p_values_equal_those_of_all_assignments(name, seed):
    flags, design = drawn_flags(SMALL_DESIGNS[name], 12, signal=1.0, seed=seed, n_tokens=3, log_normal=True)
    p = detection_p_values(flags, design, 1.0)
    for head in range(12):
        exact, n = enumerated_p_value(flags[:, head], design, 1.0)
        assert math.exp(-math.log(n)) == pytest.approx(detection_power(design, 1).least_p_value)
        if float(p[head]) < 1:
            assert float(p[head]) == pytest.approx(exact, abs=0.03)
        else:
            assert exact > 0.2 or flags[:, head].all() or not flags[:, head].any()


def test_labels_move_within_groups_that_hold_both_classes():
    """A flag that knows the group and not the label: shuffled over all texts, it would look like a detector."""
    labels = np.array([0, 0, 0, 1] * 15 + [0, 1, 1, 1] * 15)
    texts = (labels, np.repeat(np.arange(30), 4))
    _, design = drawn_flags(texts, 1, signal=0.0, seed=0)
    knows_group = (design.groups >= 15)[:, None]
    assert float(detection_p_values(knows_group, design, 1.0)) == 1.0
    loose = design._replace(groups=design.texts)
    assert float(detection_p_values(knows_group, loose, 1.0)) < 0.01


def test_whole_groups_move_where_groups_hold_one_class():
    """Ten texts of a group agree: as independent texts they would make chance significant."""
    rng = np.random.default_rng(0)
    labels, groups = np.repeat([0, 1], 100), np.repeat(np.arange(20), 10)
    flags = torch.tensor(rng.random((20, 400))[groups] < 0.5)
    design = Design(torch.tensor(labels), torch.tensor(groups), torch.arange(200))
    loose = design._replace(groups=torch.arange(200))
    assert float((detection_p_values(flags, design, 1.0) < 0.05).double().mean()) < 0.08
    assert float((detection_p_values(flags, loose, 1.0) < 0.05).double().mean()) > 0.2


# Properties


def paired_design(n_groups):
    labels, groups = paired_groups(n_groups)
    return Design(torch.tensor(labels), torch.tensor(groups), torch.arange(2 * n_groups))


@pytest.mark.parametrize(("fnr_weight", "fpr", "fnr"), [(0.5, 0.2, 0.6), (1.0, 0.3, 0.7), (3.0, 0.4, 0.2)])
def test_a_risk_just_that_of_the_trivial_detectors_is_rejected_at_the_nominal_rate(fnr_weight, fpr, fnr):
    assert fpr + fnr_weight * fnr == pytest.approx(min(1, fnr_weight))
    rng, design = np.random.default_rng(5), paired_design(80)
    score = rng.normal(size=(160, 4000)) + rng.normal(size=(80, 4000)).repeat(2, axis=0)
    level = np.where(design.labels == 1, stats.norm.isf(1 - fnr), stats.norm.isf(fpr)) * np.sqrt(2)
    flags = torch.tensor(score >= level[:, None])
    rejected = (detection_p_values(flags, design, fnr_weight, n_permutations=999) < 0.05).double().mean()
    assert 0.02 < float(rejected) < 0.08


@pytest.mark.parametrize("fnr_weight", [0.3, 1.0, 3.0])
def test_heads_that_flag_all_or_none_have_p_one(fnr_weight):
    design = paired_design(20)
    flags = torch.stack([torch.ones(40).bool(), torch.zeros(40).bool()], dim=1)
    assert detection_p_values(flags, design, fnr_weight).tolist() == [1.0, 1.0]


def test_heads_worse_than_flagging_all_have_p_one():
    design = paired_design(20)
    assert float(detection_p_values((design.labels == 0)[:, None], design, 1.0)) == 1.0


def test_a_greater_gain_has_a_smaller_p_value():
    design = paired_design(40)
    wrong = [torch.arange(80) < n for n in (6, 26, 34)]
    p = [float(detection_p_values(((design.labels == 1) ^ w)[:, None], design, 1.0)) for w in wrong]
    assert p == sorted(p)
    assert len(set(p)) == 3


def test_heads_keep_their_axes_and_p_values_follow_the_seed():
    flags, design = drawn_flags(paired_groups(12), 6, signal=0.8, seed=0)
    p = detection_p_values(flags.reshape(-1, 2, 3), design, 1.0)
    assert p.shape == (2, 3)
    assert torch.equal(p.flatten(), detection_p_values(flags, design, 1.0))
    assert not torch.equal(p.flatten(), detection_p_values(flags, design, 1.0, seed=1))


def test_chunks_of_permutations_change_nothing(monkeypatch):
    flags, design = drawn_flags(paired_groups(12), 6, signal=0.8, seed=0)
    whole = detection_p_values(flags, design, 1.0, n_permutations=500)
    monkeypatch.setattr("radiant_lens.statistics.significance.CHUNK_BYTES", 50_000)
    assert torch.equal(detection_p_values(flags, design, 1.0, n_permutations=500), whole)


# What a design can show


@pytest.mark.parametrize(
    ("texts", "least"),
    [
        (one_class_groups(4, 36), 1 / math.comb(40, 4)),
        (paired_groups(5), 1 / 2**5),
        ((np.array([0, 0, 1, 1]), np.zeros(4, dtype=int)), 1 / 6),
        (SMALL_DESIGNS["some of each"], 1 / (2 * 2 * 3)),
    ],
)
def test_the_least_p_value_is_one_over_the_number_of_assignments(texts, least):
    labels, groups = (torch.tensor(column) for column in texts)
    power = detection_power(Design(labels, groups, torch.arange(len(labels))), 10)
    assert power.least_p_value == pytest.approx(least)
    assert power.n_groups == len(groups.unique())


@pytest.mark.parametrize("n_heads", [1, 32, 270, 1024])
def test_the_groups_needed_are_enough_and_one_less_is_not(n_heads):
    needed = detection_power(paired_design(2), n_heads).n_groups_needed
    assert 2.0**-needed * n_heads <= 0.05 < 2.0 ** -(needed - 1) * n_heads
    assert detection_power(paired_design(needed), n_heads).n_groups_needed == needed


@quick
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 500))
def test_a_design_needs_no_more_groups_exactly_where_one_head_can_be_significant(n_undesirable, n_desirable, n_heads):
    labels, groups = (torch.tensor(column) for column in one_class_groups(n_undesirable, n_desirable))
    power = detection_power(Design(labels, groups, groups), n_heads)
    assert (power.n_groups_needed == power.n_groups) == (power.least_p_value * n_heads <= 0.05 + 1e-12)
