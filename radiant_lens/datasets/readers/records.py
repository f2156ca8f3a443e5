"""Reading statements and prompts from files with our own columns, and writing them as .jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens._files import write_text
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.labels import LabelRule
from radiant_lens.datasets.readers.parsing import Records, gather
from radiant_lens.datasets.readers.rows import Row, file_rows
from radiant_lens.datasets.records import Prompt, Statement, find_answer_start
from radiant_lens.errors import DataError

RECORD_COLUMNS = (("text", "label"), ("prompt", "correct_answers", "incorrect_answers"))
_COLUMNS_HINT = (
    "statements need 'text' and 'label', prompts 'prompt', 'correct_answers' and 'incorrect_answers'; name other "
    "columns by columns={'text': ...}"
)
# Judges that compare an answer with references; for others a prompt needs none.
COMPARING_JUDGES = ("exact", "contains", "overlap")


def read_records(
    path: str | Path, *, judge: str = "contains", on_bad_rows: str = "raise"
) -> tuple[tuple[Statement, ...], tuple[Prompt, ...]]:
    """Read the statements and prompts of a file; rows may be of both kinds.

    Statements have `text`, `label` and optionally `group`, `answer_start` and `question`; prompts have
    `prompt`, `correct_answers`, `incorrect_answers` (lists, or strings separated by "; ") and optionally
    `best_answer`, `group`, `condition`, `question`, `joint`, `mc1_incorrect`, `best_incorrect_answer`.
    A row without a `group` is a group of its own, which rows of the same text share: a split must not part them.

    A prompt with no answer of either kind cannot be judged by "exact", "contains" or "overlap" and is a bad row for
    them; with another judge it is read.

    Args:
        path: the file; see `load_dataset` for the endings.
        judge: judge of the answers to the prompts.
        on_bad_rows: "raise", or "report" to leave them out (`load_dataset` also names them).

    Raises:
        DataError: no such file, an unknown ending, no rows, or rows that cannot be used, each named by its line.
    """
    _checks.instance("path", path, (str, Path))
    path = Path(path)
    read = RecordReader(references=judge in COMPARING_JUDGES)
    records = gather(file_rows(path), read, name=path.name, columns={}, required={}, on_bad_rows=on_bad_rows)
    return records.statements, records.prompts


@dataclass(frozen=True)
class RecordReader:
    """Reads one row that is a statement or a prompt.

    Attributes:
        references: prompts need answers.
        labels: rule for the labels of statements.
        places: of each text in a row without a group, the place of the first such row; it names the group.
    """

    references: bool = True
    labels: LabelRule = field(default_factory=LabelRule)
    places: dict[str, str] = field(default_factory=dict[str, str])

    def __call__(self, row: Row, place: str) -> Records:
        """Return one statement or one prompt."""
        # A .csv with rows of both kinds has all columns in every row: a filled `prompt` makes a row a prompt.
        if not fields.is_missing(row.get("prompt")):
            return Records(prompts=(self._prompt(row),))
        return Records(statements=(self._statement(row, place),))

    def _prompt(self, row: Row) -> Prompt:
        fields.require(row, RECORD_COLUMNS[1], hint=_COLUMNS_HINT)
        correct, incorrect = (fields.answers(row, name) for name in RECORD_COLUMNS[1][1:])
        if self.references and not correct and not incorrect:
            raise DataError(
                "the prompt has no answers to compare with; a judge that needs none, such as judge='toxicity', "
                "allows that."
            )
        text = fields.text(row, "prompt")
        return Prompt(
            text,
            correct,
            incorrect,
            fields.identifier(row, "group", text),
            fields.one_answer(row, "best_answer") or (correct[0] if correct else ""),
            fields.identifier(row, "condition", "bare"),
            fields.text(row, "question"),
            # An empty joint is a value: prompt and answer follow each other without a blank.
            "" if row.get("joint") == "" else fields.text(row, "joint") or None,
            None if fields.is_missing(row.get("mc1_incorrect")) else fields.answers(row, "mc1_incorrect"),
            fields.one_answer(row, "best_incorrect_answer"),
            fields.flag(row, "rendered"),
        )

    def _statement(self, row: Row, place: str) -> Statement:
        fields.require(row, RECORD_COLUMNS[0], hint=_COLUMNS_HINT)
        text = fields.text(row, "text")
        if not text.strip():
            raise DataError("`text` is empty.")
        label = self.labels.read(row)
        known_start = row.get("answer_start") not in (None, "")
        start = fields.whole_number(row, "answer_start", len(text)) if known_start else find_answer_start(text)
        question = fields.text(row, "question")
        group = fields.identifier(row, "group") or self.places.setdefault(text, place)
        return Statement(text, label, group, start, question, fields.flag(row, "rendered"))


def write_records(path: str | Path, dataset: Dataset) -> Path:
    """Write the atomic statements and the bare prompts of a data set as .jsonl, and return the path."""
    _checks.instance("dataset", dataset, Dataset, hint="`load_dataset` makes one")
    rows = [*map(_statement_row, dataset.atoms), *map(_prompt_row, dataset.bare_prompts)]
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _statement_row(s: Statement) -> dict[str, Any]:
    row = {"text": s.text, "label": s.label, "group": s.group, "answer_start": s.answer_start}
    return row | {name: value for name in ("question", "rendered") if (value := getattr(s, name))}


def _prompt_row(p: Prompt) -> dict[str, Any]:
    row = {
        "prompt": p.text,
        "correct_answers": p.correct_answers,
        "incorrect_answers": p.incorrect_answers,
        "best_answer": p.best_answer,
        "group": p.group,
    }
    # Only what differs from the defaults of `Prompt`, so that files stay readable.
    usual: dict[str, Any] = {"condition": "bare", "question": "", "joint": None, "mc1_incorrect": None}
    usual |= {"best_incorrect_answer": "", "rendered": False}
    return row | {name: getattr(p, name) for name, value in usual.items() if getattr(p, name) != value}
