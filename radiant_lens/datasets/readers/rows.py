"""Rows of data files and of the Hub, each with the place it came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens._files import parsed
from radiant_lens.errors import DataError

Row = Mapping[str, Any]
ENDINGS = (".csv", ".json", ".jsonl")
# Where the fields of a .csv row stand that its header does not name.
BEYOND = "(beyond the header)"


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a .csv, .json or .jsonl file, with "line 3" (or, in .json, "row 3") as their place.

    A row of a .csv is named by the line it begins on.

    Raises:
        DataError: no such file, or one that its ending does not describe.
        UnknownNameError: another ending.
    """
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    _checks.known("data file ending", path.suffix, ENDINGS)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            yield from _csv(text)
        elif path.suffix == ".json":
            rows = parsed(json.loads, text)
            yield from ((f"row {i}", row) for i, row in enumerate(rows if isinstance(rows, list) else [rows], start=1))
        else:
            # Only line feeds end a line: other separators may stand inside strings.
            for line, content in enumerate(text.split("\n"), start=1):
                if content.strip():
                    yield f"line {line}", _json_line(content, path, line)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as {path.suffix}: {error}.") from error


def _csv(text: str) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise csv.Error(f"the header names a column twice: {', '.join(map(repr, twice))}")
    end = reader.line_num
    for fields in reader:
        start, end = end + 1, reader.line_num
        if fields:
            row: dict[str, Any] = dict(zip(header, [*fields, *[None] * (len(header) - len(fields))]))
            yield f"line {start}", {**row, BEYOND: fields[len(header) :]} if len(fields) > len(header) else row


def _json_line(content: str, path: Path, line: int) -> Any:
    try:
        return parsed(json.loads, content)
    except ValueError as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path.name} cannot be read as .jsonl: line {line}: {said}.") from error


def hub_rows(repository: str, config: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """Rows of a data set of the Hub, with "row 3" as their place.

    Raises:
        DataError: it cannot be had; the message says how to use a local file.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, config, split=split)
    except Exception as error:  # The library raises errors of many others: of the network, of files, its own.
        raise DataError(
            f"{repository!r} cannot be had from the Hub ({type(error).__name__}: {error}). Without a network, give "
            "the published file: load_dataset(name, path='the-file.csv')."
        ) from error
    return ((f"row {i}", row) for i, row in enumerate(rows, start=1))
