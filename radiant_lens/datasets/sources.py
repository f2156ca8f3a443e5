"""Sources of rows and their formats: a published data set by name, a file, or an object in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.packaged import PACKAGED
from radiant_lens.datasets.readers.columns import Columns
from radiant_lens.datasets.readers.memory import ALLOWED, open_object
from radiant_lens.datasets.readers.published import (
    FORMATS,
    PUBLISHED,
    Published,
    check_format,
    match_format,
    refuse_columns,
)
from radiant_lens.datasets.readers.rows import (
    ENDINGS,
    ENDINGS_HINT,
    Content,
    Places,
    file_ending,
    file_stem,
    hub_rows,
    open_file,
)
from radiant_lens.errors import DataError, InvalidArgumentError

_HUB_HINT = (
    "A data set of the Hub that is not among them is given as datasets.load_dataset(name, split='train'), a file by "
    "its ending, such as .csv, .json or .jsonl."
)
# Texts with a longer part are no paths: file systems allow names of 255 bytes.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        name: name in messages, such as "mine.csv".
        title: name of the data set.
        rows: rows with their places.
        format: a key of `FORMATS`.
        named: our names of columns to the source's, as the caller gave them.
        period: see the notes on TruthfulQA in `readers.published`.
        reading: how a file was read, where that had to be found out.
    """

    name: str
    title: str
    rows: Places
    format: str
    named: Columns
    period: bool = False
    reading: str = ""


def open_source(
    source: object, path: str | Path | None, format: str | None, named: Columns, *, labels_are_words: bool
) -> Source:
    """Open a source and read its first row, so that a wrong option is refused before the other rows are read.

    Args:
        source, path, format: as `load_dataset` takes them; `source` is no data set of the package.
        named: our names of columns to the source's.
        labels_are_words: the caller has named labels, so the second text of a pair is a label.

    Raises:
        UnknownNameError: no such data set, ending or format.
        InvalidArgumentError: an object that holds no rows, or a `path` without a published data set.
        DataError: the source cannot be read, or has no rows.
    """
    published = PUBLISHED.get(source) if isinstance(source, str) else None
    if path is not None:
        _checks.instance("path", path, (str, Path))
    if published is None and path is not None:
        raise InvalidArgumentError(
            f"`path` is the file of a published data set ({', '.join(map(repr, PUBLISHED))}) and cannot be given with "
            f"a file or an object; got {str(path)!r}: leave it out."
        )
    if format is not None:
        check_format(format, published, local=published is None or path is not None)
    name, title, content = _open_rows(source, published, path, format, labels_are_words)
    first = next(content.rows, None)
    if first is None:
        raise DataError(f"{name} has no rows.")
    allowed = FORMATS if published is None else published.formats
    format = format or _detect(first[1], allowed, named, name)
    period = published is not None and published.period
    return Source(name, title, chain([first], content.rows), format, named, period, content.reading)


def _open_rows(
    source: object, published: Published | None, path: str | Path | None, format: str | None, labels_are_words: bool
) -> tuple[str, str, Content]:
    """Return the name in messages, the title, and the rows."""
    if not isinstance(source, str | Path):
        return f"the {type(source).__name__}", "data", open_object(source, labels_are_words=labels_are_words)
    if published is None:
        if "\n" in str(source) or any(len(part) > _LONGEST_NAME for part in str(source).split("/")):
            raise InvalidArgumentError(
                f"`source` must be {ALLOWED}; got a text of {len(str(source))} characters that begins with "
                f"{str(source)[:40]!r}: write it to a file first."
            )
        file = Path(source).expanduser()
        if "://" in str(source):
            raise InvalidArgumentError(
                f"`source` must not be an address; download {str(source)!r:.80} and give the file."
            )
        if file_ending(file) not in ENDINGS and not (file.is_dir() and str(source)):
            hint = _HUB_HINT if str(source).count("/") == 1 else ENDINGS_HINT
            _checks.known("data set", str(source), [*PACKAGED, *PUBLISHED], hint=hint)
        return file.name, file_stem(file), open_file(file)
    if path is not None:
        file = Path(path).expanduser()
        return file.name, str(source), open_file(file)
    config = (format or published.configs[0]) if published.configs else None
    return published.repository, str(source), Content(hub_rows(published.repository, config, published.split))


def _detect(row: Any, allowed: Collection[str], named: Columns, source: str) -> str:
    """Return the format by the columns of the first row."""
    names = list(row) if isinstance(row, Mapping) else []
    absent = [theirs for theirs in named.values() if isinstance(theirs, str) and theirs not in names]
    renamed = [ours for ours, theirs in named.items() if not isinstance(theirs, str) or theirs in names]
    format = match_format([*names, *renamed], allowed)
    if format is None and names and absent:
        raise DataError(f"{source} has no column {absent[0]!r}; there are: {', '.join(names):.200}.")
    if format is None:
        refuse_columns([*names, *renamed], allowed, source)
    return format or "records"
