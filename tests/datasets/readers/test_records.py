"""Reading statements and prompts from files, and refusing rows by their line."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens.datasets import Dataset, Prompt, Statement, read_records, write_records
from radiant_lens.datasets.records import find_answer_start
from radiant_lens.errors import DataError, UnknownNameError

STATEMENT = {"text": "Q: who? A: me", "label": 1, "group": "g", "answer_start": 3}
PROMPT = {"prompt": "Q: who? A:", "correct_answers": ["you", "he"], "incorrect_answers": ["me"], "group": "g"}


def jsonl(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def csv(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode())
    return path


# Records


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Q: who? A: me", "me"),
        ("Q : who ? A : me A : you", "you"),
        ("T : hm ? R :  no .", "no ."),
        ("Human: hi\nAssistant: hello", "hello"),
        ("Question: x Answer:y", "y"),
        ("no marker at all", "no marker at all"),
        # A marker counts at the beginning of a word only.
        ("The USA: a country", "The USA: a country"),
        ("The U.S.A: a country", "The U.S.A: a country"),
        ("Q: where? A: in the USA: north", "in the USA: north"),
        ("FAQAnswer: y", "FAQAnswer: y"),
        ("FOR : me", "FOR : me"),
        ("A: x", "x"),
        ("who?\nA : x", "x"),
    ],
)
def test_the_answer_starts_after_the_last_marker_and_its_blanks(text, answer):
    assert text[find_answer_start(text) :] == answer


@pytest.mark.parametrize("end", ["", " ", "\n"])
def test_an_answered_prompt_is_a_statement_whose_answer_is_known(end):
    prompt = Prompt(f"Q: who? A:{end}", ("you",), ("me",), "g")
    right, wrong = prompt.answered("you"), prompt.answered("me")
    assert (right.label, wrong.label) == (0, 1)
    assert right.text == f"Q: who? A:{end or ' '}you"
    assert right.text[right.answer_start :] == "you"
    assert right.group == "g"


# What is read


def test_jsonl_of_both_kinds(tmp_path):
    statements, prompts = read_records(jsonl(tmp_path, STATEMENT, "", PROMPT))
    assert statements == (Statement("Q: who? A: me", 1, "g", 3),)
    assert prompts == (Prompt("Q: who? A:", ("you", "he"), ("me",), "g", best_answer="you"),)


@pytest.mark.parametrize("rows", [[STATEMENT, PROMPT], STATEMENT])
def test_json_is_a_list_or_one_row(tmp_path, rows):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, indent=2))
    statements, prompts = read_records(path)
    assert [s.text for s in statements] == ["Q: who? A: me"]
    assert len(prompts) == (1 if isinstance(rows, list) else 0)


def test_csv_of_both_kinds(tmp_path):
    text = (
        "text,label,group,answer_start,prompt,correct_answers,incorrect_answers,best_answer\n"
        '"Q: who, now? A: me",1,g,,,,,\n'
        ",,h,,Q: where? A:,here; there ,nowhere,there\n"
    )
    statements, prompts = read_records(csv(tmp_path, text))
    assert statements == (Statement("Q: who, now? A: me", 1, "g", 16),)
    assert prompts == (Prompt("Q: where? A:", ("here", "there"), ("nowhere",), "h", best_answer="there"),)


def test_csv_fields_may_hold_line_breaks(tmp_path):
    statements, _ = read_records(csv(tmp_path, 'text,label\r\n"one\ntwo",0\r\nthree,1\r\n'))
    assert [(s.text, s.label) for s in statements] == [("one\ntwo", 0), ("three", 1)]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, kind):
    row = {"text": "ä", "label": 0, "group": "g"}
    content = "text,label,group\nä,0,g\n" if kind == "csv" else json.dumps(row)
    path = tmp_path / f"data.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_records(path) == ((Statement("ä", 0, "g"),), ())


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, 0), (1, 1), ("1", 1), (" 0 ", 0), (1.0, 1), ("0.0", 0), ("undesirable", 1), ("Harmless", 0), ("non-toxic", 0)],
)
def test_labels_are_read_in_every_usual_form(tmp_path, value, label):
    (statement,), _ = read_records(jsonl(tmp_path, {"text": "a", "label": value}))
    assert statement.label == label


def test_rows_without_a_group_are_their_own_and_rows_of_one_text_share_theirs(tmp_path):
    bare = {k: v for k, v in PROMPT.items() if k != "group"}
    rows = [{"text": text, "label": i % 2} for i, text in enumerate("aba")]
    rows += [{"text": "a", "label": 0, "group": "own"}, bare, {**bare, "condition": "provoked"}]
    statements, prompts = read_records(jsonl(tmp_path, *rows))
    assert [s.group for s in statements] == ["line 1", "line 2", "line 1", "own"]
    assert prompts[0].group == prompts[1].group == PROMPT["prompt"]
    assert [p.condition for p in prompts] == ["bare", "provoked"]


def test_group_zero_is_a_group(tmp_path):
    rows = [{"text": text, "label": 0, "group": group} for text, group in (("a", 0), ("b", 0), ("c", 1))]
    statements, _ = read_records(jsonl(tmp_path, *rows))
    assert statements[0].group == statements[1].group != statements[2].group


def test_missing_values_are_never_text(tmp_path):
    nan = float("nan")
    statement = {**STATEMENT, "group": nan, "question": nan, "rendered": nan, "prompt": nan}
    prompt = {
        **PROMPT,
        **dict.fromkeys(("best_answer", "best_incorrect_answer", "group", "condition", "question"), nan),
    }
    prompt |= {"joint": nan, "mc1_incorrect": nan, "rendered": nan}
    statements, prompts = read_records(jsonl(tmp_path, statement, prompt))
    assert statements == (Statement("Q: who? A: me", 1, "line 1", 3),)
    assert prompts == (Prompt("Q: who? A:", ("you", "he"), ("me",), "Q: who? A:", "you"),)


def test_an_empty_joint_is_a_joint(tmp_path):
    _, (prompt,) = read_records(jsonl(tmp_path, {**PROMPT, "joint": ""}))
    assert prompt.answered("me").text == "Q: who? A:me"


def test_answer_start_zero_is_kept(tmp_path):
    (statement,), _ = read_records(jsonl(tmp_path, {**STATEMENT, "answer_start": 0}))
    assert statement.answer_start == 0


# Round trip

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(str.strip).filter(bool)
statements_ = st.builds(
    lambda text, label, group, part: Statement(text, label, group, int(part * len(text))),
    words, st.integers(0, 1), words, st.floats(0, 0.99),
)  # fmt: skip
answers = st.lists(words, min_size=1, max_size=3).map(tuple)
prompts_ = st.builds(
    Prompt, words, answers, answers, words, best_answer=words, condition=st.sampled_from(["bare", "provoked"])
)


@settings(deadline=None, max_examples=60)
@given(st.lists(statements_, min_size=1, max_size=4).map(tuple), st.lists(prompts_, max_size=3).map(tuple))
def test_records_survive_writing_and_reading(tmp_path_factory, statements, prompts):
    path = tmp_path_factory.mktemp("round") / "data.jsonl"
    assert read_records(write_records(path, Dataset("d", statements, prompts))) == (statements, prompts)


@pytest.mark.parametrize("break_", ["\u2028", "\u0085", "\x0b", "\x1e"])
def test_csv_rows_end_only_where_the_format_says_so(tmp_path, break_):
    statements, _ = read_records(csv(tmp_path, f"text,label\none{break_}two,0\n"))
    assert [s.text for s in statements] == [f"one{break_}two"]


# Refusals


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a"}, "missing column 'label' (there are: text); statements need 'text' and 'label', prompts"),
        ({"txt": "a", "lab": 0}, "missing column 'text' and 'label' (there are: txt, lab)"),
        ({"prompt": "a"}, "missing column 'correct_answers' and 'incorrect_answers' (there are: prompt)"),
        ({"text": " ", "label": 0}, "`text` is empty."),
        ({"text": 3, "label": 0}, "`text` must be text; got 3."),
        ({"text": float("nan"), "label": 0}, "`text` is empty."),
        ({"text": [{"role": "user", "content": "a"}], "label": 0}, "`text` must be text; got [{'role'"),
        ({"text": "[{'role': 'user', 'content': 'a'}]", "label": 0}, "`text` must be text; got the turns of a chat"),
        ({**STATEMENT, "group": ["a"]}, "`group` must be text or a number; got ['a']."),
        ({**STATEMENT, "question": {"a": 1}}, "`question` must be text; got {'a': 1}."),
        ({**PROMPT, "best_answer": ["me"]}, "`best_answer` must be text; got ['me']."),
        ({**PROMPT, "best_answer": "['me', 'I']"}, "`best_answer` must be one answer; got the list"),
        ({**PROMPT, "condition": []}, "`condition` must be text or a number; got []."),
        ({**PROMPT, "joint": 3}, "`joint` must be text; got 3."),
        ({**PROMPT, "prompt": ["a"]}, "`prompt` must be text; got ['a']."),
        ({"text": "a", "label": 2}, "`label` must be 0 (desirable) or 1 (undesirable); got 2: name"),
        ({"text": "a", "label": "toxi"}, "`label` must be 0 (desirable) or 1 (undesirable); got 'toxi': name the"),
        ({"text": "a", "label": "true"}, "`label` must be 0 (desirable) or 1 (undesirable); got 'true': name the"),
        ({"text": "a", "label": True}, "`label` must be 0 (desirable) or 1 (undesirable); got True: name the"),
        ({"text": "a", "label": float("nan")}, "`label` must be 0 (desirable) or 1 (undesirable); it is empty."),
        ({"text": "abc", "label": 0, "answer_start": 3}, "`answer_start` must lie in [0, 3); got 3."),
        ({"text": "abc", "label": 0, "answer_start": -1}, "`answer_start` must lie in [0, 3); got -1."),
        ({"text": "abc", "label": 0, "answer_start": "x"}, "`answer_start` must lie in [0, 3); got 'x'."),
        ({"text": "abc", "label": 0, "answer_start": 2.7}, "`answer_start` must be a whole number; got 2.7."),
        ({**PROMPT, "correct_answers": [], "incorrect_answers": ""}, "the prompt has no answers to compare with; a"),
        ({**PROMPT, "correct_answers": 3}, "`correct_answers` must be a list of strings or a string separated by"),
        ({**PROMPT, "incorrect_answers": ["a", 1]}, "`incorrect_answers` must be a list of strings"),
        (["a", 0], "a row must hold named columns; got ['a', 0]."),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named_by_its_line(tmp_path, row, sentence):
    with pytest.raises(DataError, match=re.escape(f"data.jsonl has rows that cannot be used (1): line 3: {sentence}")):
        read_records(jsonl(tmp_path, STATEMENT, "", row, STATEMENT))


@pytest.mark.parametrize(("value", "start"), [("2", 2), (2.0, 2), (0, 0)])
def test_whole_numbers_are_read_in_every_form(tmp_path, value, start):
    (statement,), _ = read_records(jsonl(tmp_path, {"text": "abc", "label": 0, "answer_start": value}))
    assert statement.answer_start == start


def test_a_prompt_may_have_no_answers_where_the_judge_needs_none(tmp_path):
    path = jsonl(tmp_path, {**PROMPT, "correct_answers": [], "incorrect_answers": []})
    _, (prompt,) = read_records(path, judge="toxicity")
    assert (prompt.correct_answers, prompt.incorrect_answers, prompt.best_answer) == ((), (), "")
    with pytest.raises(DataError, match="line 1: the prompt has no answers"):
        read_records(path, judge="exact")


def test_bad_rows_can_be_left_out(tmp_path):
    path = jsonl(tmp_path, STATEMENT, {"text": "a"}, PROMPT)
    statements, prompts = read_records(path, on_bad_rows="report")
    assert (len(statements), len(prompts)) == (1, 1)
    with pytest.raises(DataError, match="has rows that cannot be used \\(1\\): line 1"):
        read_records(jsonl(tmp_path, {"text": "a"}), on_bad_rows="report")


def test_a_csv_row_that_is_too_long_is_named_by_its_line(tmp_path):
    with pytest.raises(DataError, match="line 3: the row has 2 more fields than the header"):
        read_records(csv(tmp_path, "text,label\na,0\nb,1,c,d\n"))


def test_a_csv_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as \.csv: the header names a column twice: 'text'"):
        read_records(csv(tmp_path, "text,label,text\na,0,b\n"))


def test_a_csv_row_of_several_lines_is_named_by_its_first(tmp_path):
    with pytest.raises(DataError, match="line 4: `label` must be 0"):
        read_records(csv(tmp_path, 'text,label\n"a\nb",0\n"c\nd",2\n'))


@pytest.mark.parametrize("row", [3, "a prompt", None, True])
def test_a_row_without_columns_is_named_by_its_line(tmp_path, row):
    with pytest.raises(DataError, match="line 2: a row must hold named columns"):
        read_records(jsonl(tmp_path, STATEMENT, json.dumps(row)))


@pytest.mark.parametrize("start", [float("inf"), float("nan")])
def test_an_answer_start_that_is_no_number_is_refused(tmp_path, start):
    with pytest.raises(DataError, match="line 1: `answer_start` must lie in"):
        read_records(jsonl(tmp_path, {**STATEMENT, "answer_start": start}))


def test_a_bad_row_of_each_kind_is_shown_and_the_others_are_counted(tmp_path):
    labels = [{"text": "a", "label": label} for label in (7, 8, "x")]
    others = [{"text": " ", "label": 0}, {"text": 3, "label": 0}, {"text": "a", "label": 0, "group": []}]
    words = r"cannot be used \(6\): line 2: `label` .*got 7: .* line 5: `text` is empty. line 6: .*; got 3. \(3 more\)$"
    with pytest.raises(DataError, match=words) as caught:
        read_records(jsonl(tmp_path, STATEMENT, *labels, *others))
    assert str(caught.value).count("`label`") == 1
    with pytest.raises(DataError, match=r"\(1\): line 2: .*=0.5.$"):
        read_records(jsonl(tmp_path, STATEMENT, labels[0]))


def test_a_csv_row_is_named_by_its_line(tmp_path):
    with pytest.raises(
        DataError, match=re.escape("line 3: `label` must be 0 (desirable) or 1 (undesirable); got 'maybe': name")
    ):
        read_records(csv(tmp_path, "text,label\na,0\nb,maybe\n"))


def test_a_csv_row_that_is_too_short_is_named_by_its_line(tmp_path):
    with pytest.raises(DataError, match="line 2: `label` must be 0"):
        read_records(csv(tmp_path, "text,label\na\n"))


def test_broken_jsonl_is_named_by_its_line(tmp_path):
    with pytest.raises(DataError, match=r"data\.jsonl cannot be read as \.jsonl: .*line 3"):
        read_records(jsonl(tmp_path, STATEMENT, STATEMENT, '{"text": '))


@pytest.mark.parametrize(
    ("name", "content"), [("data.json", b"{"), ("data.jsonl", b"\xff\xfe\x00"), ("data.csv", b"text\n\x81")]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(name)} cannot be read as"):
        read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"), [("data.json", "[]"), ("data.jsonl", "\n\n"), ("data.csv", "text,label\n")]
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{re.escape(name)} has no rows"):
        read_records(tmp_path / name)


def test_a_missing_file_and_an_unknown_ending_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_records(tmp_path / "data.csv")
    (tmp_path / "data.doc").write_text("a")
    with pytest.raises(UnknownNameError, match=r"'\.doc' is not a known data file ending"):
        read_records(tmp_path / "data.doc")
