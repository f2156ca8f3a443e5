"""Rows of files of every kind and of the Hub: each a mapping from column to value, with its place in the source."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from radiant_lens import _checks
from radiant_lens._files import parsed
from radiant_lens.datasets.readers.plain_text import decode, table_lines
from radiant_lens.errors import DataError

Row = Mapping[str, Any]
Places = Iterator[tuple[str, Any]]
"""Rows with their places, such as "line 3"."""

ENDINGS = (".csv", ".json", ".jsonl", ".tsv", ".ndjson", ".parquet", ".txt")
ENDINGS_HINT = (
    "A file must end in .csv, .json or .jsonl (or .tsv, .ndjson, .parquet, or .txt with a prompt on each line); .gz "
    "may follow the ending of a text file."
)
# Key of the fields of a .csv row for which the header has no name.
BEYOND = "(beyond the header)"


class Content(NamedTuple):
    """Rows of a source, and how it was read where that had to be found out, such as "separated by semicolons"."""

    rows: Places
    reading: str = ""


def file_ending(path: Path) -> str:
    """Return the ending that names the format, in lower case and without ".gz": ".jsonl" for "data.JSONL.gz"."""
    return _without_gz(path).suffix.lower()


def file_stem(path: Path) -> str:
    """Return the name of the file without the endings that name its format and compression."""
    return _without_gz(path).stem


def _without_gz(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def file_rows(path: Path) -> Places:
    """Return the rows of a file, as `open_file` does."""
    return open_file(path).rows


def open_file(path: Path) -> Content:
    """Return the rows of a file, with "line 3" (or, in .json and .parquet, "row 3") as their place.

    The place of a .csv row is the line it begins on. A .json file may hold a list of rows, one object of columns, or
    one object a line.

    Raises:
        DataError: no such file, or its content does not fit its ending.
        UnknownNameError: another ending.
    """
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder; give one of its files.")
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}{_near(path)}.")
    ending = file_ending(path)
    _checks.known("data file ending", ending, ENDINGS, hint=ENDINGS_HINT)
    with _errors_of(path, ending):
        if ending == ".parquet":
            return Content(_parquet_rows(path))
        text, encoding = decode(_read_bytes(path))
        rows, layout = _READERS[ending](text, path)
        notes = [*([layout] if layout else []), *([f"encoded in {encoding}"] if encoding else [])]
        return Content(_readable(rows, path, ending), " and ".join(notes))


def _near(path: Path) -> str:
    """Return the file of the same folder whose name is most similar, for a message; else the remedy."""
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    names: list[str] = []
    with suppress(OSError):
        names = [file.name for file in folder.iterdir()]
    near = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; there is {near[0]!r} beside it" if near else "; check its path"


@contextmanager
def _errors_of(path: Path, ending: str) -> Generator[None]:
    """Turn every error of reading a file into a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as {ending}: {error}.") from error


def _readable(rows: Places, path: Path, ending: str) -> Places:
    # Lines of .jsonl are parsed one by one, after `open_file` has returned.
    with _errors_of(path, ending):
        yield from rows


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix.lower() == ".gz" else data


def _parquet_rows(path: Path) -> Places:
    from pyarrow import parquet

    if path.suffix.lower() == ".gz":
        raise ValueError("a .parquet file is compressed already; unpack the .gz")
    return _numbered(parquet.read_table(path).to_pylist())


def _numbered(rows: Sequence[Any]) -> Places:
    return ((f"row {i}", row) for i, row in enumerate(rows, start=1))


def _table_rows(text: str, path: Path) -> tuple[Places, str]:
    lines, note = table_lines(text, file_ending(path))
    header = lines[0][1] if lines else []
    # A dict keeps the last of two columns of one name, so the first would be lost.
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise csv.Error(f"the header names a column twice: {', '.join(map(repr, twice))}")
    return ((f"line {start}", _table_row(header, fields)) for start, fields in lines[1:]), note


def _table_row(header: list[str], fields: list[str]) -> Row:
    row: dict[str, Any] = dict(zip(header, [*fields, *[None] * (len(header) - len(fields))]))
    return {**row, BEYOND: fields[len(header) :]} if len(fields) > len(header) else row


def _text_rows(text: str, path: Path) -> tuple[Places, str]:
    lines = enumerate(text.split("\n"), start=1)
    return ((f"line {i}", {"line": line.rstrip("\r")}) for i, line in lines if line.strip()), ""


def _json_rows(text: str, path: Path) -> tuple[Places, str]:
    try:
        content = parsed(json.loads, text)
    except ValueError:
        # Many published .json files hold one object a line.
        if not _first_line_is_an_object(text):
            raise
        return _jsonl_rows(text, path)
    if isinstance(content, Mapping) and holds_columns(content):
        return _numbered(columns_to_rows(content)), "holds an object of columns"
    return _numbered(content if isinstance(content, list) else [content]), ""


def holds_columns(content: Mapping[str, Any]) -> bool:
    """True if all values are columns: lists of one length, or mappings from the same row numbers."""
    values = list(content.values())
    if values and all(isinstance(value, list | tuple) for value in values):
        return len({len(value) for value in values}) == 1
    # `DataFrame.to_json` writes {"text": {"0": "a", "1": "b"}, ...}. Other keys are the fields of a single row.
    numbers = {tuple(value) if isinstance(value, Mapping) else () for value in values}
    return len(numbers) == 1 and all(str(number).isdigit() for number in next(iter(numbers))) and numbers != {()}


def columns_to_rows(content: Mapping[str, Any]) -> list[Row]:
    """Return the rows of an object of columns."""
    columns = [list(value.values()) if isinstance(value, Mapping) else value for value in content.values()]
    return [dict(zip(content, values)) for values in zip(*columns)]


def _first_line_is_an_object(text: str) -> bool:
    try:
        return isinstance(parsed(json.loads, text.lstrip().split("\n", 1)[0]), dict)
    except ValueError:
        return False


def _jsonl_rows(text: str, path: Path) -> tuple[Places, str]:
    # Some .jsonl files hold one JSON list over many lines; a line that opens it is not valid alone.
    if text.lstrip()[:1] == "[" and text.strip()[-1:] == "]":
        try:
            content = parsed(json.loads, text)
        except ValueError:
            content = None
        if isinstance(content, list) and all(isinstance(row, Mapping) for row in content):
            return _numbered(content), "holds one JSON list"
    return _json_lines(text, path), ""


def _json_lines(text: str, path: Path) -> Places:
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


_READERS: dict[str, Callable[[str, Path], tuple[Places, str]]] = {
    ".csv": _table_rows,
    ".tsv": _table_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".txt": _text_rows,
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
