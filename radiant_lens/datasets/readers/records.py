"""Reading statements and prompts from .csv, .json and .jsonl files, and writing them as .jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radiant_lens._files import write_text
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.parsing import Found, gather
from radiant_lens.datasets.readers.rows import Row, file_rows
from radiant_lens.datasets.records import Prompt, Statement, find_answer_start
from radiant_lens.errors import DataError

RECORD_COLUMNS = (("text", "label"), ("prompt", "correct_answers", "incorrect_answers"))
_COLUMNS_HINT = "statements need 'text' and 'label', prompts 'prompt', 'correct_answers' and 'incorrect_answers'"
# Judges that compare an answer with references; for others a prompt needs none.
COMPARING_JUDGES = ("exact", "contains")


def read_records(
    path: str | Path, *, judge: str = "contains", on_bad_rows: str = "raise"
) -> tuple[tuple[Statement, ...], tuple[Prompt, ...]]:
    """Statements and prompts of a file; rows may be of both kinds.

    Statements have `text`, `label` and optionally `group`, `answer_start` and `question`; prompts have
    `prompt`, `correct_answers`, `incorrect_answers` (lists, or strings parted by "; ") and optionally
    `best_answer`, `group`, `condition`, `question`, `joint`, `mc1_incorrect`, `best_incorrect_answer`.
    Without a `group` each row is its own, but rows of one prompt text share theirs.

    A prompt with no answer of either kind cannot be judged by "exact" or "contains" and is a bad row for
    them; with another judge it is read.

    Args:
        path: of the file.
        judge: what will judge answers to the prompts.
        on_bad_rows: "raise", or "report" to leave them out (`load_dataset` also says which).

    Raises:
        DataError: no such file, an unknown ending, no rows, or rows that cannot be used, each named by its line.
    """
    path = Path(path)
    read = RecordReader(references=judge in COMPARING_JUDGES)
    found = gather(file_rows(path), read, name=path.name, columns={}, asked={}, on_bad_rows=on_bad_rows)
    return found.statements, found.prompts


@dataclass(frozen=True)
class RecordReader:
    """Reads one row that is a statement or a prompt; `references` says that prompts need answers."""

    references: bool = True

    def __call__(self, row: Row, place: str) -> Found:
        """One statement or one prompt."""
        if row.get("prompt") not in (None, ""):
            return Found(prompts=(self._prompt(row),))
        return Found(statements=(_statement(row, place),))

    def _prompt(self, row: Row) -> Prompt:
        fields.needed(row, RECORD_COLUMNS[1], hint=_COLUMNS_HINT)
        correct, incorrect = (fields.answers(row, name) for name in RECORD_COLUMNS[1][1:])
        if self.references and not correct and not incorrect:
            raise DataError(
                "the prompt has no answers to compare with; a judge that needs none, such as judge='toxicity', "
                "allows that."
            )
        text = str(row["prompt"])
        return Prompt(
            text,
            correct,
            incorrect,
            fields.text(row, "group", text),
            fields.text(row, "best_answer", correct[0] if correct else ""),
            fields.text(row, "condition", "bare"),
            fields.text(row, "question"),
            None if row.get("joint") is None else str(row["joint"]),
            None if row.get("mc1_incorrect") in (None, "") else fields.answers(row, "mc1_incorrect"),
            fields.text(row, "best_incorrect_answer"),
            fields.flag(row, "rendered"),
        )


def _statement(row: Row, place: str) -> Statement:
    fields.needed(row, RECORD_COLUMNS[0], hint=_COLUMNS_HINT)
    text, label = row["text"], fields.label(row, "label")
    if not isinstance(text, str) or not text.strip():
        raise DataError("`text` is empty.")
    given = row.get("answer_start") not in (None, "")
    start = fields.whole_number(row, "answer_start", len(text)) if given else find_answer_start(text)
    rendered = fields.flag(row, "rendered")
    return Statement(text, label, fields.text(row, "group", place), start, fields.text(row, "question"), rendered)


def write_records(path: str | Path, dataset: Dataset) -> Path:
    """Write the atomic statements and the bare prompts of a data set as .jsonl."""
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
    usual: dict[str, Any] = {"condition": "bare", "question": "", "joint": None, "mc1_incorrect": None}
    usual |= {"best_incorrect_answer": "", "rendered": False}
    return row | {name: getattr(p, name) for name, value in usual.items() if getattr(p, name) != value}
