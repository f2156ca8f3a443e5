"""Options that describe a data set and a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.cli import options as o
from radiant_lens.errors import DataError, InvalidArgumentError, ModelLoadError
from radiant_lens.models import loading


@pytest.fixture
def cities(tmp_path):
    path = tmp_path / "cities.csv"
    path.write_text("statement,truth,city,score\nA is in B.,1,A,0.2\nA is in C.,0,A,0.9\nD is in E.,1,D,0.1\n")
    return str(path)


# Reading


@pytest.mark.parametrize(
    ("texts", "columns"),
    [
        (["text=statement,label=is_false"], {"text": "statement", "label": "is_false"}),
        (["text=a", "label=b + c"], {"text": "a", "label": ["b", "c"]}),
        (['"text=one, two",group=g'], {"text": "one, two", "group": "g"}),
        (["text=a+b"], {"text": "a+b"}),
    ],
)
def test_columns_are_read(texts, columns):
    assert o.read_columns(texts) == columns


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["text"], "must read OURS=THEIRS, such as text=statement,label=is_false; got 'text'"),
        (["text="], "must read OURS=THEIRS"),
        (["text=a,"], "`--columns` has an empty piece; got 'text=a,'"),
        (["text=a", "text=b"], "`--columns` names 'text' twice"),
    ],
)
def test_columns_that_cannot_be_read(texts, words):
    with pytest.raises(InvalidArgumentError, match=words):
        o.read_columns(texts)


def test_the_rule_for_long_texts_is_the_data_sets(cities):
    columns = ["text=statement,label=truth,group=city"]
    for rule in ("skip", "cut", "error"):
        reading = o.Reading(columns, undesirable=["0"], on_long=rule)
        assert reading.load(cities, model="tiny").on_long == rule
        assert {part.on_long for part in reading.load(cities, model="tiny").split((0.5, 0.5))} == {rule}
    with pytest.raises(InvalidArgumentError, match="`on_long` must be one of 'skip', 'cut', 'error'; got 'drop'"):
        o.Reading(columns, undesirable=["0"], on_long="drop").load(cities, model="tiny")


def test_reading_reaches_load_dataset(cities):
    columns = ["text=statement,label=truth,group=city"]
    data = o.Reading(columns, undesirable=["0"]).load(cities, model="tiny")
    assert [s.label for s in data.atoms] == [0, 1, 0]
    assert [s.label for s in o.Reading(columns, undesirable=["1"]).load(cities, model="tiny").atoms] == [1, 0, 1]
    scored = o.Reading(["text=statement,label=score"], threshold=0.5).load(cities, model="tiny")
    assert [s.label for s in scored.atoms] == [0, 1, 0]
    below = o.Reading(["text=statement,label=score"], threshold=0.5, undesirable=["below"]).load(cities, model="tiny")
    assert [s.label for s in below.atoms] == [1, 0, 1]


def test_labels_in_words(tmp_path):
    (tmp_path / "words.csv").write_text("text,label\na,toxic\nb,fine\nc,hate\n")
    data = o.Reading(undesirable=["toxic,hate"]).load(str(tmp_path / "words.csv"), model="tiny")
    assert [s.label for s in data.atoms] == [1, 0, 1]


def test_a_template_with_a_line_break(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question": "who?", "correct_answers": ["me"], "incorrect_answers": ["you"]})
    )
    data = o.Reading(template=r"Ask: {question}\nSay: {answer}").load(str(tmp_path / "q.jsonl"), model="tiny")
    assert data.prompts[0].text == "Ask: who?\nSay:"


def test_the_chat_template_of_a_model(tmp_path, foreign_folder, tmp_path_factory):
    tokenizer = rl.load_model(foreign_folder).tokenizer
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((foreign_folder / "config.json").read_text())
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": turns, "label": 0}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = o.Reading(template="chat").load(str(tmp_path / "chats.jsonl"), model=str(folder))
    assert data.atoms[0].text.startswith("[user] hi [assistant]")
    with pytest.raises(InvalidArgumentError, match="needs a model with a chat template, and 'tiny' has none: name ano"):
        o.Reading(template="chat").load(str(tmp_path / "chats.jsonl"), model="tiny")


def test_remedies_are_said_as_they_are_typed(cities, tmp_path):
    with pytest.raises(InvalidArgumentError, match="say --undesirable 0 .* or --undesirable 1"):
        o.Reading(["text=statement,label=truth"]).load(cities, model="tiny")
    (tmp_path / "words.csv").write_text("text,label\na,good\nb,bad\n")
    with pytest.raises(DataError, match="--undesirable LABEL,LABEL.*--threshold") as raised:
        o.Reading().load(str(tmp_path / "words.csv"), model="tiny")
    assert "load_dataset" not in str(raised.value)
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}], "label": 0}')
    with pytest.raises(InvalidArgumentError, match="--template chat"):
        o.Reading().load(str(tmp_path / "chats.jsonl"), model="tiny")


# Parts


def test_parts_are_those_of_a_fit(facts):
    parts = facts.split((0.6, 0.2, 0.2), seed=3)
    for name, part in zip(("train", "validation", "test"), parts):
        assert o.Part(name).of(facts, 3).groups == part.groups
    assert o.Part().of(facts, 3) is facts
    assert o.Part("test", "0.4,0.3,0.3").of(facts, 3).groups == facts.split((0.4, 0.3, 0.3), seed=3)[2].groups
    assert o.Part("test").of(facts, 4).groups != parts[2].groups


@pytest.mark.parametrize("split", ["0.5,0.5", "a,b,c", "0.5,0.3,0.3", "1,0,0", "nan,0.5,0.5", ""])
def test_shares_that_do_not_add_up(split):
    with pytest.raises(InvalidArgumentError, match="`--split` must be three positive shares that add up to 1, such as"):
        o.Part(split=split).check()


# The model of a steering


@pytest.fixture
def loaded(monkeypatch):
    """Record what is loaded, without loading it."""
    calls = []
    monkeypatch.setattr(loading, "load_model", lambda name, **options: calls.append((name, options["prepend_bos"])))
    return calls


def test_the_model_of_the_steering_s_folder(steering, loaded):
    o.Loading().load_for(steering, None)
    assert loaded == [("tiny", steering.meta["model"]["prepend_bos"])]


def test_a_named_model_comes_first(steering, loaded):
    o.Loading(prepend_bos=True).load_for(steering, "other")
    o.Loading().load_for(None, None)
    assert loaded == [("other", True), ("tiny", None)]


def test_a_steering_that_does_not_name_its_model_is_tried_on_the_embedded_one(steering, loaded):
    o.Loading().load_for(replace(steering, meta={}), None)
    assert loaded == [("tiny", None)]


def test_a_steering_whose_model_is_not_here(steering, loaded):
    elsewhere = replace(steering, meta={**steering.meta, "model": {"name": "./gone"}})
    words = "fitted on model './gone', which is not to be found from here: pass its name or folder as `--model`"
    with pytest.raises(ModelLoadError, match=words):
        o.Loading().load_for(elsewhere, None)
    assert not loaded
