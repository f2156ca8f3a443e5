"""The card of an object: HTML of a heading, lines of text, and at most one table or picture.

Styles stand in the elements themselves, because notebooks strip scripts and style sheets from outputs that they do not
trust. Colours are those of the notebook's own theme, so that a card is readable on white and on black.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 8
LONGEST = 120
"""Characters of a cell of a table that are shown."""

_CELL = "padding: 2px 8px; vertical-align: top; text-align: "


class Fragment(str):
    """HTML that holds no unescaped text of others."""

    __slots__ = ()


def card(heading: str, *parts: str) -> str:
    """Return the HTML of a card.

    Args:
        heading: of the card; escaped.
        parts: lines of text, which are escaped, and `Fragment`s, which are not; empty ones are left out.

    Example:
        >>> card("Trace", "2 < 3")
        '<div><strong>Trace</strong><div>2 &lt; 3</div></div>'
    """
    body = "".join(part if isinstance(part, Fragment) else f"<div>{html.escape(part)}</div>" for part in parts if part)
    return f"<div><strong>{html.escape(heading)}</strong>{body}</div>"


def html_table(rows: Sequence[Mapping[Any, Any]], *, most: int = MOST_ROWS, note: str = "") -> Fragment:
    """Return a table with the keys of the first row as its columns; no rows give no table.

    Args:
        rows: values by column.
        most: rows to show; a last line counts the others.
        note: where all rows are to be had, for that last line.
    """
    if not rows:
        return Fragment()
    numeric = {column for column, value in rows[0].items() if isinstance(value, (int, float))}
    lines = [_line("th", list(rows[0]), numeric, rows[0])]
    lines += [_line("td", list(row.values()), numeric, row) for row in rows[:most]]
    more = f"<div>... and {len(rows) - most} more{html.escape(note)}.</div>" if len(rows) > most else ""
    return Fragment(f'<table style="border-collapse: collapse">{"".join(lines)}</table>{more}')


def _line(element: str, values: Sequence[Any], numeric: set[Any], row: Mapping[Any, Any]) -> str:
    cells = [
        f'<{element} style="{_CELL}{"right" if column in numeric else "left"}">{html.escape(_text(value))}</{element}>'
        for column, value in zip(row, values)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "-"
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
