"""Answers of a report: before and after the steering, with the right answer, changed words marked, and filters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import pandas as pd

from radiant_lens import _checks
from radiant_lens.datasets.records import Prompt
from radiant_lens.evaluation import Evaluation

LONGEST = 2000
"""Characters of a prompt or answer that are shown."""
LONGEST_QUESTION = 240
"""Characters of a question that are shown where it is cut out of its prompt."""
# What stands before the last question of the package's own templates, and of texts in paragraphs.
_BEFORE_QUESTION = re.compile(r"\bQ ?:|\n\n")
N_FIRST = 3
"""Changed answers on the first screen."""
FILTERS = ("all", "changed", "corrected", "broken")
"""Filters of the table of answers."""


class Words(NamedTuple):
    """Neighbouring words of an answer; `is_changed` where the other answer does not have them."""

    text: str
    is_changed: bool


class AnswerPair(NamedTuple):
    """The first answer to one prompt, before and after the steering.

    Attributes:
        prompt: the whole prompt.
        question: its question alone or, without one, its end.
        condition: of the prompt.
        right: the answer to compare with; "" where the data have none.
        before, after: words of the two answers.
        verdicts: of the two answers.
        filters: names of the filters of the table that show this pair.
    """

    prompt: str
    question: str
    condition: str
    right: str
    before: tuple[Words, ...]
    after: tuple[Words, ...]
    verdicts: tuple[str, str]
    filters: tuple[str, ...] = ()


class Answers(NamedTuple):
    """Answers of two evaluations of the same prompts.

    Attributes:
        names: of the two evaluations.
        rows: of the table; each filter shows some of them.
        counts: prompts that each filter is about, shown or not.
        first: changed answers for the first screen.
    """

    names: tuple[str, str]
    rows: list[AnswerPair]
    counts: dict[str, int]
    first: list[AnswerPair]

    def shown(self, name: str) -> int:
        """Rows that a filter shows."""
        return sum(name in row.filters for row in self.rows)


def answers(evaluations: Mapping[str, Evaluation], steered: str | None, n: int) -> Answers | None:
    """Pair the first answers before and after; None where there are not two evaluations with answers.

    Each filter shows the first `n` of its prompts, one of each condition in turn, so none is chosen by its answer.
    """
    _checks.whole("n_examples", n, 0)
    if steered is None or n == 0:
        return None
    base = next(iter(evaluations))
    before, after = (_first_answers(evaluations[name]) for name in (base, steered))
    if before.empty or after.empty:
        return None
    # Joined by the index of the prompt: a steering may have been evaluated on some of the prompts.
    joined: Any = before.assign(answer_after=after["answer"], verdict_after=after["verdict"]).dropna(
        subset="answer_after"
    )
    changed: Any = joined[joined["answer"].str.strip() != joined["answer_after"].str.strip()]
    was_right, is_right = changed["verdict"] == "correct", changed["verdict_after"] == "correct"
    tables: dict[str, Any] = {
        "all": joined,
        "changed": changed,
        "corrected": changed[~was_right & is_right],
        "broken": changed[was_right & ~is_right],
    }
    shown = {name: list(_in_turn(table).index[:n]) for name, table in tables.items()}
    filters = {i: tuple(name for name, index in shown.items() if i in index) for index in shown.values() for i in index}
    prompts = evaluations[base].prompts
    rows = [_pair(row, prompts, filters[row.Index]) for row in _in_turn(joined.loc[list(filters)]).itertuples()]
    first = [_pair(row, prompts) for row in _in_turn(changed).head(N_FIRST).itertuples()]
    return Answers((base, steered), rows, {name: len(table) for name, table in tables.items()}, first)


def _first_answers(evaluation: Evaluation) -> pd.DataFrame:
    table: Any = evaluation.table
    return table[table["sample"] == 0].set_index("prompt_index").sort_index()


def _in_turn(table: pd.DataFrame) -> Any:
    """One prompt of each condition after another; the table lists one condition after another."""
    turn: Any = table.groupby("condition").cumcount()
    return table.loc[turn.sort_values(kind="stable").index]


def _pair(row: Any, prompts: tuple[Prompt, ...], filters: tuple[str, ...] = ()) -> AnswerPair:
    # Evaluations that were put together by hand may have answers without prompts.
    prompt = prompts[row.Index] if row.Index < len(prompts) else None
    before, after = compare_words(cut(row.answer), cut(row.answer_after))
    return AnswerPair(
        cut(row.prompt),
        _question(str(row.prompt), prompt),
        str(row.condition).replace("_", " "),
        "" if prompt is None else cut(prompt.best_answer or next(iter(prompt.correct_answers), "")),
        before,
        after,
        (row.verdict, row.verdict_after),
        filters,
    )


def _question(text: str, prompt: Prompt | None) -> str:
    if prompt is not None and prompt.question:
        return cut(prompt.question)
    # The end of a prompt holds its question; examples and context come first.
    last = _BEFORE_QUESTION.split(text.strip())[-1].removesuffix(":").rstrip().removesuffix("A").strip()
    return last if len(last) <= LONGEST_QUESTION else "..." + last[-LONGEST_QUESTION:].strip()


def compare_words(before: str, after: str) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    """Words of two texts, with those marked that the other text does not have at this place.

    Example:
        >>> compare_words("a blue river", "a river")[0]
        (Words(text='a', is_changed=False), Words(text='blue', is_changed=True), Words(text='river', is_changed=False))
    """
    old, new = before.split(), after.split()
    marked_old: list[Words] = []
    marked_new: list[Words] = []
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if j > i:
            marked_old.append(Words(" ".join(old[i:j]), kind != "equal"))
        if m > k:
            marked_new.append(Words(" ".join(new[k:m]), kind != "equal"))
    return tuple(marked_old), tuple(marked_new)


def cut(text: Any) -> str:
    """A text without its beginning where it is very long."""
    # The end of a long prompt holds its question; few-shot examples come first.
    text = str(text)
    return text if len(text) <= LONGEST else "..." + text[-LONGEST:]
