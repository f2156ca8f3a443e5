"""`load_dataset(model=...)`: instruct models get their chat template, base models examples, "plain" neither."""

from __future__ import annotations

import pytest

from radiant_lens.datasets import QA_PAIRS, ChatTemplate, TextTemplate, chat_template, load_dataset
from radiant_lens.errors import DataError, InvalidArgumentError

ROWS = [
    {"question": "Is it?", "correct_answers": ["Yes."], "incorrect_answers": ["No."]},
    {"question": "Was it?", "correct_answers": ["Yes, it was."], "incorrect_answers": ["No, it was not."]},
]


class Tokenizer:
    """A tokenizer with a chat template, as far as data sets use one."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
        return text + ("<assistant>" if add_generation_prompt else "")


class Base(Tokenizer):
    chat_template = None


class Model:
    tokenizer = Tokenizer()


@pytest.mark.parametrize("model", [Model(), Tokenizer()], ids=["model", "tokenizer"])
def test_questions_are_laid_in_the_chat_template_of_the_model(model):
    data = load_dataset(ROWS, model=model)
    assert isinstance(data.template, ChatTemplate)
    assert data.prompts[0].text == "<user>Is it?<assistant>"
    assert data.statements[0].text == "<user>Is it?<assistant>Yes." and data.statements[0].rendered
    assert data.few_shot is None and data.stop == ()


def test_the_package_s_own_questions_are_laid_in_it_too():
    assert load_dataset("misconceptions", model=Model()).prompts[0].text.startswith("<user>")
    # Whole texts have no question to lay.
    assert load_dataset("tiny-facts", model=Model()).prompts == load_dataset("tiny-facts").prompts


def test_base_models_read_examples_first():
    data = load_dataset(ROWS, model=Base())
    examples = "\n\n".join(f"Q: {question} A: {answer}" for question, answer in QA_PAIRS)
    assert data.prompts[0].text == f"{examples}\n\nQ: Is it? A:"
    assert data.statements[0].text == f"{examples}\n\nQ: Is it? A: Yes."


def test_an_example_that_the_data_ask_is_left_out():
    rows = [*ROWS, {"question": QA_PAIRS[0][0].upper(), "correct_answers": ["Honey."], "incorrect_answers": ["Wax."]}]
    data = load_dataset(rows, model=Base())
    assert len(data.few_shot.shots) == len(QA_PAIRS) - 1


@pytest.mark.parametrize("model", [Model(), Base()], ids=["instruct", "base"])
def test_plain_does_neither(model):
    plain = load_dataset(ROWS, template="plain", model=model)
    assert plain.template == TextTemplate() and plain.few_shot is None
    assert plain.prompts == load_dataset(ROWS).prompts


def test_dialogues_have_no_examples_of_questions():
    assert load_dataset("tone", model=Base()).few_shot is None


def test_a_template_of_one_s_own_wins():
    assert load_dataset(ROWS, template="{question} -> {answer}", model=Model()).prompts[0].text == "Is it? ->"


def test_whole_texts_stay_as_they_are():
    assert load_dataset([("Thanks.", 0), ("Get lost.", 1)], model=Model()).statements[0].text == "Thanks."


def test_system_turns_and_wrong_models_are_refused():
    assert chat_template(Model(), system="Be kind.").prompt("Is it?") == "<system>Be kind.<user>Is it?<assistant>"
    assert chat_template(Base()) is None
    with pytest.raises(InvalidArgumentError, match="`system` needs a chat template, and the model has none; got 'Be"):
        chat_template(Base(), system="Be kind.")
    with pytest.raises(InvalidArgumentError, match="`model` must be a model with its tokenizer; got str"):
        load_dataset(ROWS, model="tiny")


def test_data_are_laid_in_another_template():
    data = load_dataset(ROWS)
    chat = data.with_template(ChatTemplate(Tokenizer()))
    assert chat.prompts == load_dataset(ROWS, model=Model()).prompts
    assert chat.statements == load_dataset(ROWS, model=Model()).statements
    assert chat.with_template(TextTemplate()).statements == data.statements
    with pytest.raises(DataError, match="'tiny-facts' has whole texts; a template is laid around questions"):
        load_dataset("tiny-facts").with_template(TextTemplate())
