"""Output of the command line: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from radiant_lens.distributed import launched

# Texts of others may hold "[bold]" or ":smile:", which must be printed as they are.
console = Console(markup=False, emoji=False)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table with the keys of the first row as its columns."""
    drawn = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        # Folded, not cut: answers and reasons are read whole.
        drawn.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row.values()))
    texts = [[str(column.header), *map(str, column.cells)] for column in drawn.columns]
    # A border and a space on each side of every column, and the last border.
    for column, width in zip(drawn.columns, fit_widths(texts, console.width - 3 * len(texts) - 1)):
        column.width = width
    return drawn


def fit_widths(columns: Sequence[Sequence[str]], space: int) -> list[int | None]:
    """Widths at which no word of a table is broken, where there is such a choice.

    Args:
        columns: texts of each column, with its header.
        space: characters of all columns together.

    Returns:
        Widths that fill the space, of which every column gets at least its longest word; None for every column where
        the table fits as it is, or where its words alone do not fit.

    Example:
        >>> fit_widths([["one two three", "four"], ["five"]], 12)
        [8, 4]
    """
    longest = [max(map(len, texts)) for texts in columns]
    widths = [max((len(word) for text in texts for word in text.split()), default=1) for texts in columns]
    if sum(longest) <= space or sum(widths) > space:
        return [None] * len(columns)
    for _ in range(space - sum(widths)):
        # To the column whose longest text is broken into the most lines.
        i = max(range(len(columns)), key=lambda i: longest[i] / widths[i] if longest[i] > widths[i] else 0.0)
        widths[i] += 1
    return list(widths)


def _cell(value: Any) -> str:
    # What is not a number has no digits; a note in the same row says why.
    return str(value) if not isinstance(value, float) else f"{value:.3f}" if math.isfinite(value) else "-"


def emit(result: Mapping[str, Any], *, as_json: bool, shown: list[Any]) -> None:
    """Print one JSON object, or tables and texts for people; of several ranks only the first prints."""
    if launched().number > 0:
        return
    if as_json:
        typer.echo(json.dumps(_finite(result), ensure_ascii=False, default=str))
        return
    for item in shown:
        # Without `soft_wrap` rich would break lines of Markdown, and its tables with them.
        console.print(item, soft_wrap=isinstance(item, str))


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which are not JSON, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    # Named tuples, before tuples: their fields are names of the JSON object.
    as_mapping = getattr(value, "_asdict", None)
    if as_mapping is not None:
        return _finite(as_mapping())
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
