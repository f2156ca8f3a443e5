"""Judges, answers, and what a steering costs, against naive versions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens._errors import InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import generate_answers, get_judge, score_statements
from radiant_lens.evaluation.generation import _cut
from radiant_lens.tokens import answer_positions, encode

PROMPT = rl.Prompt("Q : who ? A :", ("the cat .", "a cat"), ("the dog .",), "g")


@pytest.mark.parametrize(
    ("judge", "answer", "verdict"),
    [
        ("exact", "The cat.", "correct"),
        ("exact", "the cat sat", "other"),
        ("exact", "the dog .", "incorrect"),
        ("contains", "well , the cat sat", "correct"),
        ("contains", "the dog and the cat", "other"),
        ("contains", "the catalogue", "other"),
        ("lexicon", "the soup is lovely", "correct"),
        ("lexicon", "the soup is lovely , you fool", "incorrect"),
        ("lexicon", "the soup is round", "other"),
        (lambda prompt, answer: "correct", "anything", "correct"),
    ],
)
def test_judges(judge, answer, verdict):
    assert get_judge(judge)(PROMPT, answer) == verdict


def test_an_unknown_judge_is_named():
    with pytest.raises(UnknownNameError, match="'exakt' is not a known judge: did you mean 'exact'"):
        get_judge("exakt")


def test_answers_end_at_the_first_stop_string():
    assert _cut(" it is so . Q : what", (".", "?")) == "it is so ."
    assert _cut(" it is so ", (".",)) == "it is so"


def test_answers_are_the_same_for_the_same_seed(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[:6]]
    one = generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one == generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one != generate_answers(model, prompts, n_samples=3, seed=2, stop=(".",))
    assert all(len(given) == 3 for given in one)
    assert all(answer.count(".") <= 1 for given in one for answer in given)


def test_greedy_answers_do_not_depend_on_the_batch(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[::40]]
    together = generate_answers(model, prompts, temperature=0, stop=(".",))
    alone = [generate_answers(model, [p], temperature=0, stop=(".",))[0] for p in prompts]
    small = generate_answers(model, prompts, temperature=0, stop=(".",), max_tokens=1)
    assert together == alone == small


def test_generation_leaves_the_global_seed_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_answers(model, ["Q : what is the"], seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_scores_agree_with_a_naive_loop(model, steering, experiment):
    statements = [s for s in experiment.test.statements if s.label == 0][:5]
    scored = score_statements(model, statements, steering, max_tokens=100)
    for i, (statement, row) in enumerate(zip(statements, encode(model, [s.text for s in statements]))):
        span = answer_positions(row, statement.answer_start)
        tokens = torch.tensor([row.ids])
        with torch.no_grad():
            plain = model(tokens)[0].log_softmax(-1)
            hooks = steering.hooks(start=torch.tensor([span.start]))
            steered = model.run_with_hooks(tokens, fwd_hooks=hooks)[0].log_softmax(-1)
        log_prob = kl = 0.0
        for pos in span[:-1]:
            log_prob += float(steered[pos, row.ids[pos + 1]])
            kl += float((plain[pos].exp() * (plain[pos] - steered[pos])).sum())
        assert float(scored.log_prob[i]) == pytest.approx(log_prob, rel=1e-3, abs=1e-4)
        assert float(scored.kl[i]) == pytest.approx(kl, rel=1e-3, abs=1e-4)
        assert float(scored.n_tokens[i]) == len(span) - 1
    assert float(scored.kl.sum()) > 0
    assert 0 < float(scored.n_edited.sum()) <= float(scored.n_tokens.sum())


def test_nothing_is_edited_without_an_edit(model, steering, experiment):
    identity = rl.IdentityPolicy(steering).fit(experiment.train_cache, experiment.detector)
    small = experiment.test.head(5)
    plain, same = rl.evaluate(model, small), rl.evaluate(model, small, identity)
    assert same.metrics["kl"].value == 0
    assert same.metrics["cross_entropy"] == plain.metrics["cross_entropy"]
    assert same.table.equals(plain.table)
    assert same.gain(plain).value == 0


def test_metrics_are_shares_of_the_table(model, experiment):
    result = rl.evaluate(model, experiment.test.head(8), n_samples=2)
    assert len(result.table) == 2 * len(experiment.test.head(8).prompts)
    for name, interval in result.metrics.items():
        verdict, _, condition = name.partition("/")
        if verdict in ("correct", "incorrect", "other"):
            part = result.table if not condition else result.table[result.table["condition"] == condition]
            assert interval.value == pytest.approx((part["verdict"] == verdict).mean())
            assert interval.low <= interval.value <= interval.high
    assert sum(result.metrics[v].value for v in ("correct", "incorrect", "other")) == pytest.approx(1)
    assert "| correct |" in result.to_markdown()


def test_gains_are_paired(model, steering, experiment):
    small = experiment.test.head(8)
    plain, steered = rl.evaluate(model, small), rl.evaluate(model, small, steering)
    difference = steered.metrics["correct"].value - plain.metrics["correct"].value
    assert steered.gain(plain).value == pytest.approx(difference)
    with pytest.raises(InvalidArgumentError, match="same prompts"):
        steered.gain(rl.evaluate(model, experiment.test.head(7)))


def test_data_without_prompts_or_without_statements(model, experiment):
    small = experiment.test.head(6)
    only_statements = rl.evaluate(model, replace(small, bare_prompts=()))
    assert set(only_statements.metrics) == {"kl", "cross_entropy", "edited_share"}
    only_prompts = rl.evaluate(model, replace(small, atoms=(), contexts=None))
    assert set(only_prompts.metrics) == {"correct", "incorrect", "other"}


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_refusals(model, experiment, options):
    with pytest.raises(InvalidArgumentError, match=f"`{next(iter(options))}` must"):
        rl.evaluate(model, experiment.test.head(6), **options)
