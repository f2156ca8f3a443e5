"""Reading many rows into statements and prompts, with a report of all that could not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from radiant_lens.datasets.readers.columns import Columns, renamed
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError

ON_BAD_ROWS = ("raise", "report")


class Found(NamedTuple):
    """What rows hold; `notes` say what of them could not be used."""

    statements: tuple[Statement, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()


# From a row under our names, and its place, to what it holds.
Reader = Callable[[Row, str], Found]


def gather(
    rows: Iterable[tuple[str, Any]], read: Reader, *, name: str, columns: Columns, asked: Columns, on_bad_rows: str
) -> Found:
    """Read every row.

    Args:
        rows: with their places.
        read: raises `DataError` for a row that cannot be used at all.
        name: of the file, for messages.
        columns: our names of columns to the file's.
        asked: those of them that the caller named, which must exist in some row.
        on_bad_rows: "raise", or "report" to go on and note them.

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
            found = read(renamed(row, columns), place)
        except (DataError, RecursionError) as error:
            said = error if isinstance(error, DataError) else "it is nested too deeply."
            faults.append(f"{place}: {said}")
            notes.append(faults[-1])
            continue
        seen.update(row)
        statements.extend(found.statements)
        prompts.extend(found.prompts)
        notes.extend(f"{place}: {note}" for note in found.notes)
    if faults and (on_bad_rows == "raise" or not (statements or prompts)):
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{name} has rows that cannot be used ({len(faults)}): {' '.join(faults[:3])}{more}")
    _all_there(asked, seen, name)
    if not statements and not prompts:
        raise DataError(f"{name} has no rows{' that can be used: ' + ' '.join(notes[:3]) if notes else ''}.")
    return Found(tuple(statements), tuple(prompts), tuple(notes))


def _all_there(asked: Columns, seen: set[str], name: str) -> None:
    missing = [theirs for theirs in asked.values() if isinstance(theirs, str) and theirs not in seen]
    if seen and missing:
        raise DataError(
            f"{name} has no column {' or '.join(map(repr, missing))}; there are: {', '.join(sorted(seen))}."
        )
