"""Rows of data files and of the Hub, each with its place in the source."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens._files import parsed
from radiant_lens.errors import DataError

Row = Mapping[str, Any]
Places = Iterator[tuple[str, Any]]
"""Rows with their places, such as "line 3"."""

ENDINGS = (".csv", ".json", ".jsonl", ".tsv", ".parquet")
ENDINGS_HINT = "A file must end in .csv, .json or .jsonl (or .tsv, .parquet); .gz may follow the ending of a text file."
# Key of the fields of a .csv row for which the header has no name.
BEYOND = "(beyond the header)"


def file_ending(path: Path) -> str:
    """Return the ending that names the format, in lower case and without ".gz": ".jsonl" for "data.JSONL.gz"."""
    return _without_gz(path).suffix.lower()


def file_stem(path: Path) -> str:
    """Return the name of the file without the endings that name its format and compression."""
    return _without_gz(path).stem


def _without_gz(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def file_rows(path: Path) -> Places:
    """Yield the rows of a file, with "line 3" (or, in .json and .parquet, "row 3") as their place.

    The place of a .csv row is the line it begins on. A .json file with one object a line is read as .jsonl.

    Raises:
        DataError: no such file, or its content does not fit its ending.
        UnknownNameError: another ending.
    """
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    ending = file_ending(path)
    _checks.known("data file ending", ending, ENDINGS, hint=ENDINGS_HINT)
    try:
        yield from _parquet_rows(path) if ending == ".parquet" else _READERS[ending](_read_text(path), path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as {ending}: {error}.") from error


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    # "utf-8-sig": spreadsheets begin their files with a byte order mark.
    return (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")


def _parquet_rows(path: Path) -> Places:
    from pyarrow import parquet

    if path.suffix.lower() == ".gz":
        raise ValueError("a .parquet file is compressed already; unpack the .gz")
    rows: list[Any] = parquet.read_table(path).to_pylist()
    return ((f"row {i}", row) for i, row in enumerate(rows, start=1))


def _csv_rows(text: str, path: Path) -> Places:
    return _table_rows(text, ",")


def _tsv_rows(text: str, path: Path) -> Places:
    return _table_rows(text, "\t")


def _table_rows(text: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = next(reader, [])
    # A dict keeps the last of two columns of one name, so the first would be lost.
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise csv.Error(f"the header names a column twice: {', '.join(map(repr, twice))}")
    end = reader.line_num
    for fields in reader:
        # `line_num` counts the lines read so far, so a row of several lines begins after the end of the row before.
        start, end = end + 1, reader.line_num
        if fields:
            row: dict[str, Any] = dict(zip(header, [*fields, *[None] * (len(header) - len(fields))]))
            yield f"line {start}", {**row, BEYOND: fields[len(header) :]} if len(fields) > len(header) else row


def _json_rows(text: str, path: Path) -> Places:
    try:
        rows = parsed(json.loads, text)
    except ValueError:
        # Many published .json files hold one object a line.
        if not _first_line_is_an_object(text):
            raise
        return _jsonl_rows(text, path)
    return ((f"row {i}", row) for i, row in enumerate(rows if isinstance(rows, list) else [rows], start=1))


def _first_line_is_an_object(text: str) -> bool:
    try:
        return isinstance(parsed(json.loads, text.lstrip().split("\n", 1)[0]), dict)
    except ValueError:
        return False


def _jsonl_rows(text: str, path: Path) -> Places:
    # Only line feeds end a line: other line separators of Unicode may be part of a string.
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield f"line {line}", _json_line(content, path, line)


def _json_line(content: str, path: Path, line: int) -> Any:
    try:
        return parsed(json.loads, content)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path.name} cannot be read as .jsonl: line {line}: {reason}.") from error


_READERS: dict[str, Callable[[str, Path], Places]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
}


def hub_rows(repository: str, config: str | None, split: str) -> Places:
    """Return the rows of a data set of the Hub, with "row 3" as their place.

    Raises:
        DataError: it cannot be loaded; the message says how to use a local file.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, config, split=split)
    except Exception as error:  # The library raises errors of many others: of the network, of files, its own.
        raise DataError(
            f"{repository!r} cannot be loaded from the Hub ({type(error).__name__}: {error}). Without a network, give "
            "the published file: load_dataset(name, path='the-file.csv')."
        ) from error
    return ((f"row {i}", row) for i, row in enumerate(rows, start=1))
