"""Files in the shapes that people bring: lists as text, one answer a row, endings, contrastive pairs."""

from __future__ import annotations

import gzip
import json

import pytest

from radiant_lens import load_dataset
from radiant_lens.datasets.readers.columns import read_list
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError

QUESTION = {"question": "who?", "correct_answers": ["me"], "incorrect_answers": ["you"]}


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def answers(d):
    return [(s.text[s.answer_start :], s.label) for s in d.statements]


# Lists as text


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['a', 'b; c']", ["a", "b; c"]),
        ('["a","b; c"]', ["a", "b; c"]),
        ("['a' 'b; c']", ["a", "b; c"]),
        ("['a'\n 'b; c']", ["a", "b; c"]),
        ("""["it's" 'b']""", ["it's", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("['a',]", ["a"]),
        (" ['a'] ", ["a"]),
        ("[]", []),
        ("a; b", None),
        ("(A)", None),
        ("me [1]", None),
    ],
)
def test_lists_written_as_text_are_read(text, items):
    assert read_list(text, "answers") == items


@pytest.mark.parametrize("text", ["[a, b]", "['a' ... 'b']", "[1, 2]", "['a', 3]", "array(['a'])", "['a'", "[b'a']"])
def test_text_that_only_looks_like_a_list_is_refused_with_the_remedy(tmp_path, text):
    path = write(tmp_path, "q.csv", f'question,correct_answers,incorrect_answers\nwho?,"{text}",you\n')
    # Without its closing bracket it is a text that begins with a bracket.
    if text == "['a'":
        assert answers(load_dataset(path)) == [("['a'", 0), ("you", 1)]
    else:
        with pytest.raises(DataError, match=r'line 2: `correct_answers` looks like a list .*as JSON, such as \["one"'):
            load_dataset(path)


def test_a_csv_with_lists_written_by_python_and_numpy(tmp_path):
    rows = "what?,None,\"['None', 'You rest; well']\",\"['You die' 'You fly']\"\nwhy?,Cold,['Cold'],['Hot']\n"
    d = load_dataset(write(tmp_path, "q.csv", "question,best_answer,correct_answers,incorrect_answers\n" + rows))
    assert answers(d)[:4] == [("None", 0), ("You rest; well", 0), ("You die", 1), ("You fly", 1)]
    assert answers(d)[4:] == [("Cold", 0), ("Hot", 1)]
    assert [p.best_answer for p in d.prompts] == ["None", "Cold"]


def test_only_the_published_columns_of_lists_are_cut(tmp_path):
    cut = load_dataset(write(tmp_path, "q.csv", "question,correct_answers,incorrect_answers\nq?,a; b,c\n"))
    assert answers(cut) == [("a", 0), ("b", 0), ("c", 1)]
    iti = load_dataset(write(tmp_path, "i.csv", "question,answer,false_answer\nq?,a; b,c; d\n"))
    assert answers(iti) == [("a; b", 0), ("c; d", 1)]
    names = {"correct_answers": "right", "incorrect_answers": "wrong"}
    own = load_dataset(write(tmp_path, "o.csv", 'question,right,wrong\nq?,a; b,"[""c; d"", ""e""]"\n'), columns=names)
    assert answers(own) == [("a; b", 0), ("c; d", 1), ("e", 1)]


def test_answers_of_one_column_each_in_a_json_with_one_object_a_line(tmp_path):
    rows = [
        {"question": "Which was first?", "right": "X, in 1900; Y later", "invented": "Y; by far"},
        {"question": "Who?", "right": "Me", "invented": "You"},
    ]
    path = write(tmp_path, "h.json", "".join(json.dumps(row) + "\n" for row in rows))
    d = load_dataset(path, columns={"correct_answers": "right", "incorrect_answers": "invented"})
    assert answers(d) == [("X, in 1900; Y later", 0), ("Y; by far", 1), ("Me", 0), ("You", 1)]
    assert d.sense == "invented"
    with pytest.raises(
        DataError, match=r"h.json has columns of no known format \(question, right, invented\): name them by columns="
    ):
        load_dataset(path)
    with pytest.raises(DataError, match="h.json has no column 'rigt'; there are: question, right, invented"):
        load_dataset(path, columns={"correct_answers": "rigt", "incorrect_answers": "invented"})
    path.write_text(json.dumps(QUESTION) + "\n{broken\n")
    with pytest.raises(DataError, match="h.json cannot be read as .jsonl: line 2"):
        load_dataset(path)


# Missing values


@pytest.mark.parametrize("column", ["best_answer", "best_incorrect_answer", "group"])
def test_nan_in_a_column_of_a_question_is_missing(tmp_path, column):
    path = write(tmp_path, "q.jsonl", json.dumps({**QUESTION, column: float("nan")}))
    d = load_dataset(path)
    assert answers(d) == [("me", 0), ("you", 1)]
    (prompt,) = d.prompts
    assert (prompt.best_answer, prompt.best_incorrect_answer, prompt.group) == ("me", "", "who?")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**QUESTION, "question": float("nan")}, "`question` is empty"),
        ({**QUESTION, "question": [{"role": "user", "content": "a"}]}, r"`question` must be text; got \[\{"),
        ({**QUESTION, "correct_answers": float("nan"), "incorrect_answers": None}, "there are no answers"),
        ({**QUESTION, "correct_answers": [float("nan")]}, "`correct_answers` must be a list of strings"),
        ({"comment_text": float("nan"), "toxic": 1}, "`comment_text` is empty"),
        ({"comment_text": ["a"], "toxic": 1}, "`text` must be text"),
        ({"prompt": float("nan"), "continuation": "a"}, "`prompt` is empty"),
    ],
)
def test_rows_without_a_needed_text_are_named_by_their_line(tmp_path, row, words):
    with pytest.raises(DataError, match=f"line 1: {words}"):
        load_dataset(write(tmp_path, "q.jsonl", json.dumps(row)))


# Answer markers


def test_a_word_that_ends_in_a_marker_is_no_marker(tmp_path):
    row = {"text": "The USA: fifty states in North America.", "label": 0}
    assert load_dataset(write(tmp_path, "n.jsonl", json.dumps(row))).statements[0].answer_start == 0


# Contrastive pairs


PAIRS = [
    {
        "question": f"Do you like {x}?\n\nChoices:\n (A) Yes; always\n (B) No",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    for x in ("rain", "snow")
]


def test_contrastive_pairs_need_no_option_and_show_their_sense(tmp_path):
    path = write(tmp_path, "caa.json", json.dumps(PAIRS))
    d = load_dataset(str(path))
    assert answers(d) == [("(B)", 0), ("(A)", 1)] * 2
    assert (d.judge, d.sense, len(d.groups)) == ("exact", "answer_matching_behavior", 2)
    # Some behaviours are wanted.
    other = load_dataset(path, undesirable="answer_not_matching_behavior")
    assert answers(other) == [("(A)", 0), ("(B)", 1)] * 2
    assert other.sense == "answer_not_matching_behavior"
    with pytest.raises(InvalidArgumentError, match="`undesirable` must be one of 'answer_not_matching_behavior', "):
        load_dataset(path, undesirable=0)


# Endings

TABLE = "text,label\na,1\nb,0\n"
LINES = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MINE.CSV", TABLE.encode()),
        ("MINE.JsonL", LINES.encode()),
        ("MINE.tsv", TABLE.replace(",", "\t").encode()),
        ("MINE.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("MINE.CSV.GZ", gzip.compress(TABLE.encode(), mtime=0)),
        ("MINE.json", LINES.encode()),
    ],
)
def test_endings_in_any_case_and_compressed(tmp_path, name, content):
    d = load_dataset(write(tmp_path, name, content))
    assert [(s.text, s.label) for s in d.statements] == [("a", 1), ("b", 0)]
    assert d.name == "MINE"


def test_parquet(tmp_path):
    import pandas as pd

    path = tmp_path / "mine.parquet"
    pd.DataFrame([QUESTION, {**QUESTION, "question": "where?"}]).to_parquet(path)
    assert answers(load_dataset(path)) == [("me", 0), ("you", 1)] * 2
    # A damaged file, and one packed twice.
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="mine.parquet cannot be read as .parquet"):
        load_dataset(path)
    path.rename(tmp_path / "mine.parquet.gz")
    with pytest.raises(DataError, match="compressed already; unpack the .gz"):
        load_dataset(tmp_path / "mine.parquet.gz")


@pytest.mark.parametrize("name", ["mine.xlsx", "mine.xlsx.gz", "mine.gz", "mine"])
def test_other_endings_are_refused_by_name(tmp_path, name):
    with pytest.raises(
        UnknownNameError, match=r"A file must end in .csv, .json or .jsonl \(or .tsv, .ndjson, .parquet, or .txt"
    ):
        load_dataset(write(tmp_path, name, TABLE))


def test_a_broken_gz_is_refused(tmp_path):
    for content in (b"no gzip", gzip.compress(LINES.encode())[:-9]):
        with pytest.raises(DataError, match="mine.jsonl.gz cannot be read as .jsonl"):
            load_dataset(write(tmp_path, "mine.jsonl.gz", content))


# Groups


def test_rows_of_few_groups_keep_them(tmp_path):
    rows = [{"text": f"Q: {g}? A: {'good' if i % 2 else 'bad'}", "label": 1 - i % 2, "group": f"shop {g}"}
            for g in range(10) for i in range(4)]  # fmt: skip
    d = load_dataset(write(tmp_path, "shops.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert (len(d), len(d.groups)) == (40, 10)
    assert [len(part.groups) for part in d.split()] == [6, 2, 2]
