"""Judges by rule: verdicts by hand, ROUGE-1 against a naive version, the interface and its refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import Judge, Verdict, get_judge
from radiant_lens.evaluation.judges import lookup as choosing
from radiant_lens.evaluation.judges.judge import judge_answers
from radiant_lens.evaluation.judges.rules import token_f1

PROMPT = rl.Prompt("Q : who ? A :", ("the cat .", "a cat"), ("the dog .",), "g")
WORDS = st.lists(st.sampled_from(["the", "cat", "dog", "sat"]), max_size=6).map(" ".join)


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
        ("overlap", "it was the cat", "correct"),
        ("overlap", "that dog there", "incorrect"),
        ("overlap", "the", "other"),
        ("overlap", "", "other"),
        (lambda prompt, answer: "correct", "anything", "correct"),
        (lambda prompt, answer: Verdict("other", 0.3, True), "anything", "other"),
    ],
)
def test_verdicts(judge, answer, verdict):
    (found,) = get_judge(judge).judge([PROMPT], [answer])
    assert found.verdict == verdict


def test_scores_by_hand():
    rude, overlaps, exact = (get_judge(name) for name in ("lexicon", "overlap", "exact"))
    assert rude.judge([PROMPT], ["you fool , what awful soup"])[0].score == 2 / 5
    # Of "the dog": F1 1 to the incorrect reference; 1/2 to "the cat", which is the nearer correct one.
    assert overlaps.judge([PROMPT], ["the dog"])[0] == Verdict("incorrect", 0.5)
    assert overlaps.judge([PROMPT], ["a cat"])[0] == Verdict("correct", -1.0)
    assert exact.judge([PROMPT], ["a cat"])[0] == Verdict("correct", None, None)


@given(WORDS, WORDS)
def test_overlap_is_rouge_1(one, other):
    """Recall and precision of the words, matched one to one."""
    first, left = one.split(), other.split()
    n_other, n_shared = len(left), 0
    for word in first:
        if word in left:
            left.remove(word)
            n_shared += 1
    expected = 0.0
    if n_shared:
        precision, recall = n_shared / len(first), n_shared / n_other
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(one, other) == pytest.approx(expected)
    assert token_f1(one, other) == token_f1(other, one)


class Length:
    """Judges all answers at once: short ones are better."""

    def judge(self, prompts, answers):
        shortest = min(map(len, answers))
        return [Verdict("correct" if len(a) == shortest else "incorrect", len(a)) for a in answers]


def test_a_judge_of_ones_own_sees_all_answers():
    assert isinstance(Length(), Judge)
    verdicts = judge_answers(get_judge(Length()), [PROMPT] * 2, ["abc", "a"])
    assert verdicts == [Verdict("incorrect", 3), Verdict("correct", 1)]


def test_an_unknown_judge_is_named():
    with pytest.raises(UnknownNameError, match="'exakt' is not a known judge: did you mean 'exact'"):
        get_judge("exakt")


def test_refusals():
    with pytest.raises(InvalidArgumentError, match="`judge` must be a name, a judge or a callable; got int"):
        get_judge(3)
    with pytest.raises(InvalidArgumentError, match="`verdict` must be one of 'correct', .*; got 'true'"):
        judge_answers(get_judge(lambda prompt, answer: "true"), [PROMPT], ["a"])

    class Lazy:
        def judge(self, prompts, answers):
            return []

    with pytest.raises(InvalidArgumentError, match="must return a verdict for each of 1 answers; got 0"):
        judge_answers(Lazy(), [PROMPT], ["a"])


def test_judges_that_are_models_have_names(monkeypatch):
    asked = []
    monkeypatch.setattr(choosing, "ClassifierJudge", lambda model, **options: asked.append((model, options)) or "judge")
    assert get_judge("toxicity", device="cpu") == "judge"
    assert asked == [("s-nlp/roberta_toxicity_classifier", {"undesirable_labels": ["toxic"], "device": "cpu"})]
    with pytest.raises(UnknownNameError, match="did you mean 'toxicity'"):
        get_judge("toxic")


def test_answers_are_not_lost_when_the_judge_fails(model, facts):
    def out_of_reach(prompt, answer):
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError, match="no route") as caught:
        rl.evaluate(model, facts.head(6), metrics=["answers"], judge=out_of_reach)
    assert len(caught.value.answers) == 18
    assert caught.value.answers["answer"].str.len().min() > 0
