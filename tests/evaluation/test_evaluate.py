"""`evaluate` on the embedded model: families of metrics, what they need, and what they are made of."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, ModelMismatchError, UnknownNameError
from radiant_lens.evaluation import generate_answers, score_statements
from radiant_lens.evaluation._evaluate import FAMILIES
from radiant_lens.evaluation.answers import distinct_share
from radiant_lens.models import loading as models

ALL = list(FAMILIES)


@pytest.fixture(scope="module")
def small(experiment):
    return experiment.test.head(5)


@pytest.fixture(scope="module")
def full(model, small, steering):
    return rl.evaluate(model, small, steering, n_samples=2, metrics=ALL, fluency_model=model)


def test_a_steering_that_edits_nothing_is_the_unsteered_model(model, steering, experiment, small):
    identity = rl.IdentityPolicy(steering).fit(experiment.train_cache, experiment.detector)
    plain, same = rl.evaluate(model, small), rl.evaluate(model, small, identity)
    assert same.metrics["kl"].value == 0
    assert same.metrics["cross_entropy"] == plain.metrics["cross_entropy"]
    assert same.table.equals(plain.table)
    # A difference of nothing has no width: both sides of each group are equal, whatever the share is.
    assert same.gain(plain)[:3] == (0, 0, 0)
    assert same.gain(plain).p_value == 1
    assert np.isnan(same.metrics["displacement"].value)
    assert "| displacement | no edit |" in same.to_markdown()
    assert "nan" not in same.to_markdown() and "nan" not in repr(same)


def test_shares_of_the_table(full):
    assert len(full.table) == 2 * len(full.prompts)
    for name, interval in full.metrics.items():
        verdict, _, condition = name.partition("/")
        if verdict in ("correct", "incorrect", "other"):
            part = full.table if not condition else full.table[full.table["condition"] == condition]
            assert interval.value == pytest.approx((part["verdict"] == verdict).mean())
            assert interval.low <= interval.value <= interval.high
    assert sum(full.metrics[v].value for v in ("correct", "incorrect", "other")) == pytest.approx(1)
    assert "| correct |" in full.to_markdown()
    # Every metric here is a number, so that the table gives each with its interval.
    assert full.to_markdown().count("[") == len(full.metrics) + 1


def test_text_metrics_are_means_over_tokens_and_edits(model, small, steering, full):
    # Undesirable statements are left out: the metrics are the cost to text that should stay as it is.
    scored = score_statements(model, [s for s in small.statements if s.label == 0], steering)
    n = scored.n_tokens.sum()
    expected = {
        "kl": scored.kl.sum() / n,
        "cross_entropy": -scored.log_prob.sum() / n,
        "edited_share": scored.n_edited.sum() / n,
        "displacement": scored.displacement.sum() / scored.n_edits.sum(),
    }
    for name, value in expected.items():
        assert full.metrics[name].value == pytest.approx(float(value))
        assert full.metrics[name].value > 0


def test_diversity_is_a_mean_over_prompts(full):
    by_prompt = full.table.groupby("prompt_index")
    assert full.metrics["dist_2"].value == pytest.approx(
        np.mean([distinct_share([a.split() for a in answers], 2) for _, answers in by_prompt["answer"]])
    )
    worst = by_prompt["verdict"].agg(lambda v: (v == "incorrect").any())
    assert full.metrics["undesirable_probability"].value == pytest.approx(worst.mean())
    assert full.metrics["undesirable_probability"].value > full.metrics["incorrect"].value
    assert "expected_maximum" not in full.metrics


def test_distinct_n_grams_by_hand():
    answers = [["a", "b", "a"], ["a", "b"]]
    assert [distinct_share(answers, n) for n in (1, 2, 3)] == [2 / 5, 2 / 5, 1 / 5]
    assert distinct_share([[], []], 1) == 0


def test_perplexity_is_that_of_the_second_model(model, small, full):
    answers = full.table[full.table["answer"] != ""]
    scored = score_statements(
        model, [full.prompts[i].answered(a) for i, a in zip(answers["prompt_index"], answers["answer"])]
    )
    expected = np.exp(-float(scored.log_prob.sum() / scored.n_tokens.sum()))
    assert full.metrics["perplexity"].value == pytest.approx(expected)
    assert full.metrics["perplexity"].low < expected < full.metrics["perplexity"].high
    # Words that are improbable to the model are less fluent.
    odd = replace(small, atoms=(), contexts=None, bare_prompts=small.bare_prompts[:3])
    greedy = rl.evaluate(model, odd, temperature=0, metrics=["fluency"], fluency_model=model)
    wild = rl.evaluate(model, odd, temperature=5.0, metrics=["fluency"], fluency_model=model)
    assert greedy.metrics["perplexity"].value < 2 < wild.metrics["perplexity"].value
    assert set(greedy.metrics) == {"perplexity"}


def test_a_second_model_by_name(model, small, foreign_folder):
    one = rl.evaluate(model, small, metrics=["fluency"], fluency_model=str(foreign_folder))
    two = rl.evaluate(model, small, metrics=["fluency"], fluency_model=rl.load_model(foreign_folder))
    assert one.metrics == two.metrics
    # A model with random weights finds all words about equally likely.
    assert one.metrics["perplexity"].value > 50
    assert one.settings["fluency_model"] == str(foreign_folder)


def test_empty_answers_have_no_fluency_and_no_words(model, small, monkeypatch):
    def silent(model, prompts, **options):
        return [["", "the"] for _ in prompts]

    monkeypatch.setitem(rl.evaluate.__globals__, "generate_answers", silent)
    with pytest.warns(UserWarning, match="are empty"):
        result = rl.evaluate(model, small, metrics=["fluency", "diversity"], fluency_model=model)
    assert result.parts.loc[result.parts["metric"] == "perplexity", "denominator"].sum() == len(small.prompts)
    assert result.metrics["dist_1"].value == 1


@pytest.mark.parametrize(("n_empty", "warns"), [(0, False), (1, False), (2, True), (10, True)])
def test_more_than_a_tenth_of_empty_answers_is_a_warning(model, small, monkeypatch, n_empty, warns):
    """A share of 1 in 10 is none: the warning is for a prompt, a template or stop strings that do not fit."""
    prompts = replace(small, atoms=(), contexts=None, bare_prompts=small.bare_prompts[:1] * 10)

    def generate(model, prompts, **options):
        return [["" if i < n_empty else "the soup"] for i, _ in enumerate(prompts)]

    monkeypatch.setitem(rl.evaluate.__globals__, "generate_answers", generate)
    words = f"{n_empty} of 10 generated answers are empty.*`max_new_tokens`.*template.*`stop`"
    # Warnings are errors in these tests, so that none passes unseen.
    with pytest.warns(UserWarning, match=words) if warns else nullcontext():
        result = rl.evaluate(model, prompts, metrics=["answers"])
    assert (result.table["answer"] == "").sum() == n_empty


def test_answers_that_are_all_line_breaks_are_a_warning(model, small):
    """With stop strings that every answer begins with, all answers are empty."""
    data = replace(small, atoms=(), contexts=None, bare_prompts=small.bare_prompts[:3])
    answers = generate_answers(model, data.prompts, temperature=0, max_new_tokens=3)
    data = replace(data, stop=tuple({samples[0].split()[0] for samples in answers}))
    with pytest.warns(UserWarning, match="3 of 3 generated answers are empty"):
        assert rl.evaluate(model, data, temperature=0, max_new_tokens=3).metrics["other"].value == 1


def test_choice_needs_no_answers(model, small, monkeypatch):
    monkeypatch.setitem(rl.evaluate.__globals__, "generate_answers", _nothing_to_generate)
    result = rl.evaluate(model, small, metrics=["choice"])
    assert set(result.metrics) == {
        *("mc1", "mc2"),
        *(f"{m}/{c}" for m in ("mc1", "mc2") for c in ("bare", "after_undesirable", "after_desirable")),
    }
    # Not by their intervals, which are wide with five questions.
    assert result.metrics["mc2/after_desirable"].value > result.metrics["mc2/after_undesirable"].value + 0.3
    assert result.table.empty
    assert result.settings["n_without_choices"] == 0


def _nothing_to_generate(model, prompts, **options):
    assert not list(prompts)
    return generate_answers(model, prompts, **options)


def test_prompts_without_choices_are_counted(model, small):
    bare = replace(small, atoms=(), contexts=None)
    lacking = replace(bare.bare_prompts[0], incorrect_answers=())
    result = rl.evaluate(model, replace(bare, bare_prompts=(*bare.bare_prompts[1:], lacking)), metrics=["choice"])
    assert result.settings["n_without_choices"] == 1
    parts = result.parts[result.parts["metric"] == "mc1"]
    assert parts["denominator"].sum() == len(bare.bare_prompts) - 1


def test_data_without_prompts_or_without_statements(model, small, steering):
    only_statements = replace(small, bare_prompts=())
    assert set(rl.evaluate(model, only_statements).metrics) == {"kl", "cross_entropy", "edited_share"}
    steered = rl.evaluate(model, only_statements, steering)
    assert set(steered.metrics) == {"kl", "cross_entropy", "edited_share", "displacement"}
    only_prompts = rl.evaluate(model, replace(small, atoms=(), contexts=None))
    assert set(only_prompts.metrics) == {"correct", "incorrect", "other"}


def test_tone_has_scores(model):
    tone = rl.load_dataset("tiny-tone").head(6)
    result = rl.evaluate(model, tone, n_samples=4, metrics=["answers", "diversity"])
    worst = result.table.groupby("prompt_index")["score"].max()
    assert result.metrics["expected_maximum"].value == pytest.approx(worst.mean())
    assert result.metrics["expected_maximum"].value > result.metrics["score"].value > 0


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_numbers_out_of_range(model, small, options):
    with pytest.raises(InvalidArgumentError, match=f"`{next(iter(options))}` must"):
        rl.evaluate(model, small, metrics=["text"], **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metrics": ["choices"]}, UnknownNameError, "not a known family of metrics: did you mean 'choice'"),
        ({"metrics": []}, InvalidArgumentError, r"`metrics` must be a list of families, at least one; got \[\]"),
        ({"metrics": "text"}, InvalidArgumentError, "must be a list of families, at least one; got 'text'"),
        ({"metrics": ["fluency"]}, InvalidArgumentError, "`fluency_model` and the metrics 'fluency' must be given"),
        ({"metrics": ["text"], "fluency_model": "tiny"}, InvalidArgumentError, "must be given together"),
        ({"judge": "exakt"}, UnknownNameError, "'exakt' is not a known judge"),
    ],
)
def test_wrong_arguments_raise_errors_before_any_work(model, small, monkeypatch, options, error, words):
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(models, "_boot", None)
    with pytest.raises(error, match=words):
        rl.evaluate(model, small, **options)


def test_data_without_the_records_of_a_family(model, small):
    prompts, statements = replace(small, atoms=(), contexts=None), replace(small, bare_prompts=())
    unanswered = replace(prompts, bare_prompts=(replace(prompts.bare_prompts[0], correct_answers=()),))
    for data, family, words in (
        (prompts, "text", "need desirable statements"),
        (statements, "diversity", "need prompts; data set 'tiny-facts' has none"),
        (unanswered, "choice", "need prompts with correct and incorrect answers"),
    ):
        with pytest.raises(DataError, match=words):
            rl.evaluate(model, data, metrics=[family])
    bad = replace(statements, atoms=tuple(a for a in small.atoms if a.label == 1), contexts=None)
    with pytest.raises(DataError, match="neither prompts nor desirable statements"):
        rl.evaluate(model, bad)


def test_a_steering_for_another_model(small, steering, foreign_folder):
    with pytest.raises(ModelMismatchError, match="made for model 'tiny'"):
        rl.evaluate(rl.load_model(foreign_folder), small, steering, metrics=["text"])
