"""One metric of a plain and a steered model: values, intervals of the difference, readings."""

from __future__ import annotations

import math

import pytest
import torch

from radiant_lens.evaluation.side_effects.metrics import LEAST_GROUPS, METRICS, Ratio, compare
from radiant_lens.statistics.bounds import clopper_pearson
from radiant_lens.statistics.paired import GroupSums, paired_difference

GROUPS = [f"g{i % 10}" for i in range(30)]


def ratio(top, bottom=1.0) -> Ratio:
    top = torch.as_tensor(top, dtype=torch.float64)
    return Ratio(top, torch.full_like(top, bottom))


def noise(seed: int, n: int = 30) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_are_ratios_of_sums_and_the_interval_is_the_paired_one():
    plain, steered = noise(0), noise(1) + 0.5
    effect = compare("cross_entropy", GROUPS, ratio(plain, 2.0), ratio(steered, 2.0))
    assert effect.plain.value == pytest.approx(float(plain.mean()) / 2)
    assert effect.steered.value == pytest.approx(float(steered.mean()) / 2)

    def totals(values):
        return torch.stack([values[i::10].sum() for i in range(10)])

    bottom = torch.full((10,), 6.0)
    expected = paired_difference(GroupSums(totals(steered), bottom), GroupSums(totals(plain), bottom))
    assert effect.difference == pytest.approx(expected[:3])
    assert effect.n_groups == 10


def test_pairing_removes_what_both_sides_share():
    """Groups that differ among themselves by far more than the steering changes them."""
    plain = 10 * noise(2)
    effect = compare("words", GROUPS, ratio(plain), ratio(plain + 0.1))
    assert effect.reading == "changed"
    assert effect.difference == pytest.approx((0.1, 0.1, 0.1))
    assert effect.plain.high - effect.plain.low > 1
    shuffled = compare("words", GROUPS, ratio(plain), ratio(plain.flip(0) + 0.1))
    assert shuffled.reading == "no clear change"


def test_perplexity_is_the_exponential_of_nats():
    plain, steered = ratio(noise(3)), ratio(noise(4) + 1)
    nats, perplexity = (compare(name, GROUPS, plain, steered) for name in ("cross_entropy", "perplexity"))
    assert perplexity.plain == pytest.approx([math.exp(x) for x in nats.plain])
    expected = math.exp(nats.steered.value) - math.exp(nats.plain.value)
    assert perplexity.difference.value == pytest.approx(expected)
    assert perplexity.difference.low < expected < perplexity.difference.high


def test_a_share_that_no_group_changes_has_a_width():
    same = ratio([0.0] * 30)
    effect = compare("empty_answers", GROUPS, same, same)
    most = clopper_pearson(0, 10).high
    assert effect.difference == (0, -most, most)
    assert effect.reading == "no clear change"
    # A mean of something else has no such bound.
    assert compare("words", GROUPS, same, same).difference == (0, 0, 0)


def test_the_plain_model_is_the_zero_of_metrics_of_the_edit():
    none, some = ratio([0.0] * 30), ratio([0.5] * 15 + [0.0] * 15)
    for name in ("kl", "edited_share"):
        effect = compare(name, GROUPS, none, some)
        assert METRICS[name].of_edit
        assert effect.plain == (0, 0, 0)
        assert effect.difference == effect.steered
    untouched = compare("edited_share", GROUPS, none, none)
    assert untouched.difference.low == 0 < untouched.difference.high
    assert untouched.reading == "no clear change"
    assert compare("kl", GROUPS, none, some).reading == "changed"


def test_readings():
    plain = noise(5)
    more, less = (compare("words", GROUPS, ratio(plain), ratio(plain + shift)) for shift in (1, -1))
    assert (more.reading, less.reading) == ("changed", "changed")
    few = GROUPS[: LEAST_GROUPS - 1]
    small = compare("words", few, ratio(plain[: len(few)]), ratio(plain[: len(few)] + 1))
    assert small.reading == "too few groups"
    enough = [f"g{i}" for i in range(LEAST_GROUPS)]
    assert compare("words", enough, ratio(plain[:6]), ratio(plain[:6] + 1)).reading == "changed"
    empty = compare("dist_1", GROUPS, ratio(plain), Ratio(torch.zeros(30), torch.zeros(30)))
    assert empty.reading == "not measured"
    assert math.isnan(empty.steered.value)


def test_intervals_cover_a_difference_of_zero():
    """Both sides from one distribution: about 95% of the intervals hold 0."""
    n_misses = 0
    for seed in range(300):
        pair = noise(seed, 80).reshape(2, 40) ** 2
        effect = compare("cross_entropy", [str(i) for i in range(40)], ratio(pair[0]), ratio(pair[1]))
        n_misses += effect.reading == "changed"
    # Binomial(300, .05) exceeds 27 once in 3,000 times.
    assert 3 <= n_misses <= 27
