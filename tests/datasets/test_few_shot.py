"""Few-shot prompting: question-answer pairs before a prompt, never of its own part."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from radiant_lens import Contexts, Dataset, Statement, load_dataset
from radiant_lens.datasets import TRUTHFULQA_PAIRS, TRUTHFULQA_TEMPLATE, ChatTemplate, write_records
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.csv"
    rows = "".join(f"what is {i}?,truth {i},lie {i}\n" for i in range(12))
    file.write_text("question,correct_answers,incorrect_answers\n" + rows)
    return file


def asked(text):
    return re.findall(r"what is (\d+)\?", text)


def test_truthfulqas_own_pairs_in_its_own_layout(path):
    d = load_dataset(path, template=TRUTHFULQA_TEMPLATE).with_few_shot(TRUTHFULQA_PAIRS)
    text = d.prompts[0].text
    assert text.startswith("Q: What is human life expectancy in the United States?\nA: Human life expectancy in ")
    assert text.endswith("held in Barcelona, Spain.\n\nQ: what is 0?\nA:")
    assert text.count("Q:") == 7
    assert [p.text.count("Q:") for p in d.with_few_shot(TRUTHFULQA_PAIRS, 2).prompts] == [3] * 12


def test_examples_come_from_the_other_part_with_their_best_answers(path):
    train, test = load_dataset(path).split((0.5, 0.5), seed=0)
    shown = test.with_few_shot(train, 3, seed=1)
    known = {g.split()[-1].rstrip("?") for g in train.groups}
    for prompt, bare in zip(shown.prompts, test.prompts):
        *before, own = asked(prompt.text)
        assert own == asked(bare.text)[0]
        assert len(set(before)) == 3 and set(before) <= known
        assert prompt.text.endswith("\n\n" + bare.text)
        assert re.findall(r"A: (\w+) (\d+)", prompt.text) == [("truth", i) for i in before]
    assert shown.prompts == test.with_few_shot(train, 3, seed=1).prompts != test.with_few_shot(train, 3, seed=2).prompts


def test_no_example_is_a_question_of_the_part_itself(path):
    d = load_dataset(path)
    train, test = d.split((0.5, 0.5))
    with pytest.raises(LeakageError, match="Few-shot examples and the part of 'mine' must not share groups"):
        test.with_few_shot(d, 12)
    # A question is the same in any case, and may be an example for the part that does not hold it.
    question = test.bare_prompts[0].question
    with pytest.raises(LeakageError, match="1 are in both"):
        test.with_few_shot([(question.upper(), "truth")])
    assert train.with_few_shot([(question, "truth")]).few_shot.shots[0].question == question


def test_a_question_is_recognised_under_another_group(tmp_path):
    path = tmp_path / "grouped.csv"
    path.write_text("question,correct_answers,incorrect_answers,group\nwho?,me,you,g1\n")
    with pytest.raises(LeakageError, match="such as 'who\\?'"):
        load_dataset(path).with_few_shot([("Who?", "me")])


def test_answers_and_scores_follow_the_prefix(path):
    train, test = load_dataset(path).split((0.5, 0.5))
    shown = test.with_few_shot(train, 2, statements=True)
    for statement, bare in zip(shown.statements, test.statements):
        assert statement.text[statement.answer_start :] == bare.text[bare.answer_start :]
        assert statement.text.endswith(bare.text)
        assert len(asked(statement.text)) == 3
    assert test.with_few_shot(train, 2).statements == test.statements
    answered = shown.prompts[0].answered("lie 0")
    assert answered.text[answered.answer_start :] == "lie 0"


def test_few_shot_before_contexts(path):
    train, test = load_dataset(path, contexts=Contexts(n_pairs=(1, 2))).split((0.5, 0.5))
    shown = test.with_few_shot(train, 2, separator=" | ", statements=True)
    assert [len(asked(p.text)) for p in shown.prompts] == [3] * 6 + [5] * 12
    assert all(s.text[s.answer_start :] in ("truth " + asked(s.text)[-1], "lie " + asked(s.text)[-1])
               for s in shown.statements)  # fmt: skip
    assert all(s.text.count(" | ") == 2 for s in shown.statements)


def test_few_shot_of_the_embedded_data_and_of_another_data_set(path):
    train, test = load_dataset("tiny-facts").split((0.5, 0.5))
    prompt = test.with_few_shot(train, 2, separator=" ").prompts[0].text
    assert prompt.count("Q :") == 3
    assert test.with_few_shot(load_dataset(path), 1).prompts[0].text.startswith("Q: what is")


def test_in_a_chat_the_examples_are_earlier_turns(tokenizers, path):
    train, test = load_dataset(path, template=ChatTemplate(tokenizers["plain"], system="s")).split((0.5, 0.5))
    shown = test.with_few_shot(train, 2, statements=True)
    for prompt, bare in zip(shown.prompts, test.prompts):
        assert prompt.text.count("<|system|>") == 1
        assert prompt.text.count("<|end|>") == 6
        assert prompt.text.count("<bos>") == 1 and prompt.rendered
        assert len(asked(prompt.text)) == 3
        assert prompt.text.endswith(bare.text.removeprefix("<bos><|system|>\ns<|end|>\n"))
    for statement, bare in zip(shown.statements, test.statements):
        assert statement.text[statement.answer_start :] == bare.text[bare.answer_start :]
        assert statement.text[: statement.answer_start].endswith("<|assistant|>\n")
    assert shown.split((0.5, 0.5))[0].few_shot == shown.few_shot


def test_few_shot_refusals(tokenizers, path):
    train, test = load_dataset(path).split((0.5, 0.5))
    with pytest.raises(DataError, match="7 examples need as many questions with an answer; there are 6"):
        test.with_few_shot(train, 7)
    with pytest.raises(ValueError, match="`k` must be a whole number of at least 0; got -1"):
        test.with_few_shot(train, -1)
    with pytest.raises(ValueError, match="`k` must be a whole number between 0 and 1; got 2"):
        test.with_few_shot([("a", "b")], 2)
    with pytest.raises(InvalidArgumentError, match="Pairs need a template"):
        load_dataset("tiny-facts").with_few_shot(TRUTHFULQA_PAIRS)
    chat = load_dataset(path, template=ChatTemplate(tokenizers["plain"]))
    # Its texts are whole: no template knows their questions.
    foreign = load_dataset("tiny-facts")
    with pytest.raises(DataError, match="in a chat needs records and examples that know their question"):
        _ = chat.with_few_shot(foreign, 1).prompts


def test_rendered_chats_are_never_joined_to_other_texts(tokenizers, path, tmp_path):
    chat = load_dataset(path, template=ChatTemplate(tokenizers["plain"]))
    words = r"Rendered chats cannot be joined to other texts; load both .* template=ChatTemplate\(tokenizer\)"
    with pytest.raises(DataError, match=words):
        _ = load_dataset("tiny-facts").with_few_shot(chat, 1).prompts
    # Written and loaded again, records have no template but remain rendered.
    again = load_dataset(write_records(tmp_path / "chat.jsonl", chat))
    train, test = again.split((0.5, 0.5))
    with pytest.raises(DataError, match=words):
        _ = test.with_few_shot(train, 1).prompts
    with pytest.raises(InvalidArgumentError, match="rendered chats cannot be joined"):
        replace(again, contexts=Contexts())


def test_five_examples_by_default(path):
    train, test = load_dataset(path).split((0.5, 0.5))
    assert test.with_few_shot(train) == test.with_few_shot(train, 5)


def test_zero_shots_remove_the_examples(path):
    train, test = load_dataset(path).split((0.5, 0.5))
    assert test.with_few_shot(train, 2).with_few_shot(train, 0) == test
    counts = "12 statements, 6 prompts, 6 groups, 2 shots"
    assert repr(test.with_few_shot(train, 2)) == f"Dataset('mine': {counts}, label 1 = incorrect_answers)"


def test_data_without_prompts_has_no_examples():
    d = Dataset("d", (Statement("a", 0, "g"),))
    with pytest.raises(DataError, match="there are 0"):
        d.with_few_shot(Dataset("e", (Statement("b", 0, "h"),)), 1)
