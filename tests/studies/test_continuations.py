"""Continuations under the steerings of a benchmark: the numbers of `evaluate`, halves, what is kept, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.datasets.records import Prompt
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import Verdict
from radiant_lens.studies.benchmark import Benchmark
from radiant_lens.studies.benchmark import benchmark as module
from radiant_lens.studies.benchmark.continuations import by_group

N_SAMPLES = 3


def rates_vowels(prompt: Prompt, answer: str) -> Verdict:
    """A judge with scores: the share of vowels."""
    share = sum(letter in "aeiou" for letter in answer) / max(1, len(answer))
    return Verdict("incorrect" if share > 0.35 else "correct", share)


def no_score(prompt: Prompt, answer: str) -> str:
    return "incorrect" if "a" in answer else "correct"


@pytest.fixture(scope="module")
def prompts(facts) -> rl.Dataset:
    return replace(facts.head(12), contexts=None, name="beginnings")


@pytest.fixture(scope="module")
def settings(facts):
    arms = ["prompt", "mean shift", "control: answers alone"]
    data = replace(facts, contexts=None).head(40)
    return {"data": data, "arms": arms, "budgets": (0.05,), "n_test": 8, "n_samples": N_SAMPLES}


@pytest.fixture(scope="module")
def finished(model, settings, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("continued")
    bench = Benchmark(model, **settings, continuations=prompts, judge=rates_vowels, n_answered=4, out=out)
    return bench, bench.run()


def test_each_fold_continues_prompts_of_its_own(finished):
    _, result = finished
    table = result.continuations
    own = [set(table[table["fold"] == fold]["group"]) for fold in (0, 1)]
    assert [len(groups) for groups in own] == [4, 4]
    assert not own[0] & own[1]
    # What stands before prompts, or reads answers alone, is no steering.
    assert list(table["arm"].unique()) == ["none", "mean shift"]


def test_the_numbers_are_those_of_evaluate(model, finished):
    bench, result = finished
    for fold in (0, 1):
        part = bench.continuer(fold).data
        sampled = {"n_samples": N_SAMPLES, "max_new_tokens": 20, "judge": rates_vowels, "metrics": ["diversity"]}
        expected = rl.evaluate(model, part, **sampled).metrics
        rows = result.continuations
        own = rows[(rows["fold"] == fold) & (rows["arm"] == "none")]
        assert own["worst"].mean() == pytest.approx(expected["expected_maximum"].value)
        assert own["undesirable"].mean() == pytest.approx(expected["undesirable_probability"].value)


def test_changes_are_paired_over_the_groups(finished):
    _, result = finished
    plain, steered = result.continued().to_dict("records")
    assert plain["n_groups"] == steered["n_groups"] == 8
    assert plain["maximum_change"].value == 0
    change = steered["maximum_change"]
    assert change.value == pytest.approx(steered["expected_maximum"] - plain["expected_maximum"])
    assert change.low <= change.value <= change.high
    assert change.value != 0
    assert "expected maximum" in result.to_markdown()


def test_finished_continuations_are_not_made_again(finished, monkeypatch):
    bench, result = finished
    monkeypatch.setattr(module, "Continuer", None)
    again = bench.run()
    assert again.continuations.equals(result.continuations)
    # All that they depend on is part of the key.
    for change in ({"judge": no_score}, {"n_samples": 2}, {"n_answered": 3}, {"continuations": bench.data}):
        with pytest.raises(TypeError):
            replace(bench, **change).run()


def test_a_judge_without_scores_has_no_maximum(model, settings, prompts):
    bench = Benchmark(model, **{**settings, "arms": ["mean shift"]}, continuations=prompts, judge=no_score, folds=[0])
    result = replace(bench, n_answered=2).run()
    assert result.continued()["expected_maximum"].isna().all()
    assert result.continued()["undesirable_probability"].notna().all()
    json.dumps(result.continuations.to_dict("records"))
    assert "its change" in result.to_markdown()


def test_prompts_of_one_group_are_one_line(prompts):
    rows = [
        {"fold": 0, "arm": "none", "budget": None, "group": "a", "undesirable": value, "worst": value}
        for value in (0.0, 1.0)
    ]
    (line,) = by_group(rows).to_dict("records")
    assert line["undesirable"] == line["worst"] == 0.5


def test_without_continuations_there_is_no_table(model, settings):
    result = Benchmark(model, **{**settings, "arms": ["mean shift"]}, folds=[0], n_answered=0).run()
    assert result.continuations is None
    assert result.continued().empty
    assert "expected maximum" not in result.to_markdown()


def test_refusals_come_first(model, settings, prompts):
    with pytest.raises(InvalidArgumentError, match="n_samples"):
        Benchmark(model, **{**settings, "n_samples": 0}, continuations=prompts)
    with pytest.raises(UnknownNameError, match="judge"):
        Benchmark(model, **settings, continuations=prompts, judge="rude")
    with pytest.raises(DataError, match="at least two groups"):
        Benchmark(model, **settings, continuations=prompts.head(1))
    with pytest.raises(InvalidArgumentError, match="continuations"):
        Benchmark(model, **settings, continuations="prompts.txt")
