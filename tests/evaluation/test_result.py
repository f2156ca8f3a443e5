"""`Evaluation`: differences, judging again, pooling, the table and the file."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import radiant_lens as rl
from radiant_lens._files import FORMAT_VERSION
from radiant_lens.errors import ArtefactError, InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import Verdict, get_judge, pool
from radiant_lens.evaluation.answers import answer_table, judge_table, verdict_parts
from radiant_lens.evaluation.ratios import condition_parts, intervals, join_parts, make_parts
from radiant_lens.statistics.bounds import bootstrap_ratio

ALL = ["answers", "text", "choice", "diversity", "fluency"]


@pytest.fixture(scope="module")
def small(experiment):
    return experiment.test.head(6)


@pytest.fixture(scope="module")
def plain(model, small):
    return rl.evaluate(model, small, n_samples=2, metrics=ALL, fluency_model=model)


@pytest.fixture(scope="module")
def steered(model, small, steering):
    return rl.evaluate(model, small, steering, n_samples=2, metrics=ALL, fluency_model=model)


def equal(one: rl.Evaluation, other: rl.Evaluation) -> bool:
    """Everything but the metrics, which follow from it and may be NaN."""
    same = one.table.equals(other.table) and one.parts.equals(other.parts)
    return same and one.prompts == other.prompts and one.settings == other.settings


# Parts


def test_a_sum_with_nan_is_nan():
    nan = float("nan")
    parts = make_parts(["a", "b", "a"], {"m": ([1, 2, nan], 1)})
    twice = join_parts([parts, parts])
    assert parts["numerator"].isna().tolist() == twice["numerator"].isna().tolist() == [True, False]
    assert twice["denominator"].tolist() == [4, 2]
    assert all(math.isnan(v) for v in intervals(parts)["m"])


def test_parts_by_hand():
    rows = pd.DataFrame({"group": ["b", "a", "b"], "condition": ["x", "x", "y"]})
    parts = condition_parts(rows, {"m": ([1, 2, 3], 1)})
    assert parts.values.tolist() == [
        ["m", "a", 2, 1],
        ["m", "b", 4, 2],
        ["m/x", "a", 2, 1],
        ["m/x", "b", 1, 1],
        ["m/y", "b", 3, 1],
    ]
    assert intervals(parts)["m"] == bootstrap_ratio(torch.tensor([2.0, 4]), torch.tensor([1.0, 2]))
    perplexity = intervals(make_parts(["a", "b"], {"perplexity/x": ([1, 1], [1, 1])}))["perplexity/x"]
    assert perplexity == pytest.approx((np.e, np.e, np.e))


# Differences


@pytest.mark.parametrize("metric", ["correct", "other/bare", "kl", "mc1", "mc2/bare", "dist_2", "perplexity"])
def test_differences_are_of_the_values(plain, steered, metric):
    change = steered.difference(plain, metric)
    assert change.value == pytest.approx(steered.metrics[metric].value - plain.metrics[metric].value)
    assert change.low <= change.value <= change.high
    back = plain.difference(steered, metric)
    assert back.value == pytest.approx(-change.value)
    assert back.p_value == change.p_value


def test_p_values_of_an_effect_and_of_none(plain, steered):
    # The least p-value of 6 groups is 2 / 2**6.
    assert steered.difference(plain, "kl").p_value == 2 / 64
    assert steered.difference(plain, "mc2").p_value == 2 / 64
    assert plain.difference(plain, "mc2") == (0, 0, 0, 1)


def test_gains_are_differences(plain, steered):
    assert steered.gain(plain) == steered.difference(plain, "correct")
    assert steered.gain(plain, "other", "bare") == steered.difference(plain, "other/bare")
    with pytest.raises(InvalidArgumentError, match="`verdict` must be one of"):
        steered.gain(plain, "true")


def test_gains_under_the_only_condition_are_those_of_all_prompts(model, small):
    bare = rl.Dataset("bare", (), small.bare_prompts, judge="exact", stop=small.stop)
    one, two = (rl.evaluate(model, bare, seed=seed) for seed in (0, 1))
    assert two.gain(one, condition="bare") == two.gain(one)
    with pytest.raises(UnknownNameError, match="'correct/after' is not a known metric of this evaluation"):
        two.gain(one, condition="after")


def test_differences_need_the_same_prompts_groups_and_metrics(model, experiment, small, plain, steered):
    with pytest.raises(InvalidArgumentError, match="same prompts"):
        steered.gain(rl.evaluate(model, experiment.test.head(5)))
    with pytest.raises(UnknownNameError, match="'displacement' is not a known metric of the baseline"):
        steered.difference(plain, "displacement")
    statements = [rl.Dataset("s", small.atoms[:n]) for n in (6, 12)]
    one, two = (rl.evaluate(model, data) for data in statements)
    with pytest.raises(InvalidArgumentError, match="groups are in one alone, such as"):
        one.difference(two, "cross_entropy")


# Another judge


def test_judging_again_generates_nothing(model, small, steered, steering, monkeypatch):
    fresh = rl.evaluate(model, small, steering, n_samples=2, judge="contains", metrics=ALL, fluency_model=model)
    monkeypatch.setattr(model, "forward", None)
    again = steered.rejudge("contains")
    assert again.table.equals(fresh.table)
    assert again.settings == fresh.settings
    assert again.metrics.keys() == fresh.metrics.keys()
    assert all(np.array_equal(again.metrics[m], fresh.metrics[m]) for m in fresh.metrics)
    assert equal(again.rejudge("exact").rejudge("contains"), again)


def test_a_judge_with_scores_gives_more_metrics(steered):
    result = steered.rejudge(lambda prompt, answer: Verdict("correct", len(answer), answer.startswith("the")))
    table = result.table
    assert result.metrics["correct"].value == 1
    assert result.metrics["informative"].value == pytest.approx(table["answer"].str.startswith("the").mean())
    assert result.metrics["score"].value == pytest.approx(table["answer"].str.len().mean())
    longest = table.assign(n=table["answer"].str.len()).groupby("prompt_index")["n"].max()
    assert result.metrics["expected_maximum"].value == pytest.approx(longest.mean())
    assert result.metrics["undesirable_probability"].value == 0
    assert set(steered.metrics) == set(result.rejudge("exact").metrics)
    assert set(result.metrics) > set(steered.metrics)


def test_true_and_informative_by_hand():
    verdicts = iter(
        [
            Verdict("correct", 0.1, True),
            Verdict("correct", 0.2, False),
            Verdict("incorrect", 0.9, True),
            Verdict("correct"),
        ]
    )
    prompts = [rl.Prompt("q", (), (), "g"), rl.Prompt("r", (), (), "h")]
    judge = get_judge(lambda prompt, answer: next(verdicts))
    table = judge_table(answer_table(prompts, [["a", "b"], ["c", "d"]]), prompts, judge)
    metrics = intervals(verdict_parts(table))
    assert metrics["correct"].value == 3 / 4
    # An answer without a score or an informativeness does not count in their means.
    assert metrics["informative"].value == 2 / 3
    assert metrics["true_informative"].value == 1 / 3
    assert metrics["true_times_informative"].value == pytest.approx(3 / 4 * 2 / 3)
    assert metrics["score"].value == pytest.approx(0.4)


def test_judging_without_answers_raises_an_error(model, small):
    with pytest.raises(InvalidArgumentError, match="There are no answers to judge"):
        rl.evaluate(model, small, metrics=["choice"]).rejudge("contains")


# Pooling


def test_pooling_adds_up_groups(model, small, plain):
    other = rl.evaluate(model, small, n_samples=2, metrics=ALL, fluency_model=model, seed=1)
    both = pool([plain, other])
    assert len(both.table) == 2 * len(plain.table)
    assert both.table["run"].tolist() == [0] * len(plain.table) + [1] * len(other.table)
    assert both.metrics["correct"].value == pytest.approx((both.table["verdict"] == "correct").mean())
    mean = (plain.metrics["dist_1"].value + other.metrics["dist_1"].value) / 2
    assert both.metrics["dist_1"].value == pytest.approx(mean)
    # The same question is one cluster, however often it is asked.
    assert both.parts.groupby("metric").size().eq(plain.parts.groupby("metric").size()).all()
    assert both.metrics["mc2"] == pytest.approx(plain.metrics["mc2"])
    assert both.settings == {"pooled": [plain.settings, other.settings]}
    assert pool([plain]).metrics == plain.metrics
    assert both.rejudge("exact").table.equals(both.table)
    assert both.rejudge("exact").metrics == both.metrics


def test_pooled_evaluations_compare(model, small, plain, steered, steering):
    again = {"n_samples": 2, "metrics": ALL, "fluency_model": model, "seed": 1}
    bases = [plain, rl.evaluate(model, small, **again)]
    with pytest.raises(InvalidArgumentError, match=r"must have the same metrics; not all have \['displacement'\]"):
        pool([plain, steered])
    better = pool([steered, rl.evaluate(model, small, steering, **again)])
    assert better.difference(pool(bases), "correct").value == pytest.approx(
        better.metrics["correct"].value - pool(bases).metrics["correct"].value
    )


def test_pooling_no_evaluation_raises_an_error():
    with pytest.raises(InvalidArgumentError, match="`evaluations` must hold at least one"):
        pool([])


# The table


def test_metrics_that_are_not_numbers_are_named_in_the_table(steered):
    def without(metric: str, side: str, value: float) -> rl.Evaluation:
        parts = steered.parts.copy()
        parts.loc[parts["metric"] == metric, side] = value
        return rl.Evaluation(steered.table, parts, steered.prompts, steered.settings)

    for metric, side, value, words in (
        ("displacement", "denominator", 0, "no edit"),
        ("displacement", "numerator", math.nan, "not measured"),
        ("kl", "numerator", math.nan, "not measured"),
        ("kl", "denominator", 0, "not measured"),
    ):
        broken = without(metric, side, value)
        assert f"| {metric} | {words} |" in broken.to_markdown()
        assert f"{metric} {words}" in repr(broken)
        assert "nan" not in broken.to_markdown() + repr(broken)
    assert "no edit" not in steered.to_markdown() and "not measured" not in steered.to_markdown()


# On disk


def _says_little(prompt: rl.Prompt, answer: str) -> Verdict:
    return Verdict("other", 1 / 3) if "is" in answer else Verdict("correct", None, True)


def test_the_round_trip_is_exact(steered, tmp_path):
    for name, evaluation in {
        "plain": steered,
        "scores": steered.rejudge("overlap"),
        "gaps": steered.rejudge(_says_little),
        "pooled": pool([steered, pool([steered])]),
    }.items():
        path = evaluation.save(tmp_path / "new" / f"{name}.json")
        loaded = rl.Evaluation.load(path)
        assert equal(loaded, evaluation)
        assert loaded.table.dtypes.equals(evaluation.table.dtypes)
        assert loaded.metrics == evaluation.metrics
        assert not equal(loaded, steered.rejudge("contains"))


def test_the_round_trip_without_answers(model, small, tmp_path):
    evaluation = rl.evaluate(model, small, metrics=["choice"])
    assert equal(rl.Evaluation.load(evaluation.save(tmp_path / "e.json")), evaluation)


def test_damaged_files_raise_errors(plain, tmp_path):
    path = plain.save(tmp_path / "e.json")
    whole = path.read_text()
    for text, words in (
        (whole[:-40], "cannot be read"),
        (whole.replace('"kind": "evaluation"', '"kind": "steering"'), "is not a saved evaluation"),
        (whole.replace(f'"format": {FORMAT_VERSION}', '"format": 99'), "has format 99; .* update radiant-lens"),
        (json.dumps({k: v for k, v in json.loads(whole).items() if k != "table"}), "is damaged: KeyError"),
        (whole.replace('"condition"', '"state"', 1), "is damaged: TypeError"),
    ):
        assert text != whole
        path.write_text(text)
        with pytest.raises(ArtefactError, match=words):
            rl.Evaluation.load(path)
    with pytest.raises(ArtefactError, match="cannot be read: .*No such file"):
        rl.Evaluation.load(tmp_path / "nowhere.json")
