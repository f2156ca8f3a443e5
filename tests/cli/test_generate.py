"""`radiant-lens generate --chat`: prompts as messages of a user."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from radiant_lens.tiny import model_folder

# The form of the embedded world, with the BOS token that a chat template writes itself.
TEMPLATE = (
    "<bos>{% for m in messages %}{{ 'Q : ' if m.role == 'user' else 'A : ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}A : {% endif %}"
)
QUESTION = "what is the capital of dupeka ?"
GREEDY = ("--temperature", 0, "--stop", ".", "--json")


@pytest.fixture
def chat_model(tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_a_message_is_answered_as_the_prompt_that_the_template_makes_of_it(chat_model, command_line):
    def answer(*arguments: object) -> str:
        status, out, err = command_line("generate", "--model", chat_model, *GREEDY, *arguments)
        assert status == 0, err
        return json.loads(out)["answers"][0]["answer"]

    asked = answer("--chat", QUESTION)
    assert asked == answer(f"Q : {QUESTION} A :")
    assert asked != answer(QUESTION)


def test_a_model_without_a_chat_template_is_refused(command_line):
    status, _, err = command_line("generate", "--chat", QUESTION)
    assert status != 0
    assert "`--chat` needs a model with a chat template; tiny has none." in " ".join(err.split())
