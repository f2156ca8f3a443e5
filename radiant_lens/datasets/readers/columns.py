"""Columns of a row: their names, and the values read from them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.readers.rows import BEYOND, Row
from radiant_lens.errors import DataError, InvalidArgumentError

# Our name of a column to the file's; a label may be made of several.
Columns = Mapping[str, str | Sequence[str]]
NAMES = (
    "text", "label", "group", "answer_start", "question", "prompt", "joint", "condition",
    "correct_answers", "incorrect_answers", "best_answer", "best_incorrect_answer", "mc1_incorrect", "rendered",
    "messages", "chosen", "rejected", "positive", "negative", "completion", "choices", "answer",
)  # fmt: skip
# Columns of several answers. Only under these names of a file a text is cut at "; ", as TruthfulQA's csv writes lists;
# under any other name it is one answer, which may hold a semicolon itself.
ANSWER_LISTS = ("correct_answers", "incorrect_answers", "mc1_incorrect")
_CUT_NAMES = (*ANSWER_LISTS, "Correct Answers", "Incorrect Answers")
_HOW_TO_WRITE = 'write lists as JSON, such as ["one", "two"]'
_LIST_TEXT = re.compile(r"""\s*(\[.*\]|[({]\s*['"].*[)}]|array\(.*\))\s*""", re.DOTALL)
_CHAT_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")


def check_columns(columns: object) -> None:
    """Check that only known columns are named, and that only labels and lists of answers are made of several.

    Raises:
        InvalidArgumentError: no mapping, or a name that is no text.
        UnknownNameError: a column that nothing reads.
        DataError: several columns for one that must be a single column.
    """
    if not isinstance(columns, Mapping):
        raise InvalidArgumentError(
            f"`columns` must map our names to those of the source, such as {{'text': 'sentence'}}; got {columns!r:.60}."
        )
    for ours, theirs in columns.items():
        reversed_ = isinstance(theirs, str) and theirs in NAMES and ours not in NAMES
        hint = (
            f"`columns` maps our names to those of the source, so perhaps {{{theirs!r}: {ours!r}}}."
            if reversed_
            else ""
        )
        _checks.known("column", str(ours), NAMES, hint=hint)
        several = isinstance(theirs, list | tuple) and theirs and all(isinstance(name, str) for name in theirs)
        if not isinstance(theirs, str) and not several:
            raise InvalidArgumentError(f"`columns` must give {ours!r} the name of a column; got {theirs!r:.60}.")
        if several and ours not in ("label", *ANSWER_LISTS):
            raise DataError(
                "Only 'label', 'correct_answers' and 'incorrect_answers' can be made of several columns; got "
                f"{theirs!r} for {ours!r}."
            )


class Several(dict[str, Any]):
    """Values of several label columns by their names; the label is 1 if any of them is."""


def rename(row: Any, columns: Columns) -> Row:
    """Return the row under our names.

    Raises:
        DataError: no row of named columns, or a label column is missing.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row must hold named columns; got {_checks.shown(row)}.")
    if BEYOND in row:
        raise DataError(f"the row has {len(row[BEYOND])} more fields than the header.")
    used = {name for theirs in columns.values() for name in ([theirs] if isinstance(theirs, str) else theirs)}
    # A column is no longer read under its old name: a text in the column `prompt` is no prompt if it is named `text`.
    renamed = {name: value for name, value in row.items() if name not in used}
    for ours, theirs in columns.items():
        if not isinstance(theirs, str):
            require(row, theirs)
            values = {name: row[name] for name in theirs}
            renamed[ours] = Several(values) if ours == "label" else _each_one_answer(values)
        elif theirs in row:
            # The reader no longer sees the file's name, so whether a text is cut is decided here.
            uncut = ours in ANSWER_LISTS and theirs not in _CUT_NAMES and isinstance(row[theirs], str)
            renamed[ours] = _uncut(row[theirs], theirs) if uncut else row[theirs]
    return renamed


def _each_one_answer(values: Row) -> list[str]:
    """Return the answers of several columns, each of which holds one; missing ones are left out."""
    return [one_answer(values, name) for name in values if not is_missing(values[name])]


def _uncut(value: str, name: str) -> list[str]:
    listed = read_list(value, name)
    return [value] if listed is None else listed


def require(row: Row, names: Sequence[str], *, hint: str = "") -> None:
    """Check that the row has these columns.

    Raises:
        DataError: it has not.
    """
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(
            f"missing column {' and '.join(map(repr, missing))} (there are: {', '.join(map(str, row))})"
            f"{'; ' + hint if hint else ''}."
        )


def is_missing(value: Any) -> bool:
    """True for None, an empty text and NaN, which is how tables write a missing value."""
    return value is None or (isinstance(value, str) and value == "") or (isinstance(value, float) and value != value)


def flag(row: Row, name: str) -> bool:
    """Read a column that holds true or false, in any usual form; missing is false."""
    value = row.get(name)
    word = "false" if is_missing(value) else str(value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise DataError(f"`{name}` must be true or false; got {value!r}.")
    return word in ("true", "1")


def text(row: Row, name: str, default: str = "") -> str:
    """Read a column of text; `default` if it is missing.

    Raises:
        DataError: the value is no text, or a chat written as text.
    """
    value = row.get(name)
    if is_missing(value):
        return default
    if not isinstance(value, str):
        raise DataError(f"`{name}` must be text; got {_briefly(value)}.")
    if _CHAT_TEXT.match(value):
        raise DataError(
            f"`{name}` must be text; got the turns of a chat written as text, {_briefly(value)}: give them as a list "
            "in a .jsonl file, in the column 'messages'."
        )
    return value


def one_answer(row: Row, name: str) -> str:
    """Read a column that holds one answer; "" if it is missing.

    Raises:
        DataError: the value is no text, or a list written as text.
    """
    value = text(row, name)
    # Text in brackets that is no list of strings, such as "[laughs]", may be an answer.
    if _LIST_TEXT.fullmatch(value) and _parse_list(value):
        raise DataError(f"`{name}` must be one answer; got the list {_briefly(value)}.")
    return value


def identifier(row: Row, name: str, default: str = "") -> str:
    """Read a column of names, such as a group; a number (0 included) is a name, too.

    Raises:
        DataError: the value is a list or another object.
    """
    value = row.get(name)
    if is_missing(value):
        return default
    if not isinstance(value, str | int | float):
        raise DataError(f"`{name}` must be text or a number; got {_briefly(value)}.")
    return str(value)


def answers(row: Row, name: str) -> tuple[str, ...]:
    """Read a list of strings: a list, its text, or a text with "; " between answers; a final mark separates nothing.

    Raises:
        DataError: the value is no such list.
    """
    value = row[name]
    if is_missing(value):
        return ()
    listed = value
    if isinstance(value, str):
        listed = read_list(value, name)
        if listed is None:
            listed = [piece.rstrip("; ") for piece in value.split("; ")]
    if not isinstance(listed, list | tuple) or not all(isinstance(answer, str) for answer in listed):
        raise DataError(f"`{name}` must be a list of strings or a string separated by '; '; got {_briefly(value)}.")
    return tuple(answer.strip() for answer in listed if answer.strip())


def read_list(value: str, name: str) -> list[str] | None:
    """Read a list that is written as text, by JSON, Python or NumPy; None if the text is no list.

    Raises:
        DataError: the text looks like a list but cannot be read as one.
    """
    if not _LIST_TEXT.fullmatch(value):
        return None
    items = _parse_list(value)
    if items is None:
        raise DataError(f"`{name}` looks like a list but cannot be read as one, {_briefly(value)}; {_HOW_TO_WRITE}.")
    return items


def _parse_list(value: str) -> list[str] | None:
    try:
        items: Any = json.loads(value)
    except (ValueError, RecursionError):
        items = _python_list(value)
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else None


def _python_list(value: str) -> list[str] | None:
    """Read strings between brackets, one by one; None if anything else is among them.

    `ast.literal_eval` of the whole text would join NumPy's "['a' 'b']" to one string, as Python joins literals.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(value.strip()).readline))
        strings = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    # Layout tokens come from line breaks, which NumPy writes into long arrays; its "..." marks answers left out.
    layout = (tokenize.STRING, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    others = "".join(token.string for token in tokens if token.type not in layout)
    return strings if re.fullmatch(r"[\[({],*[\])}]", others) else None


def whole_number(row: Row, name: str, below: int) -> int:
    """Read a column that holds a whole number in [0, below)."""
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
    """Read a column that holds a score in [0, 1]; None if it is missing."""
    value = row.get(name)
    if is_missing(value):
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise DataError(f"`{name}` must lie in [0, 1]; got {value!r}.")
    return float(value)


def _briefly(value: Any) -> str:
    return f"{value!r:.80}"
