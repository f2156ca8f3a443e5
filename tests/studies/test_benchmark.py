"""`Benchmark` on the embedded model: equal KL, gates chosen on validation, controls, resumption."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import radiant_lens as rl
from radiant_lens._files import load_json, save_json
from radiant_lens.analysis.strength import desirable_statements, text_kl
from radiant_lens.errors import (
    ArtefactError,
    ConvergenceError,
    DataError,
    InvalidArgumentError,
    LeakageError,
    NothingToEditError,
    UnknownNameError,
)
from radiant_lens.evaluation import score_choices, score_statements
from radiant_lens.studies.benchmark import ARMS, Benchmark, BenchmarkResult
from radiant_lens.studies.benchmark.arms import SteeringArm, TextArm, few_shot, prompted
from radiant_lens.studies.benchmark.choice import Choice
from radiant_lens.studies.benchmark.scores import Scorer
from radiant_lens.studies.benchmark.style import score_answers_alone, with_swapped_answers

NAMES = ("mean shift", "least KL", "control: shuffled labels")


@pytest.fixture(scope="module")
def bare(facts):
    return replace(facts, contexts=None).head(60)


@pytest.fixture(scope="module")
def finished(model, bare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    benchmark = Benchmark(model, bare, arms=NAMES, budgets=(0.02, 0.08), n_test=15, out=folder)
    return benchmark, benchmark.run()


def test_folds_test_each_other_s_groups(model, bare):
    benchmark = Benchmark(model, bare)
    folds = [benchmark.make_fold(i) for i in (0, 1)]
    for fold in folds:
        parts = (fold.train.groups, fold.validation.groups, fold.test.groups)
        assert sum(map(len, parts)) == len(frozenset().union(*parts)) == len(bare.groups)
    assert not folds[0].test.groups & folds[1].test.groups


def test_strengths_meet_the_budgets_on_validation_text(finished):
    _, result = finished
    steered = result.questions[result.questions["budget"].notna()]
    assert set(steered["budget"]) == {0.02, 0.08}
    assert ((steered["validation_kl"] / steered["budget"] - 1).abs() < 0.04).all()
    assert set(steered["gate"]) <= {"none", "head"}


def test_the_table_holds_paired_gains_over_both_folds(finished):
    _, result = finished
    table = result.to_dataframe().set_index(["arm", "budget"])
    assert (table["n_folds"] == 2).all()
    plain = result.questions[result.questions["arm"] == "none"].set_index(["fold", "group"])
    for (arm, budget), row in table.iterrows():
        own = result.questions[(result.questions["arm"] == arm)]
        own = own[own["budget"].isna() if pd.isna(budget) else own["budget"] == budget].set_index(["fold", "group"])
        assert row["mc2"] == pytest.approx(own["mc2"].mean())
        assert row["gain"].value == pytest.approx((own["mc2"] - plain.loc[own.index, "mc2"]).mean())
        assert row["gain"].low <= row["gain"].value <= row["gain"].high
    assert table.loc[("least KL", 0.08), "gain"].low > 0
    assert table.loc[("control: shuffled labels", 0.08), "gain"].value < table.loc[("mean shift", 0.08), "gain"].value


def test_the_rows_are_those_of_the_public_functions(model, finished):
    benchmark, result = finished
    fold = benchmark.make_fold(0)
    rows = result.questions[(result.questions["arm"] == "none") & (result.questions["fold"] == 0)].set_index("group")
    expected = score_choices(model, fold.test.prompts).groupby("group")["mc2"].mean()
    assert (rows["mc2"] - expected.loc[rows.index]).abs().max() < 1e-6
    scored = score_statements(model, desirable_statements(fold.test))
    assert rows["log_prob"].sum() == pytest.approx(float(scored.log_prob.sum()), rel=1e-5)


def test_gains_under_each_condition_of_the_prompts(model, facts):
    test = facts.head(6)
    own = score_choices(model, test.prompts)
    rows = pd.DataFrame(Scorer(model, test, 0, 0).steered(None)).set_index("group")
    for condition, part in own.groupby("condition"):
        expected = part.groupby("group")["mc2"].mean()
        assert (rows[f"mc2/{condition}"] - expected.loc[rows.index]).abs().max() < 1e-6
    place = {"data": "tiny-facts", "fold": 0, "gate": "", "seconds": 0.0}
    plain = rows.reset_index().assign(arm="none", budget=None, **place)
    raised = plain.assign(arm="raised", budget=0.1, **{"mc2/bare": plain["mc2/bare"] + 0.1})
    # Answers alone have no conditions.
    alone = plain.drop(columns=[c for c in plain if c.startswith("mc2/")]).assign(arm="alone")
    result = BenchmarkResult("tiny-facts", pd.concat([plain, raised, alone], ignore_index=True))
    table = result.to_dataframe().set_index("arm")
    assert table.loc["raised", "gain/bare"].value == pytest.approx(0.1)
    assert table.loc["raised", "gain/after_undesirable"].value == pytest.approx(0)
    assert table.loc["none", "mc2/bare"] == pytest.approx(plain["mc2/bare"].mean())
    assert pd.isna(table.loc["alone", "mc2/bare"])
    assert "gain, after undesirable" in result.to_markdown()


def test_finished_arms_are_not_computed_again(finished, monkeypatch):
    benchmark, result = finished
    monkeypatch.setattr(Scorer, "steered", lambda *_: pytest.fail("computed again"))
    again = benchmark.run()
    pd.testing.assert_frame_equal(again.questions, result.questions)
    with pytest.raises(pytest.fail.Exception):
        replace(benchmark, n_test=14).run()


def test_steerings_are_kept_and_tested_on_other_tasks(model, finished, monkeypatch):
    benchmark, result = finished
    other = replace(rl.load_dataset("tiny-tone").head(60), contexts=None)
    # The steerings lie in the folder: nothing is fitted again, and the rows of the task itself stay.
    monkeypatch.setattr("radiant_lens.studies.benchmark.fold_run.choose", lambda *_: pytest.fail("fitted again"))
    both = replace(benchmark, transfer=[other], n_test=14).run()
    assert list(both.questions["data"].unique()) == ["tiny-facts", "tiny-tone"]
    own, moved = (part for _, part in both.questions.groupby("data"))
    assert set(own["group"]) < set(result.questions["group"])
    assert moved.groupby(["fold", "arm"])["group"].nunique().eq(14).all()
    # Folds test different groups of the other task too.
    assert not set(moved[moved["fold"] == 0]["group"]) & set(moved[moved["fold"] == 1]["group"])
    # What is kept is what was scored.
    kept = {tuple(load_json(f, "benchmark choice")[k] for k in ("arm", "fold")): f for f in _files(benchmark)}
    assert len(kept) == 2 * len(NAMES)
    steering = rl.Steering.load(kept["least KL", 0].parent / "kl-0.08")
    rows = pd.DataFrame(Scorer(model, benchmark.make_fold(0).test, 0, 0).steered(steering)).set_index("group")
    scored = result.questions[(result.questions[["arm", "fold", "budget"]] == ["least KL", 0, 0.08]).all(axis=1)]
    assert (rows["mc2"] - scored.set_index("group")["mc2"]).abs().max() < 1e-6


def _files(benchmark):
    return Path(benchmark.out).glob("*/choice.json")


def test_a_limit_draws_groups_and_does_not_take_the_first_by_name(model, bare):
    all_of_them = Benchmark(model, bare).make_fold(0).test
    drawn = Benchmark(model, bare, n_test=10).make_fold(0).test
    assert len(drawn.groups) == 10 and drawn.groups < all_of_them.groups
    assert drawn.groups != all_of_them.head(10).groups
    assert drawn.groups == Benchmark(model, bare, n_test=10).make_fold(0).test.groups
    assert all_of_them.sample(10**6).groups == all_of_them.groups
    whole, part = (Benchmark(model, bare, n_train=n).make_fold(0) for n in (None, 10))
    assert len(part.train.groups) == 10 and part.train.groups < whole.train.groups
    assert (part.validation.groups, part.test.groups) == (whole.validation.groups, whole.test.groups)


def test_markdown_has_a_line_for_each_arm_and_budget(finished):
    _, result = finished
    lines = result.to_markdown().splitlines()
    assert len(lines) == 2 + 1 + 2 * len(NAMES)
    assert len({line.count("|") for line in lines}) == 1
    assert repr(result) == "BenchmarkResult('tiny-facts': 3 arms, 2 folds, 30 test questions)"
    assert isinstance(result, BenchmarkResult)


def test_swapped_answers_belong_to_another_question(bare):
    swapped = with_swapped_answers(bare)
    assert [p.text for p in swapped.prompts] == [p.text for p in bare.prompts]
    for i, prompt in enumerate(swapped.prompts):
        assert prompt.correct_answers == bare.prompts[(i + 7) % len(bare.prompts)].correct_answers


def test_prompts_without_both_kinds_of_answers_have_no_style(model, bare):
    some = replace(bare.head(20), contexts=None)
    prompts = [replace(p, incorrect_answers=()) if i % 3 == 0 else p for i, p in enumerate(some.prompts)]
    patchy = replace(some, atoms=(), bare_prompts=tuple(prompts))
    swapped = with_swapped_answers(patchy).prompts
    for i, (before, after) in enumerate(zip(prompts, swapped)):
        assert after.has_choices == before.has_choices == (i % 3 > 0)
    rows = pd.DataFrame(Scorer(model, replace(patchy, atoms=some.statements), 0, 0).steered(None))
    assert len(rows) == sum(i % 3 > 0 for i in range(len(prompts))) and (rows["swapped_mc2"] > 0).all()


@pytest.mark.parametrize("n", [2, 7, 14])
def test_answers_come_from_another_group_whatever_their_number(bare, n):
    few = bare.head(n)
    for before, after in zip(few.prompts, with_swapped_answers(few).prompts):
        donors = [p.group for p in few.prompts if p.correct_answers == after.correct_answers]
        assert before.group not in donors
    with pytest.raises(DataError, match="has one group"):
        with_swapped_answers(bare.head(1))


def test_style_is_the_gain_under_other_answers_and_the_rest_is_beyond(finished):
    _, result = finished
    table = result.to_dataframe().set_index(["arm", "budget"])
    questions = result.questions.set_index(["fold", "group"])
    plain = questions[questions["arm"] == "none"]
    own = questions[(questions["arm"] == "mean shift") & (questions["budget"] == 0.08)]
    row = table.loc[("mean shift", 0.08)]
    assert row["style"].value == pytest.approx((own["swapped_mc2"] - plain.loc[own.index, "swapped_mc2"]).mean())
    assert row["style"].value != 0
    assert row["beyond_style"].value == pytest.approx(row["gain"].value - row["style"].value)


def test_questions_that_were_fitted_are_not_tested_in_another_task(model, bare):
    other = replace(bare.head(50), name="other")
    benchmark = Benchmark(model, bare, transfer=[other])
    for number in (0, 1):
        fold = benchmark.make_fold(number)
        tested = benchmark.test_part(other, number)
        assert tested.groups and not tested.groups & (fold.train.groups | fold.validation.groups)
    fitted = replace(benchmark.make_fold(0).train, name="the same")
    with pytest.raises(DataError, match="Every question of 'the same' is among those on which 'tiny-facts' is fitted"):
        benchmark.test_part(fitted, 0)
    # Before anything is fitted or scored.
    with pytest.raises(DataError, match="Every question of 'the same'"):
        replace(benchmark, transfer=[fitted], folds=(0,)).run()


def test_the_instruction_is_that_of_the_task_that_was_fitted(model, bare):
    fold = Benchmark(model, bare).make_fold(0)
    rude = replace(fold.test, sense="rude")
    assert prompted(replace(fold, test=rude)).prompts[0].text == prompted(fold).prompts[0].text


def test_rows_are_kept_under_all_that_they_depend_on(finished, monkeypatch):
    benchmark, _ = finished
    monkeypatch.setattr("radiant_lens.studies.benchmark.fold_run.choose", lambda *_: pytest.fail("fitted"))
    changes = [{"seed": 1}, {"budgets": (0.02,)}, {"n_train": 5}, {"n_validation": 5}]
    changes += [{"data": replace(benchmark.data, sense="rude")}]
    for change in changes:
        with pytest.raises(pytest.fail.Exception, match="fitted"):
            replace(benchmark, arms=("mean shift",), **change).run()


def test_a_choice_without_its_steering_is_made_again_and_a_damaged_one_is_named(finished, tmp_path):
    benchmark, _ = finished
    folder = tmp_path / "choice"
    shutil.copytree(next(_files(benchmark)).parent, folder)
    assert len(Choice.load(folder).chosen) == 2
    shutil.rmtree(folder / "kl-0.02")
    assert Choice.load(folder) is None
    save_json(folder / "choice.json", "benchmark choice", {"chosen": []})
    with pytest.raises(ArtefactError, match="is damaged"):
        Choice.load(folder)


def test_budgets_of_numpy_are_those_of_python(model, bare):
    assert Benchmark(model, bare, budgets=np.array([0.02, 0.08])) == Benchmark(model, bare, budgets=(0.02, 0.08))


def test_a_text_arm_that_does_not_fit_another_task_is_a_note(model, bare, monkeypatch):
    def change(fold):
        if fold.test.name == "other":
            raise LeakageError("an example is a question of this part.")
        return fold.test

    monkeypatch.setitem(ARMS, "few-shot", TextArm(change))
    other = replace(rl.load_dataset("tiny-tone").head(20), contexts=None, name="other")
    options = {"budgets": (0.02,), "folds": (0,), "n_test": 5, "n_answered": 0, "transfer": [other]}
    result = Benchmark(model, bare, arms=("few-shot",), **options).run()
    assert result.notes == ("few-shot, fold 0: on other: an example is a question of this part.",)
    assert set(result.questions[result.questions["data"] == "other"]["arm"]) == {"none"}


def test_an_instruction_and_examples_stand_before_every_text(model, bare):
    fold = Benchmark(model, bare).make_fold(0)
    data = prompted(fold)
    for before, after in zip(fold.test.statements, data.statements):
        assert after.text.endswith(before.text) and after.text != before.text
        assert after.text[after.answer_start :] == before.text[before.answer_start :]
    texts = few_shot(fold, 2)
    assert all(t.text.endswith(b.text) for b, t in zip(fold.test.statements, texts.statements))


def test_text_kl_compares_the_answers_under_two_contexts(model, bare):
    fold = Benchmark(model, bare).make_fold(0)
    plain, changed = (desirable_statements(data)[:20] for data in (fold.test, few_shot(fold, 2)))
    assert float(text_kl(model, plain, plain).abs().max()) < 1e-4
    assert float(text_kl(model, plain, changed).min()) > 1e-3


def test_settings_are_checked_first(model, bare):
    with pytest.raises(UnknownNameError, match="arm of the benchmark"):
        Benchmark(model, bare, arms=["mean shifts"])
    with pytest.raises(InvalidArgumentError, match="`budgets` must lie strictly above 0"):
        Benchmark(model, bare, budgets=[0.0])
    with pytest.raises(InvalidArgumentError, match="`folds`"):
        Benchmark(model, bare, folds=[2])
    with pytest.raises(InvalidArgumentError, match="`folds` must be at least one, each once; got \\[0, 0\\]"):
        Benchmark(model, bare, folds=[0, 0])
    with pytest.raises(
        InvalidArgumentError, match="every task needs a name of its own; got \\['tiny-facts', 'tiny-facts'\\]"
    ):
        Benchmark(model, bare, transfer=[bare])
    with pytest.raises(InvalidArgumentError, match="`gates` must be one of 'head', 'vote', 'layer', 'joint', 'none'"):
        Benchmark(model, bare, gates=["heads"])
    with pytest.raises(InvalidArgumentError, match="`gates` must be at least one, each once"):
        Benchmark(model, bare, gates=["head", "head"])
    with pytest.raises(InvalidArgumentError, match="`arms` must be at least one"):
        Benchmark(model, bare, arms=[])
    for name in ("n_train", "n_validation", "n_test"):
        with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
            Benchmark(model, bare, **{name: 0})
    with pytest.raises(InvalidArgumentError, match="`n_train` must be a whole number of at least 5"):
        Benchmark(model, bare, arms=("few-shot",), n_train=4)
    assert {"ITI", "LEACE", "RADIANT", "trained shift"} <= set(ARMS)


def test_arms_choose_among_the_gates_on_offer_but_for_those_with_their_own(model, facts, tmp_path):
    options = {"budgets": (0.02,), "folds": (0,), "n_test": 8, "n_validation": 8, "n_answered": 0, "out": tmp_path}
    names = ("mean shift", "control: shuffled labels")
    joint = Benchmark(model, facts, arms=names, gates=("joint",), **options)
    assert joint.settings()["gates"] == ("joint",)
    gates = joint.run().questions.groupby("arm")["gate"].unique()
    assert gates["mean shift"].tolist() == ["joint"] and gates["control: shuffled labels"].tolist() == ["none"]
    # Kept under other gates, it is not taken for theirs.
    head = Benchmark(model, facts, arms=names, gates=("head",), **options).run().questions
    assert set(head.loc[head["arm"] == "mean shift", "gate"]) == {"head"}


@pytest.mark.parametrize("error", [NothingToEditError, ConvergenceError])
def test_a_gate_without_a_steering_is_a_note(model, bare, monkeypatch, error):
    own = ARMS["mean shift"]

    def fit(fold, gate):
        if gate == "head":
            raise error("the gate stays shut.")
        return own.fit(fold, gate)

    monkeypatch.setitem(ARMS, "mean shift", SteeringArm(fit))
    options = {"budgets": (0.02,), "folds": (0,), "n_test": 5, "n_validation": 5, "n_answered": 0}
    result = Benchmark(model, bare, arms=("mean shift",), **options).run()
    assert result.notes == ("mean shift, fold 0: gate head: the gate stays shut.",)
    assert set(result.questions["gate"]) == {"", "none"}


def test_answers_alone_are_scored_by_their_words_and_nothing_else(model, bare):
    name = "control: answers alone"
    benchmark = Benchmark(model, bare, arms=(name,), budgets=(0.02,), folds=(0,), n_test=10, n_answered=0)
    row = benchmark.run().to_dataframe().set_index("arm").loc[name]
    fold = benchmark.make_fold(0)
    assert row["mc1"] == pytest.approx(score_answers_alone(fold.train, fold.test)["mc1"].mean())
    assert pd.isna(row["kl"])
    # The style of these is balanced, until a word gives the correct answers away.
    balanced = rl.load_dataset("misconceptions")
    certain = [
        replace(p, correct_answers=tuple(f"Certainly: {a}" for a in p.correct_answers), best_answer=None)
        for p in balanced.prompts
    ]
    marked = replace(balanced, atoms=(), bare_prompts=tuple(certain))
    plain, told = (score_answers_alone(*data.split((0.5, 0.5))) for data in (balanced, marked))
    assert plain["mc1"].mean() < 0.45 and abs(plain["mc2"].mean() - 0.5) < 0.02
    assert (told["mc1"] == 1).all() and (told["mc2"] > 0.5).all()
