"""Answers of a report: pairs of the same prompt, changed words, filters."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import radiant_lens as rl
from radiant_lens.evaluation.answers import verdict_parts
from radiant_lens.viz.report.answers import Words, answers, compare_words

VERDICTS = {"before": "iiccc", "after": "icccx"}
WORDS = {"i": "incorrect", "c": "correct", "x": "other"}


def evaluation(verdicts: str) -> rl.Evaluation:
    """One answer to each of five prompts; equal letters are equal answers."""
    prompts = tuple(
        rl.Prompt(f"Q : question {i} ? A :", ("yes",), ("no",), f"group-{i}", "yes indeed", ("bare", "after")[i % 2])
        for i in range(len(verdicts))
    )
    rows = [
        {"prompt_index": i, "prompt": p.text, "condition": p.condition, "group": p.group, "sample": 0}
        | {"answer": f"the answer {verdicts[i]}", "verdict": WORDS[verdicts[i]]}
        for i, p in enumerate(prompts)
    ]
    table = pd.DataFrame(rows)
    return rl.Evaluation(table, verdict_parts(table), prompts, {})


@pytest.fixture(scope="module")
def pair():
    return {name: evaluation(verdicts) for name, verdicts in VERDICTS.items()}


def test_filters_count_and_show_their_kind(pair):
    result = answers(pair, "after", 10)
    assert result.names == ("before", "after")
    assert result.counts == {"all": 5, "changed": 2, "corrected": 1, "broken": 1}
    shown = {name: [row.question for row in result.rows if name in row.filters] for name in result.counts}
    assert shown["corrected"] == ["question 1 ?"]
    assert shown["broken"] == ["question 4 ?"]
    # One of each condition in turn: even prompts are bare, odd ones after context.
    assert shown["all"] == [f"question {i} ?" for i in (0, 1, 2, 3, 4)]
    assert [row.question for row in result.first] == ["question 4 ?", "question 1 ?"] or [
        row.question for row in result.first
    ] == ["question 1 ?", "question 4 ?"]


def test_each_filter_shows_its_first_prompts(pair):
    result = answers(pair, "after", 1)
    assert {name: result.shown(name) for name in result.counts} == dict.fromkeys(result.counts, 1)
    # The one of "all" is not changed; those of the other filters are in the table beside it.
    assert [row.filters for row in result.rows if "all" in row.filters] == [("all",)]


def test_the_right_answer_stands_beside_and_changed_words_are_marked(pair):
    row = answers(pair, "after", 10).first[-1]
    assert row.right == "yes indeed"
    assert row.before[0] == row.after[0] == Words("the answer", False)
    assert row.before[1].is_changed and row.after[1].is_changed


def test_prompts_that_are_missing_leave_the_right_answer_out(pair):
    bare = {name: replace(e, prompts=()) for name, e in pair.items()}
    assert all(row.right == "" for row in answers(bare, "after", 10).rows)


def test_a_question_of_the_data_is_preferred(pair):
    asked = {n: replace(e, prompts=tuple(replace(p, question="asked") for p in e.prompts)) for n, e in pair.items()}
    assert {row.question for row in answers(asked, "after", 10).rows} == {"asked"}


def test_without_two_evaluations_or_rows_there_is_nothing(pair):
    assert answers(pair, None, 3) is None
    assert answers(pair, "after", 0) is None
    empty = {n: replace(e, table=e.table.head(0)) for n, e in pair.items()}
    assert answers(empty, "after", 3) is None


sentences = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8).map(" ".join)


@given(sentences, sentences)
def test_marked_words_make_up_the_texts_and_the_rest_agrees(before, after):
    pieces = compare_words(before, after)
    assert tuple(" ".join(words.text for words in text) for text in pieces) == (before, after)
    same = [[word for words in text if not words.is_changed for word in words.text.split()] for text in pieces]
    assert same[0] == same[1]
    assert any(words.is_changed for text in pieces for words in text) == (before != after)
