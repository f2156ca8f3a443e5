"""The small inputs of `shared/cases`, each of which went wrong once, are read as their README says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import radiant_lens
from radiant_lens import load_dataset
from radiant_lens.datasets import ChatTemplate
from radiant_lens.errors import DataError, InvalidArgumentError

FOLDER = Path(os.environ.get("RADIANT_CASES") or Path(radiant_lens.__file__).parents[2] / "shared" / "cases")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the cases are not in {FOLDER} (RADIANT_CASES)")


def read(d):
    return [(s.text[s.answer_start :], s.label) for s in d.statements]


def test_lists_written_by_python_have_no_brackets():
    assert read(load_dataset(FOLDER / "lists_python.csv")) == [
        ("Nothing happens", 0), ("You are fine; honest", 0), ("You die", 1), ("You glow", 1),
        ("Snow is cold", 0), ("Snow is hot", 1),
    ]  # fmt: skip


def test_preferences_are_not_cut_at_semicolons():
    d = load_dataset(FOLDER / "dpo3.jsonl")
    assert len(d) == 8
    assert read(d)[:2] == [("Gladly, 0 is nice; ask more.", 0), ("No; go away 0.", 1)]


def test_chats_are_rendered_and_their_last_turn_is_the_answer(tokenizers):
    with pytest.raises(
        InvalidArgumentError, match=r"messages.jsonl has chats, .* template=.*ChatTemplate\(tokenizer\)"
    ):
        load_dataset(FOLDER / "messages.jsonl")
    d = load_dataset(FOLDER / "messages.jsonl", template=ChatTemplate(tokenizers["plain"]))
    assert read(d) == [("hello", 0), ("go away", 1)]
    assert all(s.rendered and s.text.startswith("<bos><|user|>\nhi") for s in d.statements)


def test_contrastive_pairs_need_no_option():
    d = load_dataset(FOLDER / "caa.json")
    assert (read(d), d.sense) == ([("(B)", 0), ("(A)", 1), ("(A)", 0), ("(B)", 1)], "answer_matching_behavior")


@pytest.mark.parametrize(
    "columns", [None, {"correct_answers": "right_answer", "incorrect_answers": "hallucinated_answer"}]
)
def test_a_json_of_lines_with_answer_columns(columns):
    d = load_dataset(FOLDER / "halu_qa.json", columns=columns)
    assert read(d) == [("X, in 1844; Y came later", 0), ("Y was first; in 1900", 1), ("Me", 0), ("You", 1)]


def test_an_ending_in_upper_case():
    assert read(load_dataset(FOLDER / "CAPS.CSV")) == [("a", 1), ("b", 0)]


def test_the_sense_of_true_and_false_statements_is_asked_for():
    path, columns = FOLDER / "cities.csv", {"text": "statement", "group": "city"}
    with pytest.raises(InvalidArgumentError, match="Label 1 of column 'label' of 'statement' .* undesirable=0"):
        load_dataset(path, columns=columns)
    d = load_dataset(path, columns=columns, undesirable=0)
    assert (read(d), d.groups) == ([("The city of A is in B.", 0), ("The city of A is in C.", 1)], {"A"})


def test_labels_that_are_words_are_refused_once_with_the_remedy():
    path = FOLDER / "label_words.jsonl"
    with pytest.raises(DataError, match=r"\(6\): line 1: `label` .*got 'false': name the undesirable.* \(5 more\)$"):
        load_dataset(path)
    assert [label for _, label in read(load_dataset(path, undesirable="false"))] == [1, 1, 1, 1, 1, 0]


def test_nan_is_no_text():
    (prompt,) = load_dataset(FOLDER / "nan_best.jsonl").prompts
    assert (prompt.best_answer, prompt.correct_answers) == ("me", ("me",))


def test_a_word_that_ends_in_a_marker_is_no_marker():
    (s,) = load_dataset(FOLDER / "nasa.jsonl").statements
    assert s.answer_start == 0


def test_forty_rows_keep_their_ten_groups():
    d = load_dataset(FOLDER / "two_kinds_40.jsonl")
    assert (len(d), len(d.groups), sum(s.label for s in d.statements)) == (40, 10, 20)
