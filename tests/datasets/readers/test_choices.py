"""Multiple-choice questions: every way of naming the right choice, and what is refused."""

from __future__ import annotations

import json

import pytest

from radiant_lens import load_dataset
from radiant_lens.errors import DataError

CHOICES = ["red", "green", "blue"]


def read(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_dataset(path).prompts


@pytest.mark.parametrize("answer", [1, "1", "B", "green", " green "])
def test_an_answer_is_a_number_a_letter_or_a_text(tmp_path, answer):
    (prompt,) = read(tmp_path, {"question": "Which? ", "choices": CHOICES, "answer": answer})
    assert prompt.text == "Q: Which? A:"
    assert (prompt.correct_answers, prompt.incorrect_answers) == (("green",), ("red", "blue"))
    assert (prompt.best_answer, prompt.question, prompt.group) == ("green", "Which?", "which?")


def test_a_statement_for_each_choice(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"question": "Which?", "choices": CHOICES, "answer": 2}]))
    data = load_dataset(path, template="Question: {question}\nAnswer: {answer}")
    assert [(s.text, s.label) for s in data.statements] == [
        (f"Question: Which?\nAnswer: {choice}", label) for choice, label in (("blue", 0), ("red", 1), ("green", 1))
    ]
    assert data.sense == "wrong choice"


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "questions.json"
    choices = {"text": CHOICES, "label": ["A", "B", "C"]}
    path.write_text(json.dumps([{"id": "x", "question": "Which?", "choices": choices, "answerKey": "C"}]))
    assert load_dataset(path).prompts[0].correct_answers == ("blue",)
    path.write_text(json.dumps([{"ctx": "He", "endings": ["runs.", "flies."], "label": "1"}]))
    named = {"question": "ctx", "choices": "endings", "answer": "label"}
    assert load_dataset(path, columns=named, template="{question} {answer}").prompts[0].best_answer == "flies."


def test_labels_of_their_own_decide(tmp_path):
    choices = {"text": CHOICES, "label": ["1", "2", "3"]}
    (prompt,) = read(tmp_path, {"question": "Which?", "choices": choices, "answer": "1", "group": 7})
    assert (prompt.correct_answers, prompt.group) == (("red",), "7")
    with pytest.raises(DataError, match="line 1: `answer` must be one of the labels 1, 2, 3; got '0'"):
        read(tmp_path, {"question": "Which?", "choices": choices, "answer": "0"})


def test_a_csv_has_lists_as_text(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text('question,choices,answer\nWhich?,"[""red"", ""green""]",1\n')
    (prompt,) = load_dataset(path).prompts
    assert (prompt.correct_answers, prompt.incorrect_answers) == (("green",), ("red",))


def test_choices_of_one_text_count_once(tmp_path):
    row = {"question": "Which?", "choices": ["red", "green", "green", "blue", "blue"]}
    for answer in ("green", 1, 2):
        (prompt,) = read(tmp_path, {**row, "answer": answer})
        assert (prompt.correct_answers, prompt.incorrect_answers) == (("green",), ("red", "blue"))
    twice = {"text": ["red", "green"], "label": ["A", "A"]}
    with pytest.raises(DataError, match="`answer` must be one of the labels A, A; got 'A'"):
        read(tmp_path, {**row, "choices": twice, "answer": "A"})


def test_choices_that_are_numbers_are_found_by_an_unambiguous_answer(tmp_path):
    numbers = {"question": "1 + 1?", "choices": ["1", "2", "3"]}
    assert read(tmp_path, {**numbers, "answer": 1})[0].correct_answers == ("2",)
    assert read(tmp_path, {**numbers, "answer": "3"})[0].correct_answers == ("3",)
    with pytest.raises(DataError, match="these name different choices: got '1'"):
        read(tmp_path, {**numbers, "answer": "1"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": CHOICES, "answer": 0}, "missing column 'question'"),
        ({"question": "Which?", "choices": CHOICES}, "missing column 'answer'"),
        ({"question": " ", "choices": CHOICES, "answer": 0}, "`question` is empty"),
        (
            {"question": "Which?", "choices": ["red"], "answer": 0},
            "`choices` must be a list of at least two different texts",
        ),
        (
            {"question": "Which?", "choices": ["red", ""], "answer": 0},
            "`choices` must be a list of at least two different texts",
        ),
        (
            {"question": "Which?", "choices": ["red", 1], "answer": 0},
            "`choices` must be a list of at least two different texts",
        ),
        (
            {"question": "Which?", "choices": "red; green", "answer": 0},
            "`choices` must be a list of at least two different texts",
        ),
        ({"question": "Which?", "choices": {"text": CHOICES, "label": ["A"]}, "answer": "A"}, "of as many 'text' and"),
        (
            {"question": "Which?", "choices": ["red", "red"], "answer": 0},
            "`choices` must be a list of at least two different",
        ),
        ({"question": "Which?", "choices": CHOICES, "answer": 3}, r"the number of a choice \(0 to 2\), .*: got 3"),
        ({"question": "Which?", "choices": CHOICES, "answer": -1}, "got -1"),
        ({"question": "Which?", "choices": CHOICES, "answer": True}, "got True"),
        ({"question": "Which?", "choices": CHOICES, "answer": "D"}, "got 'D'"),
        ({"question": "Which?", "choices": CHOICES, "answer": None}, "got None"),
    ],
)
def test_rows_that_cannot_be_used_are_named_by_their_line(tmp_path, row, message):
    good = {"question": "Who?", "choices": ["me", "you"], "answer": 0}
    with pytest.raises(DataError, match=f"questions.jsonl has rows that cannot be used .1.: line 2: .*{message}"):
        read(tmp_path, good, row)
