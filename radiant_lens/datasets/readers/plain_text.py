"""Text of data files: how it is encoded and, in a table, separated; both are found out from the content."""

from __future__ import annotations

import csv
import io
import re

USUAL = {".csv": ",", ".tsv": "\t"}
"""The separator that the ending of a file names."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
# Rows and characters from which a separator is told.
_SAMPLE_ROWS, _SAMPLE = 50, 200_000

Lines = list[tuple[int, list[str]]]
"""Fields of each row of a table, with the number of the line on which the row begins."""


def decode(data: bytes) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding, "" for UTF-8.

    UTF-8, UTF-16 and Windows-1252 are told apart. Other encodings look like Windows-1252 and cannot be recognised;
    `Dataset.reading` therefore names every encoding but UTF-8.

    Raises:
        ValueError: none of them fits.
    """
    if encoding := _utf16(data):
        text, name = data.decode(encoding), "UTF-16"
    else:
        # "utf-8-sig": spreadsheets begin their files with a byte order mark.
        try:
            text, name = data.decode("utf-8-sig"), ""
        except UnicodeDecodeError as error:
            text, name = _decode_windows(data, error), "Windows-1252"
    if "\0" in text:
        raise ValueError("it holds null characters, so it is no text file")
    return text, name


def _utf16(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # Without a byte order mark: every other byte of Latin text is zero.
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        half = data[first : 400 + first : 2]
        if len(data) > 1 and len(data) % 2 == 0 and half.count(0) > 0.8 * len(half):
            return encoding
    return ""


def _decode_windows(data: bytes, error: UnicodeDecodeError) -> str:
    # A damaged byte in a UTF-8 file would make nonsense of all its other letters: only a file that holds no more
    # sequences of UTF-8 than a few that arise by chance is read as Windows-1252.
    n_high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    n_utf8 = sum(map(len, _MULTIBYTE.findall(data)))
    if n_utf8 <= 0.1 * n_high:
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            pass
    line = data.count(b"\n", 0, error.start) + 1
    raise ValueError(f"line {line} is not valid UTF-8 ({error.reason}); save the file as UTF-8")


def table_lines(text: str, ending: str) -> tuple[Lines, str]:
    """Return the rows of a table, the header first, and what was found out about it ("" if it is as its ending says).

    Raises:
        csv.Error: a quote is never closed, or a field is too long.
    """
    separator = find_separator(text, USUAL[ending])
    note = "" if separator == USUAL[ending] else f"separated by {_SEPARATORS[separator]}"
    try:
        lines = _rows(text, separator, strict=True)
    except csv.Error as error:
        if "field limit" in str(error):
            raise csv.Error(f"a field has more than {csv.field_size_limit()} characters; use .jsonl") from error
        if "unexpected end" in str(error) and separator != "\t":
            raise csv.Error("a quote is never closed, so the rows after it would be lost") from error
        lines = []
    if separator == "\t" and (not _even(lines) or _spans_lines(lines)):
        # Tables separated by tabs are often written without any quoting; a quote is a character of the text then. Rows
        # of one length show this: a field that is really quoted and holds a line break gives rows of other lengths.
        plain = _rows(text, separator, quotes=False)
        if _even(plain):
            return plain, note
    return lines or _rows(text, separator), note


def _rows(text: str, separator: str, *, strict: bool = False, quotes: bool = True) -> Lines:
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict, quoting=quoting)
    rows: Lines = []
    end = 0
    for fields in reader:
        # `line_num` counts the lines read so far, so a row of several lines begins after the end of the row before.
        start, end = end + 1, reader.line_num
        if fields:
            rows.append((start, fields))
    return rows


def _even(rows: Lines) -> bool:
    return len({len(fields) for _, fields in rows}) == 1


def _spans_lines(rows: Lines) -> bool:
    return any("\n" in field for _, fields in rows for field in fields)


def find_separator(text: str, usual: str) -> str:
    r"""Return the separator by which the header has several columns and most rows have as many fields.

    Example:
        >>> find_separator("text;label\na, b;1\n", ",")
        ';'
    """

    def fit(separator: str) -> tuple[bool, float, int, bool]:
        sample = io.StringIO(text[:_SAMPLE], newline="")
        reader = csv.reader(sample, delimiter=separator)
        rows: list[list[str]] = []
        try:
            for fields in reader:
                if fields:
                    rows.append(fields)
                if len(rows) > _SAMPLE_ROWS:
                    break
        except csv.Error:
            pass
        width = len(rows[0]) if rows else 0
        share = sum(len(fields) == width for fields in rows) / max(len(rows), 1)
        return width > 1, share, width, separator == usual

    # Of equal ones the first counts: the usual separator.
    return max([usual, *_SEPARATORS], key=fit)
