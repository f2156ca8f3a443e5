"""Rows of objects in memory: tables of pandas and Hugging Face, lists of mappings or of pairs, mappings of columns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers.rows import Content, Places, Row, columns_to_rows, holds_columns
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import InvalidArgumentError

ALLOWED = (
    "a name, a file, a pandas DataFrame, a Hugging Face Dataset, a list of dicts or of (text, label) pairs, or a dict "
    "of columns"
)
"""What `load_dataset` takes, for messages."""


def open_object(source: object, *, labels_are_words: bool) -> Content:
    """Return the rows of an object in memory, with "row 3" (counted from 1) as their place.

    Args:
        source: a pandas DataFrame, a Hugging Face `Dataset` or `IterableDataset`, a list of mappings from column to
            value, a list of (text, label) pairs, or a mapping from column to list of values.
        labels_are_words: the caller has named labels, so the second text of a pair is a label.

    Raises:
        InvalidArgumentError: another object; the message names its type, never its content.
    """
    if _is_of("pandas", ("DataFrame",), source):
        return Content(_numbered(_frame_rows(source)))
    if _is_of("datasets", ("Dataset", "IterableDataset"), source):
        return Content(_numbered(_hub_rows(source)))
    if isinstance(source, Mapping) and source and holds_columns(source):
        return Content(_numbered(columns_to_rows(source)))
    if isinstance(source, list | tuple) and source:
        if all(isinstance(row, Mapping) for row in source):
            return Content(_numbered(source))
        if all(_is_pair(row) for row in source):
            return Content(_numbered(_pair_rows(source, labels_are_words)))
    raise InvalidArgumentError(_refusal(source))


def _is_of(package: str, names: Sequence[str], source: object) -> bool:
    # An object of a package exists only if the package has been imported, so that nothing is imported here.
    module = sys.modules.get(package)
    return any(isinstance(source, kind) for name in names if isinstance(kind := getattr(module, name, None), type))


def _frame_rows(frame: Any) -> Iterator[Row]:
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgumentError(
            f"The DataFrame has several columns of one name, {', '.join(map(repr, twice))}; rename them."
        )
    return (dict(zip(names, values)) for values in frame.itertuples(index=False, name=None))


def _hub_rows(table: Any) -> Iterator[Row]:
    # Formats such as "torch" would make tensors of labels. Class labels are numbers whose meaning is in their names:
    # the sense of a label is never guessed from its number.
    classes = {name: feature.int2str for name, feature in (table.features or {}).items() if hasattr(feature, "int2str")}
    for row in table.with_format(None):
        named = {name: to_text(row[name]) for name, to_text in classes.items() if _is_class(row[name])}
        yield {**row, **named}


def _is_class(value: object) -> bool:
    # -1 marks a row without a label.
    return isinstance(value, int) and value >= 0


def _is_pair(row: object) -> bool:
    return isinstance(row, list | tuple) and len(row) == 2 and isinstance(row[0], str)


def _pair_rows(pairs: Iterable[Sequence[Any]], labels_are_words: bool) -> list[Row]:
    rows: list[Row] = [{"text": text, "label": label} for text, label in pairs]
    if not labels_are_words and any(isinstance(row["label"], str) for row in rows):
        raise InvalidArgumentError(
            "Pairs of two texts may be a text with its label or a desirable text with an undesirable one: name the "
            "undesirable labels by `undesirable=`, or give contrastive pairs as {'chosen': ..., 'rejected': ...}."
        )
    return rows


def _numbered(rows: Iterable[Row]) -> Places:
    return ((f"row {i}", {str(name): plain(value) for name, value in row.items()}) for i, row in enumerate(rows, 1))


def plain(value: Any) -> Any:
    """Return a value without types of NumPy, pandas and torch: text, numbers, None, lists and mappings of these.

    Example:
        >>> import numpy as np
        >>> plain(np.array(["a", "b"]))
        ['a', 'b']
    """
    if isinstance(value, str | int | float) and type(value).__module__ == "builtins":
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    to_list = getattr(value, "tolist", None)
    value = to_list() if callable(to_list) else value
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refusal(source: object) -> str:
    kind = type(source).__name__
    if isinstance(source, Mapping) and _is_of("datasets", ("DatasetDict", "IterableDatasetDict"), source):
        splits = ", ".join(map(repr, source))
        return f"`source` is a {kind} with the splits {splits}; give one of them, such as data[{next(iter(source))!r}]."
    if isinstance(source, Mapping):
        return f"`source` is a {kind} whose values are not lists of one length; it must be {ALLOWED}."
    if isinstance(source, list | tuple):
        return f"`source` must be {ALLOWED}; {_fault_of_list(source)}."
    hint = ": list(...) makes a list of it" if isinstance(source, Iterator) else ""
    hint = ": its `.to_pandas()` makes a DataFrame" if hasattr(source, "to_pandas") else hint
    hint = ", which is loaded already: use it as it is" if isinstance(source, Dataset) else hint
    return f"`source` must be {ALLOWED}; got {_with_article(kind)}{hint}."


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}"


def _fault_of_list(rows: Sequence[Any]) -> str:
    if not rows:
        return "the list is empty"
    if all(isinstance(row, Statement | Prompt) for row in rows):
        return "the list holds records, which need no loading: give them to radiant_lens.Dataset(name, statements)"
    if all(isinstance(row, str) for row in rows):
        return "the list holds texts without labels"
    others = [(i, row) for i, row in enumerate(rows, 1) if not (isinstance(row, Mapping) or _is_pair(row))]
    return (
        f"row {others[0][0]} of the list is {_with_article(type(others[0][1]).__name__)}"
        if others
        else "the list mixes both"
    )
