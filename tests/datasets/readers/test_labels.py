"""Labels: the sense is stated by the caller or documented, never guessed."""

from __future__ import annotations

import json

import pytest

from radiant_lens import load_dataset
from radiant_lens.errors import DataError, InvalidArgumentError


@pytest.fixture
def write(tmp_path):
    def write(labels, text="text", label="label"):
        rows = [{text: f"t{i}", label: value} for i, value in enumerate(labels)]
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def labels(dataset):
    return [s.label for s in dataset.statements]


# Senses


@pytest.mark.parametrize(
    ("values", "undesirable", "expected", "sense"),
    [
        ([0, 1, 1], 0, [1, 0, 0], "label is 0"),
        ([0, 1, 1], 1, [0, 1, 1], "label is 1"),
        (["0.0", 1.0, "1"], 0, [1, 0, 0], "label is 0"),
        ([0, 1, 2], {0, 1}, [1, 1, 0], "label is 0 or 1 (0 = '2')"),
        (["true", "False", "TRUE"], "false", [0, 1, 0], "label is false"),
        ([True, False, "true"], False, [0, 1, 0], "label is false"),
        (["kind", "rude", "neutral"], "rude", [0, 1, 0], "label is rude (0 = 'kind', 'neutral')"),
        ([0, 3, 2], [2, 3], [0, 1, 1], "label is 2 or 3 (0 = '0')"),
        ([0, 1, 2], [0, 1], [1, 1, 0], "label is 0 or 1 (0 = '2')"),
        ([0, 1, 2], [0], [1, 0, 0], "label is 0 (0 = '1', '2')"),
    ],
)
def test_the_caller_states_the_sense(write, values, undesirable, expected, sense):
    d = load_dataset(write(values), undesirable=undesirable)
    assert (labels(d), d.sense) == (expected, sense)
    assert repr(d).endswith(f", label 1 = {sense})")
    # A part keeps the sense, also if it lacks one of the labels.
    assert all(part.sense == sense for part in d.split((0.5, 0.5)))


def test_the_documented_sense_is_shown_with_the_name_of_the_column(write):
    assert repr(load_dataset(write([0, 1]))).endswith(", label 1 = undesirable)")
    d = load_dataset(write([0, 1], label="is_false"), columns={"label": "is_false"})
    assert (labels(d), d.sense) == ([0, 1], "is_false")


@pytest.mark.parametrize(("text", "label"), [("statement", "label"), ("text", "is_true"), ("text", "Correct")])
def test_a_column_in_which_1_usually_is_the_good_class_needs_a_sense(write, text, label):
    path, columns = write([1, 0], text, label), {"text": text, "label": label}
    with pytest.raises(InvalidArgumentError, match=rf"column '{label}' of '{text}' usually means .* undesirable=0 "):
        load_dataset(path, columns=columns)
    assert labels(load_dataset(path, columns=columns, undesirable=0)) == [0, 1]
    assert labels(load_dataset(path, columns=columns, undesirable=1)) == [1, 0]


@pytest.mark.parametrize("value", ["true", "false", True, "yes", "flase", 0.7, 2])
def test_labels_of_no_known_sense_are_refused_with_the_remedy(write, value):
    with pytest.raises(DataError, match=r"line 2: `label` must be 0 .* undesirable=\[\.\.\.\], or compare scores"):
        load_dataset(write([0, value]))


def test_a_typo_in_a_label_or_in_undesirable_is_refused(write):
    with pytest.raises(
        DataError, match="line 2: `label` must be one of the two labels .* `undesirable`, false or true; got 'flase'"
    ):
        load_dataset(write(["true", "flase"]), undesirable="false")
    with pytest.raises(
        DataError,
        match="line 2: `label` must be one of the two labels .*, 0 or 1; got 2: for more labels give .* a list",
    ):
        load_dataset(write([0, 2]), undesirable=0)
    with pytest.raises(DataError, match="names 'flase', but no row of mine.jsonl .*; labels are: 'true', 'false'"):
        load_dataset(write(["true", "false"]), undesirable="flase")
    with pytest.raises(DataError, match="line 2: `label` must be 0 .* it is empty"):
        load_dataset(write(["rude", None]), undesirable="rude")


def test_scores_have_a_threshold(write):
    d = load_dataset(write([0.2, 0.5, "0.9"]), threshold=0.5)
    assert (labels(d), d.sense) == ([0, 1, 1], "label at or above 0.5")
    # 0 is a threshold like any other.
    d = load_dataset(write([-1, 0, 0.9]), threshold=0, undesirable="below")
    assert (labels(d), d.sense) == ([1, 0, 0], "label below 0")
    with pytest.raises(DataError, match="line 2: `label` must be a number to be compared with `threshold`; got 'high'"):
        load_dataset(write([0.1, "high"]), threshold=0.5)


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.5, "undesirable": 0}, "`undesirable` must be 'above' .the default. or 'below'; got 0"),
        ({"threshold": float("nan")}, "`threshold` must be a finite number, such as 0.5; got"),
        ({"threshold": "high"}, "`threshold` must be a finite number, such as 0.5; got"),
        ({"undesirable": []}, r"`undesirable` must be a label, such as 0, or a list of labels; got \[\]"),
        ({"undesirable": {"a": 1}}, "`undesirable` must be a label, such as 0, or a list of labels"),
    ],
)
def test_bad_senses_are_refused(write, options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        load_dataset(write([0, 1]), **options)


# Other sources of labels


def test_labels_of_several_columns_have_one_sense(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,safe,kind\na,0,1\nb,1,1\n")
    d = load_dataset(path, columns={"label": ("safe", "kind")}, undesirable=0)
    assert (labels(d), d.sense) == ([1, 0], "safe or kind is 0")
    path.write_text("comment_text,toxic,threat\na,0,1\nb,0,0\n")
    d = load_dataset(path, columns={"label": ("toxic", "threat")})
    assert (labels(d), d.sense) == ([1, 0], "toxic or threat")
    assert load_dataset(path).sense == "toxic"


def test_formats_without_a_label_column_take_no_sense(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,correct_answers,incorrect_answers\nwho?,me,you\n")
    for option in ({"undesirable": 0}, {"threshold": 0.5}):
        with pytest.raises(InvalidArgumentError, match="read a column of labels, and the format 'generation' has none"):
            load_dataset(path, **option)
        with pytest.raises(InvalidArgumentError, match="cannot be given with tiny-facts"):
            load_dataset("tiny-facts", **option)


def test_the_toxicity_of_continuations_has_a_threshold(tmp_path):
    path = tmp_path / "rtp.jsonl"
    row = {"prompt": {"text": "He", "toxicity": 0.1}, "continuation": {"text": " left", "toxicity": 0.3}}
    path.write_text(json.dumps(row))
    one, other = load_dataset(path), load_dataset(path, threshold=0.25)
    assert (labels(one), one.sense) == ([0], "toxicity at or above 0.5")
    assert (labels(other), other.sense) == ([1], "toxicity at or above 0.25")
