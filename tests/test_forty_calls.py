"""Forty mistakes of a day in Python: each is answered by one sentence with the value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets as hub
import pandas as pd
import pytest

import radiant_lens as rl
from radiant_lens.datasets import ChatTemplate, TextTemplate, read_records, write_records
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, UnknownNameError

TABLE = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
TRUE = pd.DataFrame({"statement": ["a", "b"], "label": [1, 0]})
QUESTIONS = [{"question": "Who?", "correct_answers": ["me"], "incorrect_answers": ["you"]}]
PAIRS = [{"positive": "a", "negative": "b"}]


class Call(NamedTuple):
    """A wrong call (`w` holds what it needs), the class of its error, and a regular expression of its message."""

    name: str
    do: Callable[[Any], object]
    error: type[Exception]
    message: str


CALLS = [
    # What to load
    Call("a name with a typo", lambda w: rl.load_dataset("truthful-qa"),
         UnknownNameError, "'truthful-qa' is not a known data set: did you mean 'truthfulqa'"),
    Call("a data set of the Hub", lambda w: rl.load_dataset("org/answers"),
         UnknownNameError, r"'org/answers' is not a known data set: .*given as datasets.load_dataset\(name, split="),
    Call("an address", lambda w: rl.load_dataset("https://example.org/a.csv"),
         InvalidArgumentError, "`source` must not be an address; download 'https://example.org/a.csv' and give"),
    Call("a file that is not there", lambda w: rl.load_dataset(w.folder / "tabel.csv"),
         DataError, r"There is no file '.*tabel.csv'; there is 'table.csv' beside it\.$"),
    Call("a folder", lambda w: rl.load_dataset(w.folder), DataError, "' is a folder; give one of its files"),
    Call("the content of a file", lambda w: rl.load_dataset("text,label\na,0\n" * 500),
         InvalidArgumentError, "got a text of 7500 characters that begins with 'text,label.*: write it to a file"),
    Call("another ending", lambda w: rl.load_dataset("answers.xlsx"),
         UnknownNameError, "'answers.xlsx' is not .* must end in .csv, .json or .jsonl"),
    Call("texts without labels", lambda w: rl.load_dataset(["a", "b"]),
         InvalidArgumentError, r"`source` must be .*\(text, label\) pairs, .*; the list holds texts without labels"),
    Call("two texts a row", lambda w: rl.load_dataset([("a", "b")]),
         InvalidArgumentError, r"Pairs of two texts may be .*: name the undesirable labels by `undesirable=`, or give"),
    Call("all splits at once", lambda w: rl.load_dataset(hub.DatasetDict(test=hub.Dataset.from_pandas(TABLE))),
         InvalidArgumentError, r"`source` is a DatasetDict with the splits 'test'; give one of them, such as data"),
    Call("one column of a table", lambda w: rl.load_dataset(TABLE["text"]),
         InvalidArgumentError, "`source` must be a name, a file, a pandas DataFrame, .*; got a Series"),
    Call("data that are loaded", lambda w: rl.load_dataset(w.data),
         InvalidArgumentError, "`source` must be .*; got a Dataset, which is loaded already: use it as it is"),
    # Columns
    Call("columns by their names alone", lambda w: rl.load_dataset(TABLE, columns=["text", "label"]),
         InvalidArgumentError, r"`columns` must map our names .* such as {'text': 'sentence'}; got \['text', 'label"),
    Call("columns the wrong way round", lambda w: rl.load_dataset(TABLE, columns={"sentence": "text"}),
         UnknownNameError, "'sentence' is not a known column: .*so perhaps {'text': 'sentence'}"),
    Call("a column that is not there", lambda w: rl.load_dataset(TRUE, columns={"text": "statment"}),
         DataError, "the DataFrame has no column 'statment'; there are: statement, label"),
    Call("columns of no known names", lambda w: rl.load_dataset([{"sentence": "a", "class": 0}]),
         DataError, r"the list has columns of no known format \(sentence, class\): name them by columns=, {'text': "),
    Call("two texts in one", lambda w: rl.load_dataset(TABLE, columns={"text": ["text", "label"]}),
         DataError, r"Only 'label', .* can be made of several columns; got \['text', 'label'\] for 'text'"),
    Call("a format with a typo", lambda w: rl.load_dataset(TABLE, format="record"),
         UnknownNameError, "'record' is not a known format here: did you mean 'records'"),
    Call("a file for a table", lambda w: rl.load_dataset(TABLE, path="table.csv"),
         InvalidArgumentError, "`path` is the file of a published data set .*; got 'table.csv': leave it out"),
    Call("columns of a data set of the package", lambda w: rl.load_dataset("tiny-facts", columns={"text": "a"}),
         InvalidArgumentError, "`columns` cannot be given with tiny-facts; it is for published data sets or files"),
    # Labels
    Call("true and false without a sense", lambda w: rl.load_dataset(TRUE, columns={"text": "statement"}),
         InvalidArgumentError, "Label 1 of column 'label' of 'statement' usually .*: say undesirable=0"),
    Call("a score without a threshold", lambda w: rl.load_dataset([("a", 0.7)]),
         DataError, "row 1: `label` must be 0 .* got 0.7: .*, or compare scores, threshold=0.5"),
    Call("labels that are words", lambda w: rl.load_dataset([{"text": "a", "label": "rude"}] * 9),
         DataError, r"the list .*\(9\): row 1: `label` must be 0 .* or 1 .*; got 'rude': name .* \(8 more\)$"),
    Call("a label that no row has", lambda w: rl.load_dataset(TABLE, undesirable="toxic"),
         DataError, "`undesirable` names 'toxic', but no row of the DataFrame has this label; labels are: '0', '1'"),
    Call("a threshold as text", lambda w: rl.load_dataset(TABLE, threshold="high"),
         InvalidArgumentError, "`threshold` must be a finite number, such as 0.5; got 'high'"),
    Call("pairs without a sense", lambda w: rl.load_dataset(PAIRS),
         InvalidArgumentError, "pairs of 'positive' and 'negative', .*: say undesirable='negative' or undesirable='p"),
    Call("the other value of bad rows", lambda w: rl.load_dataset(TABLE, on_bad_rows="skip"),
         InvalidArgumentError, "`on_bad_rows` must be one of 'raise', 'report'; got 'skip'"),
    # Templates
    Call("a template of another placeholder", lambda w: rl.load_dataset(QUESTIONS, template="{prompt} {answer}"),
         InvalidArgumentError, r"`template` must hold '{question}' and end in '{answer}', .*; got '{prompt} {answer}'"),
    Call("a tokenizer for a template", lambda w: rl.load_dataset(QUESTIONS, template=w.model.tokenizer),
         InvalidArgumentError, r"`template` must be a format string .*, or ChatTemplate\(tokenizer\); got \w+\.$"),
    Call("a template for whole texts", lambda w: rl.load_dataset(TABLE, template="{question} {answer}"),
         InvalidArgumentError, "`template` is laid around questions; the format 'records' has whole texts: leave"),
    Call("the name of a tokenizer", lambda w: ChatTemplate("gpt2"),
         InvalidArgumentError, "`tokenizer` must have a chat template, .*; got str: .*from_pretrained.* loads one"),
    Call("a number for a template", lambda w: TextTemplate(3), InvalidArgumentError, "`text` must be a str; got int 3"),
    # Records and data sets
    Call("label and text exchanged", lambda w: rl.Statement(0, "a"),
         InvalidArgumentError, "`text` must be a str; got int 0"),
    Call("a label that is a word", lambda w: rl.Statement("a", "toxic"),
         DataError, r"`label` must be 0 \(desirable\) or 1 \(undesirable\); got 'toxic': 'a'"),
    Call("an answer that starts beyond the text", lambda w: rl.Statement("abc", 0, answer_start=7),
         InvalidArgumentError, "`answer_start` must be a whole number between 0 and 3; got 7"),
    Call("one answer, not in a list", lambda w: rl.Prompt("Who?", "me", "you"),
         InvalidArgumentError, "`correct_answers` must be a tuple or a list; got str 'me': such as"),
    Call("texts for statements", lambda w: rl.Dataset("mine", ["a", "b"]),
         InvalidArgumentError, "`atoms` must hold Statement alone; got 'a'"),
    Call("groups of another data set", lambda w: w.data.only({"nowhere"}),
         DataError, "'mine' has none of these groups; one of its own is 'a'"),
    Call("no groups", lambda w: w.data.head(0),
         InvalidArgumentError, "`n_groups` must be a whole number of at least 1; got 0"),
    Call("shares that do not add up", lambda w: w.data.split((0.5, 0.2)),
         InvalidArgumentError, r"`fractions` must be positive and add up to 1; got \(0.5, 0.2\)"),
    Call("a number of parts", lambda w: w.data.split(2),
         InvalidArgumentError, r"`fractions` must be a tuple or a list; got int 2: the share .* such as \(0.5, 0.5\)"),
    Call("its own questions as examples", lambda w: w.questions.with_few_shot(w.questions, k=1),
         LeakageError, "Few-shot examples and the part of 'data' must not share groups; .* such as 'who.'"),
    Call("examples by a word", lambda w: w.questions.with_few_shot("truthfulqa"),
         InvalidArgumentError, "`examples` must be a Dataset or a list or a tuple; got str 'truthfulqa': another part"),
    Call("one condition, misspelt", lambda w: rl.Contexts(conditions=("bar",)),
         InvalidArgumentError, "`conditions` must be one of 'bare', 'after_undesirable', .*; got 'bar'"),
    Call("a table for a file of records", lambda w: write_records(w.folder / "out.jsonl", TABLE),
         InvalidArgumentError, "`dataset` must be a Dataset; got DataFrame: `load_dataset` makes one"),
    Call("a number for a path", lambda w: read_records(3),
         InvalidArgumentError, "`path` must be a str or a Path; got int 3"),
    # From data to activations
    Call("the name of a data set", lambda w: rl.collect(w.model, "tiny-facts"),
         InvalidArgumentError, "`data` must be a Dataset or a list or a tuple; got str 'tiny-facts': `load_dataset`"),
    Call("a table", lambda w: rl.collect(w.model, TABLE),
         InvalidArgumentError, "`data` must be a Dataset or .*; got DataFrame: `load_dataset` makes a Dataset of"),
    Call("bare texts", lambda w: rl.collect(w.model, ["a"]),
         InvalidArgumentError, "`data` must be a Statement; got str 'a': `collect` takes a Dataset, or Statements"),
    Call("what happens to long texts", lambda w: rl.collect(w.model, w.data, on_long="trim"),
         InvalidArgumentError, "`on_long` must be one of 'skip', 'cut', 'error'; got 'trim'"),
    Call("a long text", lambda w: rl.collect(w.model, [rl.Statement("the " * 999, 0)], on_long="error"),
         DataError, r"Text 0 has 1000 tokens; the model's context holds 256 .*: shorten it, or give on_long='skip'"),
    Call("a table to evaluate on", lambda w: rl.evaluate(w.model, TABLE),
         InvalidArgumentError, "`data` must be a Dataset; got DataFrame: `load_dataset` reads one"),
]  # fmt: skip


@pytest.fixture(scope="module")
def w(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("calls")
    TABLE.to_csv(folder / "table.csv", index=False)
    (folder / "rows.jsonl").write_text(json.dumps({"text": "a", "label": 0}) + "\n")
    data = rl.Dataset("mine", (rl.Statement("a", 0), rl.Statement("b", 1)))
    return SimpleNamespace(folder=folder, model=model, data=data, questions=rl.load_dataset(QUESTIONS))


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_a_wrong_call_is_answered_in_one_sentence(call, w):
    with pytest.raises(call.error, match=call.message) as raised:
        call.do(w)
    assert raised.type is call.error
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    # One sentence: a period within it ends no sentence.
    assert message.rstrip(".)").count(". ") <= 1


def test_there_are_forty():
    assert len({call.name for call in CALLS}) == len(CALLS) >= 40
