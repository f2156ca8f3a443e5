"""One traced answer: the text of `generate_answers`, and arguments that raise errors."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation import generate_answers

TEXT = "Q : what is the capital of gizika ? A :"


def test_the_answer_is_that_of_generate_answers_for_texts_and_prompts(model, steering, facts):
    with rl.steer(model, steering):
        expected = generate_answers(model, [TEXT], temperature=0, stop=facts.stop)[0][0]
    traced = rl.trace_answer(model, TEXT, steering, stop=facts.stop)
    assert traced.answer == expected != ""
    prompt = rl.trace_answer(model, rl.Prompt(TEXT, (), (), "g"), steering, stop=facts.stop)
    assert prompt.tokens == traced.tokens
    torch.testing.assert_close(prompt.patterns.weights, traced.patterns.weights)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (["a", "b"], {}, "`prompt` must be a str or .*; got list: trace one prompt at a time"),
        (3, {}, "`prompt` must be .*; got int 3"),
        (TEXT, {"stop": "\n"}, "`stop` must be a list"),
        (TEXT, {"max_new_tokens": 0}, "`max_new_tokens` must be a whole number"),
    ],
)
def test_wrong_arguments_raise_errors(model, steering, prompt, options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        rl.trace_answer(model, prompt, steering, **options)
