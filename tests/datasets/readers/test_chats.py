"""Rows of chat turns and of preferences."""

from __future__ import annotations

import json

import pytest

from radiant_lens import load_dataset
from radiant_lens.datasets import ChatTemplate, read_records, write_records
from radiant_lens.errors import DataError, InvalidArgumentError

ASK, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
RUDE = {"role": "assistant", "content": "go away; now"}
HEAD = "<bos><|user|>\nhi<|end|>\n<|assistant|>\n"


@pytest.fixture
def chat(tokenizers):
    return ChatTemplate(tokenizers["plain"])


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def read(d):
    return [(s.text, s.text[s.answer_start :], s.label) for s in d.statements]


# Chats with a label


def test_the_last_turn_of_a_chat_is_the_answer(write, chat):
    d = load_dataset(
        write({"messages": [ASK, REPLY], "label": 0}, {"messages": [ASK, RUDE], "label": 1}), template=chat
    )
    assert read(d) == [(HEAD + "hello", "hello", 0), (HEAD + "go away; now", "go away; now", 1)]
    assert all(s.rendered and s.question == "hi" for s in d.statements)
    assert d.groups == {"hi"}
    assert d.stop == ()


def test_earlier_turns_are_context(write, chat):
    (s,) = load_dataset(write({"messages": [ASK, REPLY, ASK, RUDE], "label": 1}), template=chat).statements
    assert s.text == f"{HEAD}hello<|end|>\n{HEAD.removeprefix('<bos>')}go away; now"
    assert s.text[s.answer_start :] == "go away; now"
    # A chat of several questions has no question for few-shot prompting.
    assert s.question == ""


def test_other_senses_and_columns_of_chats(write, chat):
    path = write({"talk": [ASK, REPLY], "label": "good"}, {"talk": [ASK, RUDE], "label": "bad"})
    d = load_dataset(path, template=chat, columns={"messages": "talk"}, undesirable="bad")
    assert [s.label for s in d.statements] == [0, 1]


@pytest.mark.parametrize("template", [None, "{question} {answer}"])
def test_chats_need_the_chat_template(write, template):
    words = r"mine.jsonl has chats, .* template=radiant_lens.datasets.ChatTemplate\(tokenizer\)"
    with pytest.raises(InvalidArgumentError, match=words):
        load_dataset(write({"messages": [ASK, REPLY], "label": 0}), template=template)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([ASK], "`messages` must end in an assistant turn with text"),
        ([ASK, {"role": "assistant", "content": " "}], "`messages` must end in an assistant turn with text"),
        ([], "`messages` must be a list of turns"),
        ("hi", "`messages` must be a list of turns"),
        (float("nan"), "`messages` must be a list of turns"),
        ([ASK, {"role": "assistant"}], "`messages` must be a list of turns"),
        ([ASK, {"role": "assistant", "content": [{"text": "a"}]}], "`messages` must be a list of turns"),
        ([{"role": "fool", "content": "x"}, REPLY], "chat template cannot render these turns: no system turn"),
    ],
)
def test_bad_chats_are_named_by_their_line(write, tokenizers, messages, words):
    rows = {"messages": [ASK, REPLY], "label": 0}, {"messages": messages, "label": 0}
    with pytest.raises(DataError, match=f"line 2: .*{words}"):
        load_dataset(write(*rows), template=ChatTemplate(tokenizers["inst"]))


# Preferences


def test_preferences_of_texts_are_never_cut(write, chat):
    row = {"prompt": "Tell me.", "chosen": "Yes; it is", "rejected": "No; never"}
    d = load_dataset(write(row))
    assert read(d) == [("Tell me. Yes; it is", "Yes; it is", 0), ("Tell me. No; never", "No; never", 1)]
    assert (d.prompts[0].text, d.judge, d.sense) == ("Tell me.", "overlap", "rejected")
    assert read(load_dataset(write(row), template=chat))[1][0].endswith("Tell me.<|end|>\n<|assistant|>\nNo; never")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK], "chosen": [REPLY], "rejected": [RUDE]},
        {"prompt": "hi", "chosen": [ASK, REPLY], "rejected": [ASK, RUDE]},
        {"prompt": "hi", "chosen": [REPLY], "rejected": [RUDE]},
        {"prompt": [ASK], "chosen": "hello", "rejected": "go away; now"},
        {"chosen": [ASK, REPLY], "rejected": [ASK, RUDE]},
    ],
)
def test_preferences_of_chats_in_every_form(write, chat, row, tmp_path):
    d = load_dataset(write(row), template=chat)
    assert read(d) == [(HEAD + "hello", "hello", 0), (HEAD + "go away; now", "go away; now", 1)]
    assert (d.prompts[0].text, d.prompts[0].rendered, d.groups) == (HEAD, True, {"hi"})
    assert read_records(write_records(tmp_path / "out.jsonl", d)) == (d.statements, d.prompts)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "a"}, "missing column 'rejected'"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "`chosen` and `rejected` must each hold an answer"),
        ({"prompt": "p", "chosen": float("nan"), "rejected": "b"}, "must each hold an answer"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "`chosen` must be text; got 3"),
        ({"prompt": "p", "chosen": "['a', 'b']", "rejected": "b"}, "`chosen` must be one answer; got the list"),
        ({"prompt": "", "chosen": [REPLY], "rejected": [RUDE]}, "`prompt` and `chosen` must not be empty"),
        ({"prompt": "p", "chosen": [ASK, REPLY], "rejected": [RUDE]}, "must answer the same turns"),
        ({"prompt": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, "are the same answer"),
    ],
)
def test_bad_preferences_are_named_by_their_line(write, chat, row, words):
    with pytest.raises(DataError, match=f"line 1: .*{words}"):
        load_dataset(write(row), template=chat, format="preference")


@pytest.mark.parametrize(
    ("rejected", "words"),
    [
        (" ", "`chosen` and `rejected` must each hold a text"),
        ("Q: a A: b ", "`chosen` and `rejected` are the same answer"),
        ("Q: a A: ", "`chosen` and `rejected` must each hold an answer"),
    ],
)
def test_bad_pairs_of_whole_texts_are_named_by_their_line(write, rejected, words):
    with pytest.raises(DataError, match=f"line 1: {words}"):
        load_dataset(write({"chosen": "Q: a A: b", "rejected": rejected}))


def test_preferences_of_chats_need_the_chat_template(write):
    with pytest.raises(DataError, match="line 1: chat turns are rendered by the model's chat template; give template="):
        load_dataset(write({"prompt": [ASK], "chosen": [REPLY], "rejected": [RUDE]}))
