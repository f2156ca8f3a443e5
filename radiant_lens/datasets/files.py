"""Reading statements and prompts from .csv, .json and .jsonl files, and writing them as .jsonl."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens._errors import DataError
from radiant_lens._files import write_text
from radiant_lens.datasets.examples import Dataset
from radiant_lens.datasets.records import Prompt, Statement, find_answer_start

Row = Mapping[str, Any]
_STATEMENT_COLUMNS, _PROMPT_COLUMNS = ("text", "label"), ("prompt", "correct_answers", "incorrect_answers")
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def read_records(path: str | Path) -> tuple[tuple[Statement, ...], tuple[Prompt, ...]]:
    """Statements and prompts of a file; rows may be of both kinds.

    Statements have `text`, `label` and optionally `group` and `answer_start`; prompts have `prompt`,
    `correct_answers`, `incorrect_answers` (lists, or strings parted by "; ") and optionally
    `best_answer`, `group`, `condition`. Without a `group` each row is its own, but rows of one prompt
    text share theirs.

    Raises:
        DataError: no such file, an unknown ending, no rows, or rows that cannot be used, each named by its line.
    """
    path = Path(path)
    statements: list[Statement] = []
    prompts: list[Prompt] = []
    faults: list[str] = []
    for line, row in _rows(path):
        try:
            if not isinstance(row, Mapping):
                raise DataError(f"a row must hold named columns; got {row!r}.")
            if row.get("prompt") not in (None, ""):
                prompts.append(_prompt(row))
            else:
                statements.append(_statement(row, line))
        except DataError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{path.name} has {len(faults)} rows that cannot be used: {' '.join(faults[:3])}{more}")
    if not statements and not prompts:
        raise DataError(f"{path.name} has no rows.")
    return tuple(statements), tuple(prompts)


def write_records(path: str | Path, dataset: Dataset) -> Path:
    """Write the atomic statements and the bare prompts of a data set as .jsonl."""
    rows = [{"text": s.text, "label": s.label, "group": s.group, "answer_start": s.answer_start} for s in dataset.atoms]
    for p in dataset.bare_prompts:
        row = {
            "prompt": p.text,
            "correct_answers": p.correct_answers,
            "incorrect_answers": p.incorrect_answers,
            "best_answer": p.best_answer,
            "group": p.group,
        }
        rows.append(row if p.condition == "bare" else {**row, "condition": p.condition})
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    _checks.known("data file ending", path.suffix, (".csv", ".json", ".jsonl"))
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""))
            yield from ((reader.line_num, row) for row in reader)
            return
        if path.suffix == ".json":
            rows = json.loads(text)
            yield from enumerate(rows if isinstance(rows, list) else [rows], start=1)
            return
        # Only line feeds end a line: other separators may stand inside strings.
        for line, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                yield line, _json_line(content, path, line)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as {path.suffix}: {error}.") from error


def _json_line(content: str, path: Path, line: int) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name} cannot be read as .jsonl: line {line}: {error.msg}.") from error


def _statement(row: Row, line: int) -> Statement:
    _columns(row, _STATEMENT_COLUMNS)
    text, label = row["text"], _LABELS.get(str(row["label"]).strip().lower())
    if not isinstance(text, str) or not text.strip():
        raise DataError("`text` is empty.")
    if label is None:
        raise DataError(f"`label` must be 0 (desirable) or 1 (undesirable); got {row['label']!r}.")
    start = row.get("answer_start")
    start = find_answer_start(text) if start in (None, "") else _answer_start(start, text)
    return Statement(text, label, _text(row, "group", f"row {line}"), start)


def _answer_start(value: Any, text: str) -> int:
    try:
        start = int(value)
    except (TypeError, ValueError, OverflowError):
        start = -1
    if not 0 <= start < len(text):
        raise DataError(f"`answer_start` must lie in [0, {len(text)}); got {value!r}.")
    return start


def _prompt(row: Row) -> Prompt:
    _columns(row, _PROMPT_COLUMNS)
    correct, incorrect = (_answers(row, name) for name in _PROMPT_COLUMNS[1:])
    best = _text(row, "best_answer", correct[0] if correct else "")
    text = str(row["prompt"])
    return Prompt(text, correct, incorrect, _text(row, "group", text), best, _text(row, "condition", "bare"))


def _text(row: Row, name: str, missing: str) -> str:
    """A column as text; what is missing or blank gets the given value, but 0 is a value."""
    value = row.get(name)
    return missing if value is None or value == "" else str(value)


def _answers(row: Row, name: str) -> tuple[str, ...]:
    value = row[name]
    answers = value.split("; ") if isinstance(value, str) else value
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"`{name}` must be a list of strings or a string parted by '; '; got {value!r}.")
    return tuple(a.strip() for a in answers if a.strip())


def _columns(row: Row, needed: tuple[str, ...]) -> None:
    missing = [c for c in needed if c not in row]
    if missing:
        raise DataError(
            f"missing column {' and '.join(map(repr, missing))} (there are: {', '.join(map(str, row))}); "
            "statements need 'text' and 'label', prompts 'prompt', 'correct_answers' and 'incorrect_answers'."
        )
