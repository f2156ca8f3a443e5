"""Small pictures of a card: a value for each head, and tokens with marks."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from radiant_lens.notebook.html import Fragment

_BLUE = "0, 114, 178"
_SIDE = 12
# Width of a picture in pixels at most; the cells of wide models are narrower.
_WIDTH = 480
MOST_TOKENS = 200


def head_map(values: Sequence[Sequence[float]], meaning: str, *, graded: bool = True) -> Fragment:
    """Return a picture with a row for each layer and a cell for each head; more is darker.

    Args:
        values: from 0; of each layer and head. Cells of values that are not finite stay empty.
        meaning: of a value, below the picture; a cell's own value is shown where the pointer is.
        graded: the values are amounts; False for marks, which are 0 or 1.
    """
    largest = max((v for row in values for v in row if math.isfinite(v)), default=0.0) or 1.0
    n_heads = max(map(len, values), default=0)
    width = max(2, min(_SIDE, _WIDTH // max(n_heads, 1)))
    height = max(2, min(_SIDE, _WIDTH // max(len(values), 1)))
    cells = [
        f'<rect x="{head * width}" y="{layer * height}" width="{width}" height="{height}" '
        f'fill="rgba({_BLUE}, {v / largest:.2f})"><title>L{layer}H{head} {v:.3g}</title></rect>'
        for layer, row in enumerate(values)
        for head, v in enumerate(row)
        if math.isfinite(v)
    ]
    size = f'width="{n_heads * width}" height="{len(values) * height}"'
    scale = f"; darker is more, up to {largest:.3g}" if graded else ""
    words = f"{meaning}; rows are layers from the first on, columns heads{scale}"
    return Fragment(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" style="outline: 1px solid rgba(127, 127, 127, .5)">'
        f"{''.join(cells)}</svg><div>{html.escape(words)}.</div>"
    )


def marked_tokens(tokens: Sequence[str], marks: Sequence[float], meaning: str) -> Fragment:
    """Return tokens as one text, those with a larger mark on a darker ground.

    Args:
        tokens: as decoded; of more than 200 the last are shown.
        marks: one for each token, from 0.
        meaning: of a mark, below the text.
    """
    largest = max(marks, default=0.0) or 1.0
    pieces = [
        f'<span style="margin-right: 3px; background: rgba({_BLUE}, {0.6 * mark / largest:.2f})" title="{mark:.3g}">'
        f"{html.escape(token)}</span>"
        for token, mark in list(zip(tokens, marks))[-MOST_TOKENS:]
    ]
    cut = "... " if len(tokens) > MOST_TOKENS else ""
    return Fragment(
        f'<div style="white-space: pre-wrap">{cut}{"".join(pieces)}</div><div>{html.escape(meaning)}.</div>'
    )
