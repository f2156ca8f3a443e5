"""Continuations under the steerings of a benchmark: the numbers of `evaluate`, halves, what is kept, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens._files import load_json
from radiant_lens.datasets.few_shot import question_names
from radiant_lens.datasets.records import Prompt
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import Verdict, score_statements
from radiant_lens.studies.benchmark import Benchmark, Continuations

N_SAMPLES = 3
METRICS = ("incorrect", "undesirable_probability", "expected_maximum", "dist_2")


def rates_vowels(prompt: Prompt, answer: str) -> Verdict:
    """A judge with scores: the share of vowels; none for an answer that begins with an "a"."""
    share = sum(letter in "aeiou" for letter in answer) / max(1, len(answer))
    return Verdict("incorrect" if share > 0.35 else "correct", None if answer.strip().startswith("a") else share)


def no_score(prompt: Prompt, answer: str) -> str:
    return "incorrect" if "a" in answer else "correct"


@pytest.fixture(scope="module")
def prompts(facts) -> rl.Dataset:
    """Prompts of 24 groups, of which the benchmark's own data have some, and one group has several."""
    bare = replace(facts.head(24), contexts=None, name="beginnings")
    first = bare.bare_prompts[0]
    more = [replace(first, text=f"{first.text} So"), replace(first, text=f"{first.text} And")]
    return replace(bare, bare_prompts=(*bare.bare_prompts, *more))


@pytest.fixture(scope="module")
def settings(facts):
    return {"data": replace(facts, contexts=None).head(40), "budgets": (0.05,), "n_test": 8, "n_answered": 0}


@pytest.fixture(scope="module")
def finished(model, settings, prompts, tmp_path_factory):
    bench = Benchmark(
        model,
        **settings,
        arms=["prompt", "mean shift", "control: answers alone"],
        continuations=Continuations(prompts, 5, N_SAMPLES, rates_vowels),
        out=tmp_path_factory.mktemp("continued"),
    )
    return bench, bench.run()


def test_each_fold_continues_prompts_that_it_has_not_fitted(finished):
    bench, result = finished
    table = result.continuations
    own = [set(table[table["fold"] == fold]["group"]) for fold in (0, 1)]
    assert all(len(groups) == 5 for groups in own)
    assert not own[0] & own[1]
    for fold in (0, 1):
        parts = bench.make_fold(fold)
        fitted = (*parts.train.prompts, *parts.validation.prompts)
        assert not question_names(bench.continued(fold)) & question_names(fitted)
    # What stands before prompts, or reads answers alone, is no steering.
    assert list(table["arm"].unique()) == ["none", "mean shift"]


@pytest.mark.parametrize("n_groups", [5, None])
def test_the_numbers_are_those_of_evaluate(model, finished, n_groups):
    bench, _ = finished
    bench = replace(
        bench, arms=["control: answers alone"], continuations=replace(bench.continuations, n_groups=n_groups)
    )
    several = False
    for fold in (0, 1):
        own = bench.continued(fold)
        data = replace(bench.continuations.data, atoms=(), bare_prompts=tuple(own))
        several |= len(own) > len({prompt.group for prompt in own})
        sampled = {"n_samples": N_SAMPLES, "max_new_tokens": 20, "judge": rates_vowels}
        expected = rl.evaluate(model, data, **sampled, metrics=["answers", "diversity"]).metrics
        (row,) = replace(bench, folds=[fold]).run().continued().to_dict("records")
        assert [row[name] for name in METRICS] == pytest.approx([expected[name].value for name in METRICS])
    # Of all groups, one has several prompts.
    assert several or n_groups is not None


def test_changes_are_paired_over_the_groups(finished):
    _, result = finished
    plain, steered = result.continued().to_dict("records")
    assert plain["n_groups"] == steered["n_groups"] == 10
    for name in METRICS:
        change = steered[f"{name}_change"]
        assert plain[f"{name}_change"].value == 0
        assert change.value == pytest.approx(steered[name] - plain[name])
        assert change.low <= change.value <= change.high
    assert steered["expected_maximum_change"].value != 0
    assert plain["kl"] == 0 < steered["kl"] == pytest.approx(steered["kl_change"].value)
    assert "expected maximum" in result.to_markdown()
    assert "nan" not in result.to_markdown().split("\n\n")[1]


def test_the_cost_is_the_kl_on_the_unsteered_answers(model, finished):
    bench, _ = finished
    # All prompts of the half, so that one group has several.
    bench = replace(bench, arms=["mean shift"], continuations=replace(bench.continuations, n_groups=None))
    table = bench.run().continuations
    rows = table[table["metric"] == "kl"].set_index(["fold", "arm", "group"])
    choices = {load_json(file, "benchmark choice")["fold"]: file for file in Path(bench.out).glob("*/choice.json")}
    assert set(choices) == {0, 1}
    several = False
    for fold, file in choices.items():
        steering = rl.Steering.load(file.parent / "kl-0.05")
        prompts = bench.continued(fold)
        answers = bench.continuations.answers(model, prompts, None, bench.seed)
        several |= len(prompts) > len({prompt.group for prompt in prompts})
        for group in {prompt.group for prompt in prompts}:
            own = [p.answered(a) for p, samples in zip(prompts, answers) for a in samples if a and p.group == group]
            scored = score_statements(model, own, steering)
            row = rows.loc[(fold, "mean shift", group)]
            assert row["numerator"] == pytest.approx(float(scored.kl.sum()), rel=1e-3)
            assert row["denominator"] == float(scored.n_tokens.sum()) == rows.loc[(fold, "none", group), "denominator"]
            assert rows.loc[(fold, "none", group), "numerator"] == 0
    assert several


def test_answers_are_kept_and_judged_again(finished, monkeypatch):
    bench, result = finished
    sampled: list[int] = []

    def answers(self, model, prompts, steering, seed):
        sampled.append(len(prompts))
        return [["e"] * self.n_samples for _ in prompts]

    monkeypatch.setattr(Continuations, "answers", answers)
    pd_equal = bench.run().continuations.equals(result.continuations)
    # Another judge reads the same answers, whatever its name is.
    always = replace(bench.continuations, judge=lambda prompt, answer: Verdict("incorrect", 1.0))
    never = replace(bench.continuations, judge=lambda prompt, answer: Verdict("correct", 0.0))
    rates = [replace(bench, continuations=c).run().continued()["expected_maximum"].tolist() for c in (always, never)]
    assert (pd_equal, rates, sampled) == (True, [[1.0, 1.0], [0.0, 0.0]], [])
    # What the answers depend on is part of the key.
    plain = replace(bench, arms=["control: answers alone"], folds=[0])
    for change in ({"n_samples": 2}, {"n_groups": 4}, {"data": bench.data}):
        replace(plain, continuations=replace(bench.continuations, **change)).run()
    replace(plain, seed=1).run()
    assert len(sampled) == 4


def test_a_judge_without_scores_has_no_maximum(model, settings, prompts):
    continuations = Continuations(prompts, 2, N_SAMPLES, no_score)
    result = Benchmark(model, **settings, arms=["control: answers alone"], continuations=continuations, folds=[0]).run()
    (row,) = result.continued().to_dict("records")
    assert "expected_maximum" not in row
    assert 0 <= row["undesirable_probability"] <= 1
    json.dumps(row, allow_nan=False)
    assert "nan" not in result.to_markdown().split("\n\n")[1]


def test_groups_without_prompts_are_not_drawn(model, settings, facts, prompts):
    data = replace(facts, contexts=None)
    few = replace(data, bare_prompts=data.bare_prompts[-6:], name="mostly statements")
    bench = Benchmark(model, **settings, continuations=Continuations(few, 3, 2, no_score))
    assert [len({prompt.group for prompt in bench.continued(fold)}) for fold in (0, 1)] == [3, 3]


def test_long_prompts_are_skipped_before_anything_is_computed(model, settings, prompts):
    long = replace(prompts.bare_prompts[-1], text="is " * 245, group="long")
    data = replace(prompts, bare_prompts=(*prompts.bare_prompts, long))
    bench = Benchmark(model, **settings, continuations=Continuations(data, None, 2, no_score))
    with pytest.warns(UserWarning, match="longer"):
        assert "long" not in {prompt.group for fold in (0, 1) for prompt in bench.continued(fold)}


def test_without_continuations_there_is_no_table(model, settings):
    result = Benchmark(model, **settings, arms=["control: answers alone"], folds=[0]).run()
    assert result.continuations is None
    assert result.continued().empty
    assert "expected maximum" not in result.to_markdown()


def test_refusals_come_first(model, settings, prompts):
    without = replace(
        prompts, bare_prompts=tuple(replace(p, correct_answers=(), incorrect_answers=()) for p in prompts.bare_prompts)
    )
    for arguments, words in (
        ({"data": prompts, "n_samples": 0}, "n_samples"),
        ({"data": prompts, "n_groups": 0}, "n_groups"),
        ({"data": "prompts.txt"}, "continuations"),
        ({"data": without, "judge": "contains"}, "has none|have none"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            Continuations(**arguments)
    with pytest.raises(UnknownNameError, match="judge"):
        Continuations(prompts, judge="rude")
    with pytest.raises(DataError, match="at least two groups"):
        Continuations(prompts.head(1))
    with pytest.raises(InvalidArgumentError, match="continuations"):
        Benchmark(model, **settings, continuations=prompts)
    known = Benchmark(model, **settings, continuations=Continuations(settings["data"].head(2), judge=no_score))
    with pytest.raises(DataError, match="Every question"):
        known.run()
