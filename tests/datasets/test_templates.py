"""Templates: format strings and chats, with the answer at the index that the statement names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens import Contexts, load_dataset
from radiant_lens.datasets import ChatTemplate, Prompt, TextTemplate
from radiant_lens.datasets.templates import as_template
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.tokens import encode

LAYOUTS = ["Q: {question} A: {answer}", "{question}\n{answer}", "{{x}} {question}:{answer}"]
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(str.strip).filter(bool)


# Text templates


@settings(deadline=None, max_examples=60)
@given(texts, texts, st.sampled_from(LAYOUTS))
def test_the_answer_of_a_text_template_starts_where_the_prompt_says(question, answer, text):
    template = TextTemplate(text)
    prompt = Prompt(template.prompt(question), (answer,), (), "g", joint=template.joint)
    statement = prompt.answered(answer)
    assert statement.text == text.format(question=question, answer=answer)
    assert statement.text[statement.answer_start :] == answer


def test_blanks_at_the_end_of_a_prompt_stand_between_it_and_the_answer():
    template = TextTemplate("Q: {question} A:  {answer}")
    assert (template.prompt("who?"), template.joint) == ("Q: who? A:", "  ")
    line = TextTemplate("Q: {question}\nA:\n{answer}")
    assert (line.prompt("who?"), line.joint) == ("Q: who?\nA:\n", "")


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("Q: {question} A: {answer}", ("\n", "Q:")),
        ("Be brief.\nQuestion: {question}\nAnswer: {answer}", ("\n", "Question:")),
        ("{question} {answer}", ("\n",)),
    ],
)
def test_an_answer_ends_where_the_next_question_would_begin(text, stop):
    assert TextTemplate(text).stop == stop


@pytest.mark.parametrize(
    "text",
    [
        "Q: {question} A:",
        "A: {answer}",
        "{question} {answer}.",
        "{answer} {question} {answer}",
        "{question} {context} {answer}",
        "{question} {} {answer}",
    ],
)
def test_a_template_that_hides_the_answer_is_refused(text):
    with pytest.raises(InvalidArgumentError, match="`template` must hold '{question}' and end in '{answer}'"):
        TextTemplate(text)


def test_a_broken_format_string_and_a_number_are_refused():
    with pytest.raises(InvalidArgumentError, match="`template` is not a format string"):
        TextTemplate("{question {answer}")
    with pytest.raises(InvalidArgumentError, match="`template` must be a format string such as .*, or .*; got 3"):
        as_template(3)


# Chat templates


@pytest.mark.parametrize(
    ("name", "prompt", "joint"),
    [
        ("plain", "<bos><|user|>\nwho?<|end|>\n<|assistant|>\n", ""),
        ("inst", "<bos>[INST] who? [/INST]", " "),
        ("other", "<|user|>\nwho?<|end|>\n<|bot|>", ""),
    ],
)
def test_a_chat_ends_where_the_answer_begins(tokenizers, name, prompt, joint):
    chat = ChatTemplate(tokenizers[name])
    assert (chat.prompt("who?"), chat.joint) == (prompt, joint)
    statement = Prompt(chat.prompt("who?"), ("me",), (), "g", joint=chat.joint).answered("me")
    assert statement.text == prompt + joint + "me"
    assert statement.text[statement.answer_start :] == "me"


@pytest.mark.parametrize("name", ["plain", "inst"])
def test_a_statement_is_the_beginning_of_what_the_tokenizer_renders(tokenizers, name):
    tokenizer = tokenizers[name]
    chat = ChatTemplate(tokenizer)
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole.startswith(chat.prompt("who?") + chat.joint + "me")
    assert not whole.startswith(chat.prompt("who?") + chat.joint + " me")


def test_a_system_turn_and_earlier_turns_come_first(tokenizers):
    chat = ChatTemplate(tokenizers["plain"], system="be true")
    assert chat.prompt("b", [("a", "x")]) == (
        "<bos><|system|>\nbe true<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nx<|end|>\n"
        "<|user|>\nb<|end|>\n<|assistant|>\n"
    )


def test_chats_that_cannot_be_rendered_are_refused(tokenizers):
    with pytest.raises(InvalidArgumentError, match="chat template cannot render these turns: no system turn"):
        ChatTemplate(tokenizers["inst"], system="be true")
    with pytest.raises(InvalidArgumentError, match="chat template cannot render these turns: .*chat_template"):
        ChatTemplate(tokenizers["none"])


@pytest.mark.parametrize("name", ["plain", "inst", "other", "thinking"])
def test_the_tokens_of_a_rendered_prompt_are_those_of_the_tokenizer(model, monkeypatch, tokenizers, name):
    tokenizer, question = model.tokenizer, "what is the capital of velika ?"
    monkeypatch.setattr(tokenizer, "chat_template", tokenizers[name].chat_template)
    chat = ChatTemplate(tokenizer)
    prompt = Prompt(chat.prompt(question), ("me",), ("you",), "g", joint=chat.joint, rendered=True)
    turns = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode(model, [prompt])[0].ids == list(ids)
    # The answer's tokens follow the prompt's: edits begin where the answer is predicted.
    statement = encode(model, [prompt.answered("me")])[0].ids
    assert statement[: len(ids)] == list(ids)
    # As a text of its own, a prompt without BOS gets one, and the tokens differ.
    without = replace(prompt, text=prompt.text.removeprefix("<bos>"), rendered=False)
    assert encode(model, [without])[0].ids[0] == tokenizer.bos_token_id
    assert (encode(model, [replace(without, rendered=True)])[0].ids == list(ids)) == ("<bos>" not in prompt.text)


@pytest.mark.parametrize(
    ("name", "turn"),
    [("no question", "user"), ("no answer", "assistant"), ("last turn", "user"), ("upper case", "user")],
)
def test_a_template_that_drops_or_changes_a_turn_is_refused(tokenizers, name, turn):
    with pytest.raises(InvalidArgumentError, match=f"chat template drops or changes the {turn} turn .*; use another"):
        ChatTemplate(tokenizers[name])


def test_a_template_that_drops_the_system_turn_or_earlier_turns_is_refused(tokenizers):
    # Without a system turn nothing is lost, so the template is fine.
    chat = ChatTemplate(tokenizers["no system"])
    assert chat.prompt("b", [("a", "x")]) == "axb"
    with pytest.raises(InvalidArgumentError, match="drops or changes the system turn 'be true'"):
        ChatTemplate(tokenizers["no system"], system="be true")
    twice = ChatTemplate(tokenizers["plain"], system="be true")
    with pytest.raises(InvalidArgumentError, match="has a system turn of its own; leave out `system`"):
        twice.conversation([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])


def test_options_of_a_template(tokenizers):
    plain, brief = (ChatTemplate(tokenizers["thinking"], options=o) for o in ({}, {"enable_thinking": False}))
    assert brief.prompt("who?") == plain.prompt("who?") + "<think></think>\n"
    with pytest.raises(InvalidArgumentError, match="chat template reads no option 'enable_thinkin'; check `options`"):
        ChatTemplate(tokenizers["thinking"], options={"enable_thinkin": False})
    with pytest.raises(InvalidArgumentError, match="must be options of the chat template itself; got 'tokenize'"):
        ChatTemplate(tokenizers["thinking"], options={"tokenize": True})


def test_a_data_set_in_a_chat(tokenizers, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,correct_answers,incorrect_answers\nwho?,me; I,you\n")
    chat = ChatTemplate(tokenizers["plain"])
    d = load_dataset(path, template=chat)
    assert d.prompts[0].text == "<bos><|user|>\nwho?<|end|>\n<|assistant|>\n"
    assert all(r.rendered for r in (*d.prompts, *d.statements))
    assert [(s.text[s.answer_start :], s.label) for s in d.statements] == [("me", 0), ("I", 0), ("you", 1)]
    assert d.stop == ()
    with pytest.raises(InvalidArgumentError, match="`contexts` join texts, and rendered chats cannot be joined"):
        load_dataset(path, template=chat, contexts=Contexts())
