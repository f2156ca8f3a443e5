"""Reading many rows into statements and prompts, with a report of all that could not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from radiant_lens.datasets.readers.columns import Columns, rename
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError, InvalidArgumentError

ON_BAD_ROWS = ("raise", "report")


class Records(NamedTuple):
    """Statements and prompts read from rows; `notes` name everything that could not be used."""

    statements: tuple[Statement, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()


# From a row under our names, and its place, to its records.
Reader = Callable[[Row, str], Records]


def gather(
    rows: Iterable[tuple[str, Any]], read: Reader, *, name: str, columns: Columns, required: Columns, on_bad_rows: str
) -> Records:
    """Read every row.

    Args:
        rows: rows with their places.
        read: reader of one row; raises `DataError` for a row that cannot be used at all.
        name: name of the file, for messages.
        columns: our names of columns to the file's.
        required: those that the caller named, each of which some row must have.
        on_bad_rows: "raise", or "report" to leave bad rows out and note them.

    Raises:
        DataError: no rows, bad rows, or a column that no row has.
    """
    statements: list[Statement] = []
    prompts: list[Prompt] = []
    notes: list[str] = []
    faults: list[str] = []
    seen: set[str] = set()
    for place, row in rows:
        try:
            records = read(rename(row, columns), place)
        # A template refuses the turns of a single row by `InvalidArgumentError`; that row is bad, not the template.
        except (DataError, InvalidArgumentError, RecursionError) as error:
            reason = "it is nested too deeply." if isinstance(error, RecursionError) else error
            faults.append(f"{place}: {reason}")
            notes.append(faults[-1])
            continue
        # Names in the file, not ours: the check of `required` is about the file's columns.
        seen.update(row)
        statements.extend(records.statements)
        prompts.extend(records.prompts)
        notes.extend(f"{place}: {note}" for note in records.notes)
    if faults and (on_bad_rows == "raise" or not (statements or prompts)):
        raise DataError(f"{name} has rows that cannot be used ({len(faults)}): {_summary(faults)}")
    _check_present(required, seen, name)
    if not statements and not prompts:
        raise DataError(f"{name} has no rows{' that can be used: ' + ' '.join(notes[:3]) if notes else ''}.")
    return Records(tuple(statements), tuple(prompts), tuple(notes))


def _summary(faults: Sequence[str], most: int = 3) -> str:
    """Return the first fault of each kind; a file of the wrong form would otherwise show the same fault for every row.

    Faults are of one kind if they differ in the place and in the value only, which is the text after "; got".
    """
    by_kind: dict[str, str] = {}
    for fault in faults:
        by_kind.setdefault(fault.split(": ", 1)[1].split("; got")[0], fault)
    shown = list(by_kind.values())[:most]
    n_more = len(faults) - len(shown)
    return " ".join(shown) + (f" ({n_more} more)" if n_more else "")


def _check_present(required: Columns, seen: set[str], name: str) -> None:
    missing = [theirs for theirs in required.values() if isinstance(theirs, str) and theirs not in seen]
    if seen and missing:
        raise DataError(
            f"{name} has no column {' or '.join(map(repr, missing))}; there are: {', '.join(sorted(seen))}."
        )
