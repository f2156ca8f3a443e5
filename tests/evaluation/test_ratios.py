"""Intervals of shares and of products: coverage in simulation, exact bounds where all groups agree, permutations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import radiant_lens as rl
from radiant_lens.evaluation import Evaluation, Verdict, get_judge, pool
from radiant_lens.evaluation.answers import answer_table, judge_table, verdict_parts
from radiant_lens.evaluation.products import with_products
from radiant_lens.evaluation.ratios import difference, intervals, make_parts
from radiant_lens.statistics.bounds import bootstrap_ratio, clopper_pearson, share_interval
from radiant_lens.statistics.paired import GroupSums, paired_difference


def shares(values: list[float], metric: str = "correct", denominator: float = 1) -> pd.DataFrame:
    return make_parts([f"g{i:03d}" for i in range(len(values))], {metric: (values, denominator)})


# Shares


@pytest.mark.parametrize("metric", ["correct", "other/bare", "undesirable_probability", "mc1", "dist_1"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_has_an_exact_bound_where_all_groups_agree(metric, value):
    interval = intervals(shares([value] * 20, metric))[metric]
    exact = clopper_pearson(int(20 * value), 20)
    assert interval == pytest.approx((value, exact.low, exact.high))
    assert interval.high - interval.low == pytest.approx(0.168, abs=1e-3)


@pytest.mark.parametrize("metric", ["kl", "cross_entropy", "score", "expected_maximum", "displacement"])
def test_metrics_that_are_not_shares_keep_the_bootstrap(metric):
    """A KL divergence of 0 in every group is not a share of 0, though it lies between 0 and 1."""
    assert intervals(shares([0.0] * 20, metric))[metric] == (0, 0, 0)
    values = [0.1, 0.5, 0.9, 0.2]
    expected = bootstrap_ratio(torch.tensor(values, dtype=torch.float64), torch.ones(4))
    assert intervals(shares(values, metric))[metric] == expected


def test_no_edits_are_certain_without_a_steering_and_uncertain_with_one():
    plain = shares([0.0] * 20, "edited_share")
    assert intervals(plain)["edited_share"] == (0, 0, 0)
    steered = pd.concat([plain, shares([0.0] * 20, "displacement", 0)])
    assert intervals(steered)["edited_share"].high > 0.1


def test_numerators_beyond_their_denominators_are_no_shares():
    values = [0.5, 2.0, 0.0]
    assert intervals(shares(values))["correct"] == bootstrap_ratio(torch.tensor(values), torch.ones(3))
    assert all(math.isnan(x) for x in intervals(shares([0.5, math.nan]))["correct"])


@pytest.mark.parametrize("n_groups", [20, 65, 400])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.5, 0.97, 0.995])
def test_intervals_of_shares_cover(share, n_groups):
    """At least 93%: near 0 and 1 more, since exact bounds are conservative, and in the middle at most 97%."""
    rng = np.random.default_rng(0)
    n_samples = 200
    covered = 0
    for _ in range(n_samples):
        events = torch.tensor((rng.random(n_groups) < share).astype(float))
        # As `intervals` calls it, with fewer resamples.
        interval = share_interval(events, torch.ones(n_groups, dtype=torch.float64), n_resamples=500)
        covered += interval.low <= share <= interval.high
    assert intervals(shares(events.tolist()))["correct"] == share_interval(events, torch.ones(n_groups))
    # Three standard errors of the simulation below the least coverage.
    assert covered / n_samples >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / n_samples)


# Products


def judged(rows: list[tuple[str, str, bool]]) -> pd.DataFrame:
    """Parts of answers, each with its group, verdict and informativeness."""
    verdicts = iter([Verdict(verdict, None, informative) for _, verdict, informative in rows])
    prompts = [rl.Prompt("q", (), (), group) for group, _, _ in rows]
    judge = get_judge(lambda prompt, answer: next(verdicts))
    return verdict_parts(judge_table(answer_table(prompts, [["a"]] * len(prompts)), prompts, judge))


ROWS = [
    ("a", "correct", True),
    ("b", "correct", False),
    ("c", "incorrect", True),
    ("d", "incorrect", True),
    ("e", "correct", True),
]


def test_true_times_informative_is_the_product_of_the_means():
    metrics = intervals(judged(ROWS))
    assert metrics["true_times_informative"].value == pytest.approx(3 / 5 * 4 / 5)
    assert metrics["true_informative"].value == pytest.approx(2 / 5)
    assert metrics["true_times_informative"].low < 12 / 25 < metrics["true_times_informative"].high
    names = list(metrics)
    assert names.index("true_times_informative") == names.index("informative") + 1


def test_the_interval_of_a_product_draws_both_factors_together():
    """If the factors are the same, the product is the square, in every resample and so at the ends too."""
    rows = [(f"g{i}", "correct" if i % 3 else "incorrect", bool(i % 3)) for i in range(30)]
    parts = judged(rows)
    sums = parts[parts["metric"] == "correct"].sort_values("group")
    share = bootstrap_ratio(torch.tensor(sums["numerator"].to_numpy()), torch.tensor(sums["denominator"].to_numpy()))
    assert intervals(parts)["true_times_informative"] == pytest.approx([x**2 for x in share])


def test_a_product_has_exact_bounds_where_all_groups_agree():
    interval = intervals(judged([(f"g{i}", "correct", True) for i in range(20)]))["true_times_informative"]
    low = clopper_pearson(20, 20, confidence=0.975).low
    assert interval == pytest.approx((1, low**2, 1))


def test_differences_of_products():
    better = [(group, "correct", informative) for group, _, informative in ROWS]
    change = difference(judged(better), judged(ROWS), "true_times_informative")
    assert change.value == pytest.approx(4 / 5 - 12 / 25)
    assert change.low <= change.value <= change.high
    # Two groups differ, both in one direction: of the four ways to exchange them two are as extreme.
    assert change.p_value == 0.5
    assert difference(judged(ROWS), judged(ROWS), "true_times_informative") == (0, 0, 0, 1)
    back = difference(judged(ROWS), judged(better), "true_times_informative")
    assert (back.value, back.p_value) == (-change.value, change.p_value)


@pytest.mark.parametrize("n_groups", [8, 40])
def test_a_product_with_a_factor_of_one_is_tested_as_its_other_factor(n_groups):
    """Against `paired_difference`, with all exchanges and with drawn ones."""
    rng = np.random.default_rng(1)
    sides = [judged([(f"g{i:02d}", v, True) for i, v in enumerate(rng.choice(["correct", "other"], n_groups, p=p))])
             for p in ([0.9, 0.1], [0.4, 0.6])]  # fmt: skip
    correct = [side[side["metric"] == "correct"].sort_values("group") for side in sides]
    sums = [GroupSums(*(torch.tensor(c[s].to_numpy()) for s in ("numerator", "denominator"))) for c in correct]
    assert difference(*sides, "true_times_informative") == pytest.approx(paired_difference(*sums))


def test_a_product_without_answers_is_not_a_number():
    parts = judged(ROWS)
    parts.loc[parts["metric"] == "informative", "denominator"] = 0
    assert all(math.isnan(x) for x in intervals(parts)["true_times_informative"])
    assert all(math.isnan(x) for x in difference(parts, judged(ROWS), "true_times_informative"))


def test_products_need_all_their_factors_under_the_same_condition():
    assert with_products(["informative"]) == ["informative"]
    assert with_products(["correct/x", "informative/y"]) == ["correct/x", "informative/y"]
    assert with_products(["correct/x", "informative/x"])[-1] == "true_times_informative/x"


def test_products_are_saved_loaded_and_pooled(model, experiment, tmp_path):
    def says_something(prompt: rl.Prompt, answer: str) -> Verdict:
        return Verdict("correct" if "a" in answer.split() else "incorrect", None, len(answer) % 2 == 0)

    small = experiment.test.head(4)
    one, two = (rl.evaluate(model, small, judge=says_something, metrics=["answers"], seed=seed) for seed in (0, 1))
    for evaluation in (one, pool([one, two])):
        table = evaluation.table
        product = (table["verdict"] == "correct").mean() * table["informative"].mean()
        assert evaluation.metrics["true_times_informative"].value == pytest.approx(product)
        assert "true_times_informative/bare" in evaluation.metrics
        assert Evaluation.load(evaluation.save(tmp_path / "e.json")).metrics == evaluation.metrics
        assert "| true_times_informative |" in evaluation.to_markdown()
    assert one.difference(two, "true_times_informative").value == pytest.approx(
        one.metrics["true_times_informative"].value - two.metrics["true_times_informative"].value
    )
    assert "true_times_informative" not in one.rejudge("exact").metrics
