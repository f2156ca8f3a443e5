"""Data in memory: tables of pandas and Hugging Face, lists of mappings or pairs, columns; each as from a file."""

from __future__ import annotations

import subprocess
import sys

import datasets as hub
import numpy as np
import pandas as pd
import pytest
import torch

import radiant_lens as rl
from radiant_lens import load_dataset
from radiant_lens.datasets import ChatTemplate
from radiant_lens.datasets.readers.memory import plain
from radiant_lens.errors import DataError, InvalidArgumentError

ROWS = [{"text": "Thanks a lot.", "label": 0, "group": "g"}, {"text": "Get lost.", "label": 1, "group": "h"}]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def read(d):
    return [(s.text[s.answer_start :], s.label, s.group) for s in d.statements]


WAYS = {
    "DataFrame": pd.DataFrame(ROWS),
    "DataFrame with an index": pd.DataFrame(ROWS, index=["x", "y"]),
    "DataFrame of other types": pd.DataFrame(ROWS).astype({"text": "string", "label": "Int64", "group": "category"}),
    "Dataset": hub.Dataset.from_list(ROWS),
    "Dataset of tensors": hub.Dataset.from_list(ROWS).with_format("torch"),
    "IterableDataset": hub.Dataset.from_list(ROWS).to_iterable_dataset(),
    "list of dicts": ROWS,
    "tuple of dicts": tuple(ROWS),
    "dict of columns": COLUMNS,
    "list of dicts with numbers of NumPy and torch": [
        {**ROWS[0], "label": np.int64(0)}, {**ROWS[1], "label": torch.tensor(1)}
    ],
}  # fmt: skip


@pytest.mark.parametrize("source", WAYS.values(), ids=WAYS)
def test_every_kind_of_table_is_read_as_its_file_would_be(tmp_path, source):
    path = tmp_path / "data.jsonl"
    pd.DataFrame(ROWS).to_json(path, orient="records", lines=True)
    d = load_dataset(source)
    assert read(d) == read(load_dataset(path)) == [("Thanks a lot.", 0, "g"), ("Get lost.", 1, "h")]
    assert repr(d) == "Dataset('data': 2 statements, 0 prompts, 2 groups, label 1 = undesirable)"


@pytest.mark.parametrize("pairs", [[("a", 0), ("b", 1)], (["a", 0], ["b", 1.0]), [("a", np.int64(0)), ("b", "1")]])
def test_pairs_of_a_text_and_a_label(pairs):
    words = any(isinstance(label, str) for _, label in pairs)
    d = load_dataset(pairs, undesirable=1 if words else None)
    assert [(s.text, s.label) for s in d.statements] == [("a", 0), ("b", 1)]
    assert len(d.groups) == 2


def test_the_options_of_files_apply():
    frame = pd.DataFrame({"sentence": ["a", "b", "c"], "true": [True, False, True], "topic": [1, 1, 2]})
    d = load_dataset(frame, columns={"text": "sentence", "label": "true", "group": "topic"}, undesirable=False)
    assert (read(d), d.sense) == ([("a", 0, "1"), ("b", 1, "1"), ("c", 0, "2")], "true is false")
    scored = load_dataset([{"text": "a", "score": 0.4}, {"text": "b", "score": 0.5}], threshold=0.5)
    assert ([s.label for s in scored.statements], scored.sense) == ([0, 1], "score at or above 0.5")
    question = {"question": ["Who?"], "correct_answers": [np.array(["me; myself"])], "incorrect_answers": [["you"]]}
    d = load_dataset(pd.DataFrame(question), template="Question: {question}\n{answer}")
    assert [s.text for s in d.statements] == ["Question: Who?\nme; myself", "Question: Who?\nyou"]
    assert load_dataset(ROWS, judge="toxicity").judge == "toxicity"
    assert load_dataset(ROWS, contexts=rl.Contexts(n_pairs=(1,))).contexts == rl.Contexts(n_pairs=(1,))
    again = load_dataset([{"bad": "x", "also": "y", "good": "z", "question": "q"}],
                         columns={"correct_answers": "good", "incorrect_answers": ("bad", "also")})  # fmt: skip
    assert (again.prompts[0].incorrect_answers, again.sense) == (("x", "y"), "bad or also")


def test_bad_rows_are_named_by_their_number():
    frame = pd.DataFrame({"text": ["a", pd.NA, "c"], "label": pd.array([0, 1, None], dtype="Int64")})
    with pytest.raises(DataError, match=r"the DataFrame has rows .* \(2\): row 2: `text` is empty. row 3: `label`"):
        load_dataset(frame)
    d = load_dataset(frame, on_bad_rows="report")
    assert len(d) == 1
    assert d.skipped[0] == "row 2: `text` is empty."


def test_class_labels_of_hugging_face_are_read_by_their_names():
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["rude", "kind"])})
    table = hub.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    with pytest.raises(DataError, match=r"row 1: `label` must be 0 .*; got 'rude': name the undesirable ones"):
        load_dataset(table)
    d = load_dataset(table, undesirable="rude")
    assert ([s.label for s in d.statements], d.sense) == ([1, 0], "label is rude (0 = 'kind')")


def test_class_labels_that_name_their_sense_need_no_option():
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["toxic", "non-toxic"])})
    table = hub.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    d = load_dataset(table, on_bad_rows="report")
    assert [s.label for s in d.statements] == [1, 0]
    assert d.skipped[0].startswith("row 3: `label` must be 0 (desirable) or 1 (undesirable); got -1")


def test_chats_in_memory(tokenizers):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    chat = ChatTemplate(tokenizers["plain"])
    for source in ([{"messages": turns, "label": 0}], pd.DataFrame({"messages": [np.array(turns)], "label": [0]})):
        (s,) = load_dataset(source, template=chat).statements
        assert (s.text[s.answer_start :], s.rendered) == ("hello", True)


# Contrastive pairs


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"chosen": "a", "rejected": "b"}, {}, [("a", 0), ("b", 1)]),
        ({"chosen": "a", "rejected": "b"}, {"undesirable": "chosen"}, [("b", 0), ("a", 1)]),
        ({"positive": "a", "negative": "b"}, {"undesirable": "negative"}, [("a", 0), ("b", 1)]),
        ({"positive": "a", "negative": "b"}, {"undesirable": "positive"}, [("b", 0), ("a", 1)]),
        ({"prompt": "p", "positive": "a", "negative": "b"}, {"undesirable": "positive"}, [("b", 0), ("a", 1)]),
        ({"question": "p", "chosen": "a", "rejected": "b"}, {}, [("a", 0), ("b", 1)]),
        (
            {"p": "a", "n": "b"},
            {"undesirable": "p", "columns": {"positive": "p", "negative": "n"}},
            [("b", 0), ("a", 1)],
        ),
    ],
)
def test_contrastive_pairs_state_their_undesirable_side(row, options, expected):
    d = load_dataset([row], **options)
    assert [(s.text[s.answer_start :], s.label) for s in d.statements] == expected
    assert len(d.groups) == 1
    assert d.sense == next(name for name, value in row.items() if value == expected[1][0])
    assert [p.text for p in d.prompts] == (["p"] if "p" in row.values() else [])


def test_positive_and_negative_have_no_sense_of_their_own():
    words = "pairs of 'positive' and 'negative', .* say undesirable='negative' or undesirable='positive'"
    with pytest.raises(InvalidArgumentError, match=words):
        load_dataset([{"positive": "a", "negative": "b"}])
    with pytest.raises(InvalidArgumentError, match="`undesirable` must be one of 'positive', 'negative'; got 'bad'"):
        load_dataset([{"positive": "a", "negative": "b"}], undesirable="bad")
    with pytest.raises(InvalidArgumentError, match="`threshold` compares scores .* the list has pairs and no labels"):
        load_dataset([{"positive": "a", "negative": "b"}], undesirable="positive", threshold=0.5)


def test_pairs_of_two_texts_are_ambiguous():
    pairs = [("Thanks.", "Get lost."), ("Sure.", "No way.")]
    with pytest.raises(InvalidArgumentError, match="Pairs of two texts may be .* `undesirable=`, .*{'chosen': "):
        load_dataset(pairs)
    # With a label that is named, the second text is a label.
    d = load_dataset([("Thanks.", "kind"), ("Get lost.", "rude")], undesirable="rude")
    assert [s.label for s in d.statements] == [0, 1]
    with pytest.raises(DataError, match="`undesirable` names 'rude', but no row of the list has this label"):
        load_dataset(pairs, undesirable="rude")


@pytest.mark.parametrize(
    ("chosen", "rejected", "context", "answers"),
    [
        ("\n\nHuman: hi\n\nAssistant: A: b", "\n\nHuman: hi\n\nAssistant: no", "\n\nHuman: hi\n\nAssistant:",
         ["A: b", "no"]),
        ("Q: a A: yes", "Q: a A: yesterday", "Q: a A:", ["yes", "yesterday"]),
        ("Q: a A: yes", "Q: b A: no", "", ["yes", "no"]),
        ("Yes.", "No.", "", ["Yes.", "No."]),
    ],
)  # fmt: skip
def test_pairs_of_whole_texts_are_cut_at_the_marker_that_they_share(chosen, rejected, context, answers):
    d = load_dataset([{"chosen": chosen, "rejected": rejected}])
    assert [s.text[s.answer_start :] for s in d.statements] == answers
    assert [s.text for s in d.statements] == [chosen, rejected]
    assert [(p.text, p.correct_answers, p.incorrect_answers) for p in d.prompts] == (
        [(context, (answers[0],), (answers[1],))] if context else []
    )


def test_a_template_needs_a_prompt_to_be_laid_around(tokenizers):
    for template in (ChatTemplate(tokenizers["plain"]), "Q: {question} A: {answer}"):
        with pytest.raises(DataError, match="row 1: there is no `prompt` to lay the template around: leave out"):
            load_dataset([{"chosen": "a", "rejected": "b"}], template=template)
        assert len(load_dataset([{"prompt": "p", "chosen": "a", "rejected": "b"}], template=template)) == 2


# Prompt, completion, label


def test_labelled_completions(tokenizers):
    rows = [
        {"prompt": "Who?", "completion": " Me.", "label": True},
        {"prompt": "Who? ", "completion": "X", "label": False},
    ]
    with pytest.raises(InvalidArgumentError, match="Label 1 of column 'label' of 'completion' .* undesirable=False or"):
        load_dataset(rows)
    d = load_dataset(rows, undesirable=False)
    assert [(s.text, s.answer_start, s.label) for s in d.statements] == [("Who? Me.", 5, 0), ("Who? X", 5, 1)]
    assert d.groups == {"who?"}
    turns = [{"prompt": [{"role": "user", "content": "Who?"}],
              "completion": [{"role": "assistant", "content": "Me."}], "label": True}]  # fmt: skip
    chat = ChatTemplate(tokenizers["plain"])
    (s,) = load_dataset(turns, undesirable=True, template=chat).statements
    assert s == load_dataset(rows[:1], undesirable=True, template=chat).statements[0]
    assert (s.text[s.answer_start :], s.label, s.rendered) == ("Me.", 1, True)
    with pytest.raises(DataError, match="row 1: `prompt` and `completion` must not be empty"):
        load_dataset([{"prompt": "p", "completion": " ", "label": 0}], undesirable=0)


# Records


def test_records_need_no_group():
    assert rl.Statement("a", 0).group == "a"
    assert rl.Prompt("p", ("a",), ("b",)).group == "p"
    d = rl.Dataset("mine", (rl.Statement("a", 0), rl.Statement("b", 1)))
    assert d.groups == {"a", "b"}


# Refusals


class Table:
    """A table of a package that is not known here."""

    def __repr__(self) -> str:
        raise AssertionError("the content of an object is never shown")

    def to_pandas(self) -> None:
        """Only its name counts."""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (5, "got an int"),
        (None, "got a NoneType"),
        (b"mine.csv", "got a bytes"),
        (pd.Series(["a"]), "got a Series"),
        (np.zeros((3, 2)), "got a ndarray"),
        (zip("ab", [0, 1]), "got a zip: list(...) makes a list of it"),
        (Table(), "got a Table: its `.to_pandas()` makes a DataFrame"),
        (hub.DatasetDict(train=hub.Dataset.from_list(ROWS)), "a DatasetDict with the splits 'train'; give one of"),
        (rl.Dataset("mine", (rl.Statement("a", 0),)), "got a Dataset, which is loaded already: use it as it is"),
        ([], "the list is empty"),
        ([rl.Statement("a", 0)], "the list holds records, which need no loading: give them to radiant_lens.Dataset("),
        (["a", "b"], "the list holds texts without labels"),
        ([("a", 0, "g")], "row 1 of the list is a tuple"),
        ([("a", 0), 5], "row 2 of the list is an int"),
        ([("a", 0), {"text": "a"}], "the list mixes both"),
        ({"text": ["a"], "label": [0, 1]}, "a dict whose values are not lists of one length"),
        ({"text": "a", "label": 0}, "a dict whose values are not lists of one length"),
        ({}, "a dict whose values are not lists of one length"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), "several columns of one name, 'x'; rename them"),
        ("text,label\na,0\nb,1\n" * 99, "got a text of 1881 characters that begins with 'text,label"),
        ('[{"text": "a", "label": 0}]' * 99, "got a text of 2673 characters that begins with '[{"),
    ],
)  # fmt: skip
def test_other_objects_are_refused_by_their_type(source, words):
    with pytest.raises(InvalidArgumentError) as caught:
        load_dataset(source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="the DataFrame has no rows"):
        load_dataset(pd.DataFrame({"text": [], "label": []}))


def test_values_become_plain():
    value = {"a": np.array(["x", "y"]), "b": (np.float32(1), pd.NA, pd.NaT, None), "c": [{"d": np.bool_(True)}]}
    assert plain(value) == {"a": ["x", "y"], "b": [1.0, None, None, None], "c": [{"d": True}]}
    assert type(plain(np.str_("a"))) is str
    assert type(plain(np.float64(0.5))) is float


def test_tables_of_others_are_not_imported_for_a_list():
    script = (
        "import sys, radiant_lens; assert not {'pandas', 'datasets', 'torch'} & set(sys.modules)\n"
        "radiant_lens.load_dataset([('a', 0), ('b', 1)])\n"
        "assert not {'pandas', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
