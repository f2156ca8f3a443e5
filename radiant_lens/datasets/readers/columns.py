"""Columns of a row: their names, and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.readers.rows import BEYOND, Row
from radiant_lens.errors import DataError

# Our name of a column to the file's; a label may be made of several.
Columns = Mapping[str, str | Sequence[str]]
NAMES = (
    "text", "label", "group", "answer_start", "question", "prompt", "joint", "condition",
    "correct_answers", "incorrect_answers", "best_answer", "best_incorrect_answer", "mc1_incorrect", "rendered",
)  # fmt: skip
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def check_columns(columns: Columns) -> None:
    """Only known columns are named, and only a label is made of several.

    Raises:
        UnknownNameError: a column that nothing reads.
        DataError: several columns for one that is no label.
    """
    for ours, theirs in columns.items():
        _checks.known("column", ours, NAMES)
        if not isinstance(theirs, str) and ours != "label":
            raise DataError(f"Only 'label' can be made of several columns; got {theirs!r} for {ours!r}.")


def renamed(row: Any, columns: Columns) -> Row:
    """The row under our names.

    Raises:
        DataError: no row of named columns, or a label column without a label.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row must hold named columns; got {row!r}.")
    if BEYOND in row:
        raise DataError(f"the row has {len(row[BEYOND])} more fields than the header.")
    named = dict(row)
    for ours, theirs in columns.items():
        if isinstance(theirs, str):
            if theirs in row:
                named[ours] = row[theirs]
        else:
            needed(row, theirs)
            named[ours] = max(label(row, name) for name in theirs)
    return named


def needed(row: Row, names: Sequence[str], *, hint: str = "") -> None:
    """The row has these columns."""
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(
            f"missing column {' and '.join(map(repr, missing))} (there are: {', '.join(map(str, row))})"
            f"{'; ' + hint if hint else ''}."
        )


def label(row: Row, name: str) -> int:
    """A column that holds 0 or 1, in any usual form."""
    found = _LABELS.get(str(row[name]).strip().lower())
    if found is None:
        raise DataError(f"`{name}` must be 0 (desirable) or 1 (undesirable); got {row[name]!r}.")
    return found


def flag(row: Row, name: str) -> bool:
    """A column that holds true or false, in any usual form; missing is false."""
    value = str(row.get(name) or "false").strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise DataError(f"`{name}` must be true or false; got {row[name]!r}.")
    return value in ("true", "1")


def text(row: Row, name: str, missing: str = "") -> str:
    """A column as text; what is missing or blank gets the given value, but 0 is a value."""
    value = row.get(name)
    return missing if value is None or value == "" else str(value)


def answers(row: Row, name: str) -> tuple[str, ...]:
    """A list of strings, or a string parted by "; "; a mark at its end parts nothing."""
    value = row[name]
    parts = [part.rstrip("; ") for part in value.split("; ")] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise DataError(f"`{name}` must be a list of strings or a string parted by '; '; got {value!r}.")
    return tuple(part.strip() for part in parts if part.strip())


def whole_number(row: Row, name: str, below: int) -> int:
    """A column that holds a whole number in [0, below)."""
    value = row[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < below:
        raise DataError(f"`{name}` must lie in [0, {below}); got {value!r}.")
    if number != int(number):
        raise DataError(f"`{name}` must be a whole number; got {value!r}.")
    return int(number)


def score(row: Row, name: str) -> float | None:
    """A column that holds a score in [0, 1]; None where there is none."""
    value = row.get(name)
    # NaN is how tables write what is missing.
    if value is None or value == "" or value != value:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise DataError(f"`{name}` must lie in [0, 1]; got {value!r}.")
    return float(value)
