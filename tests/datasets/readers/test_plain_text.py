"""Encodings and separators of tables: found out from the content, named in `Dataset.reading`, never guessed wrongly."""

from __future__ import annotations

import gzip
import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens import load_dataset
from radiant_lens.datasets.readers.plain_text import decode, find_separator, table_lines
from radiant_lens.errors import DataError

TEXTS = ["Größe: 5 €, sagt er", "naïve; café", "plain | text", "a\tb"]


def read(d):
    return [(s.text, s.label) for s in d.statements]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Encodings


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("cp1252", "Windows-1252"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".tsv.gz"])
def test_encodings_are_found_out_and_said(tmp_path, encoding, name, ending):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    if ending.startswith((".csv", ".tsv")):
        text = pd.DataFrame(rows).to_csv(index=False, sep="," if ending == ".csv" else "\t")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if ending == ".jsonl" else f"[{','.join(lines)}]"
    data = text.encode(encoding)
    d = load_dataset(write(tmp_path, f"data{ending}", gzip.compress(data) if ending.endswith(".gz") else data))
    assert read(d) == [(row["text"], row["label"]) for row in rows]
    assert d.reading == (f"encoded in {name}" if name else "")
    assert (f", file encoded in {name})" in repr(d)) == bool(name)


def test_ascii_has_no_encoding_to_name():
    assert decode(b"text,label\na,0\n") == ("text,label\na,0\n", "")
    assert decode(b"") == ("", "")
    assert decode(b"a") == ("a", "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # One damaged byte among letters that are UTF-8: Windows-1252 would spoil them all.
        (b"text,label\n" + "äöüß, sagt er".encode() + b"\xff,0\n", "line 2 is not valid UTF-8 .*as UTF-8"),
        # A byte that Windows-1252 does not have.
        (b"text,label\na\x81,0\n", "line 2 is not valid UTF-8 .invalid start byte.; save the file as UTF-8"),
        (b"\x89PNG\r\n\x00\x00\x00", "null characters, so it is no text file"),
    ],
)
def test_other_bytes_are_refused(tmp_path, data, words):
    with pytest.raises(DataError, match=f"data.csv cannot be read as .csv: .*{words}"):
        load_dataset(write(tmp_path, "data.csv", data))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60))
def test_utf8_is_never_taken_for_something_else(text):
    assert decode(b"text,label\n" + text.encode()) == ("text,label\n" + text, "")


# Separators


@pytest.mark.parametrize(
    ("separator", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".CSV.gz"])
def test_separators_are_found_out_and_said(tmp_path, separator, name, ending):
    rows = [(text, i % 2, f"g{i}") for i, text in enumerate([*TEXTS, 'with "quotes"', "two\nlines"])]
    text = pd.DataFrame(rows, columns=["text", "label", "group"]).to_csv(index=False, sep=separator)
    data = gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode()
    d = load_dataset(write(tmp_path, f"data{ending}", data))
    assert read(d) == [row[:2] for row in rows]
    usual = "\t" if ending == ".tsv" else ","
    assert d.reading == ("" if separator == usual else f"separated by {name}")


@pytest.mark.parametrize(
    ("text", "usual", "separator"),
    [
        ("text,label\na; b,0\n", ",", ","),
        ("text;label\na, b;0\n", ",", ";"),
        ("text\na;b\n", ",", ","),
        ("text\na\n", "\t", "\t"),
        ("", ",", ","),
        # Several would split the header: the one by which rows are as long as it.
        ("a|b,c\n1|2\n3|4\n", ",", "|"),
        ("a|b,c\n1,2\n3,4\n", ",", ","),
        ('"a;b",c\n1,2\n', ",", ","),
    ],
)
def test_the_separator_is_the_one_of_the_header(text, usual, separator):
    assert find_separator(text, usual) == separator


def test_both_are_said(tmp_path):
    d = load_dataset(write(tmp_path, "excel.csv", "text;label\nGröße;0\n".encode("cp1252")))
    assert d.reading == "separated by semicolons and encoded in Windows-1252"
    assert [part.reading for part in (d, d.head(1))] == [d.reading] * 2


# Quotes


def test_a_quote_that_is_never_closed_is_refused(tmp_path):
    path = write(tmp_path, "data.csv", 'label,text\n0,a\n1,"b\n0,c\n1,d\n')
    with pytest.raises(DataError, match="data.csv cannot be read as .csv: a quote is never closed"):
        load_dataset(path)


def test_a_field_too_long_for_a_table_is_refused_with_the_remedy(tmp_path):
    path = write(tmp_path, "data.csv", f"text,label\n{'a' * 131_073},0\n")
    with pytest.raises(DataError, match="a field has more than 131072 characters; use .jsonl"):
        load_dataset(path)


def test_quotes_in_tables_of_tabs_are_text_where_nothing_is_quoted(tmp_path):
    plain = 'text\tlabel\n"So" he said\t0\nan inch is 1"\t1\n"open\t0\n'
    assert read(load_dataset(write(tmp_path, "plain.tsv", plain))) == [
        ('"So" he said', 0), ('an inch is 1"', 1), ('"open', 0)
    ]  # fmt: skip
    across = 'text\tlabel\n"open\t0\nclose"\t1\n'
    assert read(load_dataset(write(tmp_path, "across.tsv", across))) == [('"open', 0), ('close"', 1)]
    quoted = 'text\tlabel\n"a\tb"\t0\n"say ""so"""\t1\n'
    assert read(load_dataset(write(tmp_path, "quoted.tsv", quoted))) == [("a\tb", 0), ('say "so"', 1)]


def test_text_after_a_closed_quote_belongs_to_the_field():
    assert table_lines('text,label\n"a"b,0\n', ".csv")[0] == [(1, ["text", "label"]), (2, ["ab", "0"])]


texts = st.text(st.characters(codec="ascii", categories=("L", "P", "Zs")), min_size=1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 1)), min_size=1, max_size=6), st.sampled_from([",", ";", "\t", "|"]))
def test_what_a_table_writer_writes_is_read_back(rows, separator):
    text = pd.DataFrame(rows, columns=["text", "label"]).to_csv(index=False, sep=separator, lineterminator="\n")
    lines, _ = table_lines(text, ".csv")
    assert [tuple(fields) for _, fields in lines[1:]] == [(text, str(label)) for text, label in rows]


# Layouts of .json


ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


@pytest.mark.parametrize(
    ("name", "content", "reading"),
    [
        ("list.json", json.dumps(ROWS), ""),
        ("lines.json", "\n".join(map(json.dumps, ROWS)), ""),
        ("columns.json", json.dumps({"text": ["a", "b"], "label": [1, 0]}), "holds an object of columns"),
        ("frame.json", pd.DataFrame(ROWS).to_json(), "holds an object of columns"),
        ("lines.jsonl", "\n".join(map(json.dumps, ROWS)), ""),
        ("LINES.NDJSON", "\n".join(map(json.dumps, ROWS)) + "\n\n", ""),
        ("list.jsonl", json.dumps(ROWS, indent=1), "holds one JSON list"),
    ],
)
def test_layouts_of_json(tmp_path, name, content, reading):
    d = load_dataset(write(tmp_path, name, content))
    assert (read(d), d.reading) == ([("a", 1), ("b", 0)], reading)


def test_one_object_that_is_a_row_is_no_object_of_columns(tmp_path):
    row = {"question": "Who?", "correct_answers": ["me"], "incorrect_answers": ["you"]}
    assert len(load_dataset(write(tmp_path, "one.json", json.dumps(row)))) == 2
    toxic = {"prompt": {"text": "So", "toxicity": 0.1}, "continuation": {"text": " it", "toxicity": 0.9}}
    assert len(load_dataset(write(tmp_path, "two.json", json.dumps(toxic)))) == 1
    # Columns of several lengths are refused as the row that they are not.
    with pytest.raises(DataError, match="row 1: `text` must be text; got"):
        load_dataset(write(tmp_path, "three.json", json.dumps({"text": ["a", "b"], "label": [1]})))
