"""Multiple-choice questions of general benchmarks: columns `question`, `choices`, `answer`.

`choices` is a list of at least two texts, or `{"text": [...], "label": [...]}` as ARC has it. `answer` is the number of
the right choice, counted from 0 as MMLU does, its letter or label, or its text. A choice that the list repeats, as some
rows of CommonsenseQA do, counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.parsing import Records
from radiant_lens.datasets.readers.questions import normalize
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt
from radiant_lens.datasets.templates import Template
from radiant_lens.errors import DataError


@dataclass(frozen=True)
class ChoiceReader:
    """Reads one multiple-choice question; `template` is put around question and answer."""

    template: Template

    def __call__(self, row: Row, place: str) -> Records:
        """Return a prompt and, for each choice, a statement; the wrong choices have label 1."""
        fields.require(row, ("question", "choices", "answer"))
        question = fields.text(row, "question").strip()
        if not question:
            raise DataError("`question` is empty.")
        texts, labels = _read_choices(row["choices"])
        right = _find_answer(row["answer"], texts, labels)
        prompt = Prompt(
            self.template.prompt(question),
            (right,),
            tuple(dict.fromkeys(text for text in texts if text != right)),
            fields.identifier(row, "group", normalize(question)),
            right,
            question=question,
            joint=self.template.joint,
            rendered=self.template.rendered,
        )
        statements = tuple(map(prompt.answered, (right, *prompt.incorrect_answers)))
        return Records(statements, (prompt,))


def _read_choices(value: Any) -> tuple[list[str], list[str] | None]:
    """Return the choices, and their labels if the row has any."""
    labels: Any = None
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label")
    if isinstance(value, str):
        value = fields.read_list(value, "choices")
    lists = (value,) if labels is None else (value, labels)
    texts = [[item.strip() for item in v] if isinstance(v, list) and _are_texts(v) else [] for v in lists]
    if len(set(texts[0])) < 2 or len(texts[0]) != len(texts[-1]):
        raise DataError(
            "`choices` must be a list of at least two different texts, or lists of as many 'text' and 'label'."
        )
    return texts[0], None if labels is None else texts[1]


def _are_texts(items: list[Any]) -> bool:
    return all(isinstance(item, str) and item.strip() for item in items)


def _find_answer(value: Any, texts: list[str], labels: list[str] | None) -> str:
    """Return the right choice."""
    # In a .csv numbers are text, too; a `bool` is an `int`, and names no choice.
    written = "" if isinstance(value, bool) else str(value).strip()
    if labels is not None:
        if labels.count(written) != 1:
            raise DataError(f"`answer` must be one of the labels {', '.join(labels)}; got {value!r:.80}.")
        return texts[labels.index(written)]
    by_letter = dict(zip(ascii_uppercase, texts)).get(written)
    by_number = texts[int(written)] if written.isdecimal() and int(written) < len(texts) else None
    by_text = written if isinstance(value, str) and written in texts else None
    right = {by_letter, by_number, by_text} - {None}
    if len(right) != 1:
        raise DataError(
            f"`answer` must be the number of a choice (0 to {len(texts) - 1}), its letter or its text"
            f"{'; these name different choices' if right else ''}: got {value!r:.80}."
        )
    return str(right.pop())
