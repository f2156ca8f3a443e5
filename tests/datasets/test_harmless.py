"""The everyday texts that the package brings: well formed, and not of the package's other data."""

from __future__ import annotations

from radiant_lens import load_dataset
from radiant_lens.datasets import TextTemplate
from radiant_lens.datasets.harmless import (
    as_requests,
    harmless_requests,
    neutral_statements,
    world_requests,
    world_statements,
)
from radiant_lens.datasets.loading import data_folder


def test_neutral_texts_are_whole_sentences():
    statements = neutral_statements()
    texts = [s.text for s in statements]
    assert len(set(texts)) == len({s.group for s in statements}) == len(statements) == 60
    assert all(text[0].isupper() and text.endswith(".") and text == " ".join(text.split()) for text in texts)
    assert all((s.label, s.answer_start, s.rendered) == (0, 0, False) for s in statements)


def test_requests_are_laid_out_by_the_template():
    template = TextTemplate("Q: {question}\nA: {answer}")
    prompts = harmless_requests(template)
    assert len({p.question for p in prompts}) == len({p.group for p in prompts}) == len(prompts) == 30
    assert all(p.text == f"Q: {p.question}\nA:" for p in prompts)
    assert all(p.question[-1] in ".?" and not p.correct_answers and not p.incorrect_answers for p in prompts)
    assert prompts[0].answered("so").text.endswith("\nA: so")
    assert [p.group for p in as_requests(["who?", "what?"], template)] == ["who?", "what?"]


def test_nothing_of_them_is_in_the_data_that_steerings_are_fitted_on():
    others = {p.question.casefold() for name in ("misconceptions", "tone") for p in load_dataset(name).prompts}
    assert others
    assert not {p.question.casefold() for p in harmless_requests(TextTemplate())} & others


def test_texts_of_the_embedded_world():
    statements, prompts = world_statements(), world_requests()
    assert len(statements) == len({s.group for s in statements}) == 60
    assert {s.label for s in statements} == {0}
    assert len(prompts) == len({p.text for p in prompts}) == 30
    assert not any("fool" in p.text for p in prompts)


def test_counts_are_those_of_the_card():
    card = " ".join((data_folder() / "README.md").read_text().split())
    assert f"`neutral.jsonl`: {len(neutral_statements())} everyday sentences" in card
    assert f"`requests.jsonl`: {len(harmless_requests(TextTemplate()))} everyday requests" in card
