"""The questions that the package brings: well formed, and correct answers have no style of their own."""

from __future__ import annotations

import json
import re
from statistics import mean

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from radiant_lens import load_dataset
from radiant_lens.datasets import ChatTemplate
from radiant_lens.datasets.loading import data_folder

NEGATIONS = r"\b(?:no|not|never|none|nobody|nothing|neither|nor|cannot|without)\b|n't\b"
HEDGES = (
    r"\b(?:may|might|could|often|usually|sometimes|mostly|mainly|generally|typically|probably|perhaps|about|almost|"
    r"nearly|some|many|most|can|tends?|rarely|partly)\b"
)


def rows(name):
    return [json.loads(line) for line in (data_folder() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# Properties of style that need no question: a steering that only changes these must not look like one of truth.
def style_faults(questions):
    """Return the ways in which correct and incorrect answers can be told apart without their question."""
    answers = [(a, label, i) for i, q in enumerate(questions)
               for label, key in enumerate(("correct_answers", "incorrect_answers")) for a in q[key]]  # fmt: skip
    texts, labels, groups = (np.array(column) for column in zip(*answers))
    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    scores = np.empty(len(texts))
    # Folds by question: answers of one question share words, which would tell the classifier nothing of style.
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(texts, labels, groups):
        scores[test] = classifier.fit(texts[train], labels[train]).decision_function(texts[test])
    faults = [] if ((scores > 0) == labels).mean() < 0.56 else ["accuracy"]
    # MC1 with the first correct answer as the best one, as `load_dataset` has it.
    first = [scores[(groups == i) & (labels == 0)][0] < scores[(groups == i) & (labels == 1)].min()
             for i in range(len(questions))]  # fmt: skip
    chance = mean(1 / (1 + len(q["incorrect_answers"])) for q in questions)
    faults += [] if mean(map(float, first)) < chance + 0.05 else ["MC1"]

    def ratio(measure):
        right, wrong = (mean(measure(a) for a in texts[labels == label]) for label in (0, 1))
        return wrong / right

    faults += [] if abs(ratio(len) - 1) < 0.03 else ["length"]
    for name, words in (("negations", NEGATIONS), ("hedges", HEDGES)):
        count = ratio(lambda a, words=words: len(re.findall(words, a.lower())))
        faults += [] if abs(count - 1) < 0.25 else [name]
    return faults


def test_every_misconception_is_well_formed():
    questions = rows("misconceptions")
    assert len({q["question"] for q in questions}) == len(questions) >= 600
    assert len({q["topic"] for q in questions}) >= 12
    for q in questions:
        assert set(q) == {"question", "topic", "correct_answers", "incorrect_answers", "why"}
        texts = [q["question"], q["topic"], q["why"], *q["correct_answers"], *q["incorrect_answers"]]
        assert all(isinstance(text, str) and text == text.strip() != "" for text in texts)
        assert q["question"].rstrip('"').endswith("?")
        answers = [a.casefold() for a in (*q["correct_answers"], *q["incorrect_answers"])]
        assert len(set(answers)) == len(answers) >= 4
        assert len(q["correct_answers"]) >= 2 <= len(q["incorrect_answers"])


def test_the_answers_of_misconceptions_have_no_style_of_their_own():
    assert style_faults(rows("misconceptions")) == []


@pytest.mark.parametrize(
    ("style", "fault"),
    [("actually {}", "accuracy"), ("{} actually", "MC1"), ("never {}", "negations"), ("perhaps {}", "hedges")],
)
def test_a_style_is_noticed(style, fault):
    # Every bound must be able to fail: one word in every incorrect answer is a style.
    styled = [{**q, "incorrect_answers": [style.format(a) for a in q["incorrect_answers"]]}
              for q in rows("misconceptions")]  # fmt: skip
    assert {fault, "length"} <= set(style_faults(styled))


def test_every_row_of_tone_is_well_formed():
    prompts = rows("tone")
    assert len({p["prompt"] for p in prompts}) == len({p["group"] for p in prompts}) == len(prompts) >= 400
    for p in prompts:
        assert set(p) == {"prompt", "topic", "correct_answers", "incorrect_answers", "group"}
        answers = [*p["correct_answers"], *p["incorrect_answers"]]
        assert len(set(answers)) == len(answers) == 4
        assert all(text == text.strip() != "" for text in (p["prompt"], *answers))


def test_misconceptions_are_statements_and_prompts():
    d, questions = load_dataset("misconceptions"), rows("misconceptions")
    assert len(d) == sum(len(q["correct_answers"]) + len(q["incorrect_answers"]) for q in questions)
    assert (len(d.prompts), len(d.groups), d.judge, d.skipped) == (len(questions), len(questions), "overlap", ())
    first, prompt = questions[0], d.prompts[0]
    assert prompt.text == f"Q: {first['question']} A:"
    assert prompt.correct_answers == tuple(first["correct_answers"])
    assert d.statements[0].text == f"Q: {first['question']} A: {first['correct_answers'][0]}"
    assert [s.label for s in d.statements[:4]] == [0, 0, 1, 1]
    assert d.stop == ("\n", "Q:")


def test_tone_joins_prompt_and_reply():
    d, first = load_dataset("tone"), rows("tone")[0]
    assert d.prompts[0].text == first["prompt"]
    assert [(s.text, s.label) for s in d.statements[:4]] == [
        (f"{first['prompt']} {reply}", label)
        for label, key in enumerate(("correct_answers", "incorrect_answers"))
        for reply in first[key]
    ]
    assert d.statements[0].group == first["group"]
    assert (len(d), len(d.prompts), len(d.groups), d.sense) == (1680, 420, 420, "rude")


@pytest.mark.parametrize(("name", "column"), [("misconceptions", "question"), ("tone", "prompt")])
def test_templates_of_the_packaged_questions(tokenizers, name, column):
    question = rows(name)[0][column]
    plain = load_dataset(name, template="Question: {question}\nAnswer: {answer}")
    assert plain.prompts[0].text == f"Question: {question}\nAnswer:"
    chat = load_dataset(name, template=ChatTemplate(tokenizers["plain"]), judge="exact")
    assert chat.prompts[0].text == f"<bos><|user|>\n{question}<|end|>\n<|assistant|>\n"
    assert chat.statements[0].rendered and chat.judge == "exact"


@pytest.mark.parametrize("name", ["misconceptions", "tone"])
def test_counts_of_the_packaged_questions_are_those_of_their_card(name):
    d = load_dataset(name)
    card = " ".join((data_folder() / "README.md").read_text().split())
    assert f"`{name}.jsonl`" in card
    assert f"{len(d):,} statements" in card and f"{len(d.prompts)} prompts" in card
