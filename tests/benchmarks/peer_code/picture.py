"""The figure of the page `results/peers.md`: three panels of bars, one bar for each library."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from benchmarks.peer_code import tables

WIDTH, NAME_WIDTH, PANEL, GAP = 860, 152, 190, 34
TOP, ROW, BAR = 62, 30, 15


class Panel(NamedTuple):
    """Values with their ranges, by name of the bar."""

    title: str
    values: dict[str, tuple[float, float, float]]
    digits: int


def middle_and_range(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def panels(rows: dict[str, Any], work: dict[str, Any]) -> list[Panel]:
    """Speed of capture, speed under edits of all layers, and peak memory of a capture."""
    names = [name for name in tables.NAMES if "seconds" in rows.get(name, {})]
    measured = {name: tables.rates(name, rows, work) for name in names}
    steered = {name: m["gated heads" if name == tables.OURS else "layers"] for name, m in measured.items()}
    peaks = {n: (rows[n]["peaks"]["capture"],) * 3 for n in names if "capture" in rows[n]["peaks"]}
    return [
        Panel("capture, tokens/s", {n: middle_and_range(m["capture"]) for n, m in measured.items()}, 0),
        Panel("speed, all layers edited", {n: middle_and_range(v) for n, v in steered.items()}, 2),
        Panel("peak memory of capture, MiB", peaks, 0),
    ]


def draw(results: dict[str, Any]) -> str:
    """The panels of the first precision that was measured."""
    dtype = next(name for name in ("bfloat16", "float32") if name in results)
    chosen = panels(results[dtype], results["work"] | results[f"work {dtype}"])
    return "\n".join(frame(list(bars(chosen)), len(chosen[0].values), dtype))


def bars(chosen: list[Panel]) -> Iterator[str]:
    for i, name in enumerate(chosen[0].values):
        y = TOP + ROW * i
        kind = "ours" if name == tables.OURS else "peer"
        text = escape(tables.NAMES[name])
        yield f'<text class="{kind}" text-anchor="end" x="{NAME_WIDTH}" y="{y + 12}">{text}</text>'
    for number, panel in enumerate(chosen):
        left = NAME_WIDTH + 14 + number * (PANEL + GAP)
        most = max(high for _, _, high in panel.values.values()) * 1.32
        yield f'<text class="title" x="{left}" y="{TOP - 16}">{escape(panel.title)}</text>'
        for i, name in enumerate(chosen[0].values):
            # A library whose memory was not measured has no bar there.
            if name not in panel.values:
                continue
            middle, low, high = panel.values[name]
            y, kind = TOP + ROW * i, "ours" if name == tables.OURS else "peer"
            width, first, last = (round(value / most * PANEL, 1) for value in (middle, low, high))
            yield f'<rect class="{kind}" x="{left}" y="{y}" width="{width}" height="{BAR}" rx="2"/>'
            if high > low:
                yield f'<path class="range" d="M{left + first} {y + BAR / 2}H{left + last}"/>'
            yield f'<text class="value" x="{left + last + 6}" y="{y + 12}">{middle:,.{panel.digits}f}</text>'


def frame(parts: list[str], n_rows: int, dtype: str) -> Iterator[str]:
    """The lines of the picture."""
    height = TOP + ROW * n_rows + 14
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" {font}>'
    yield f"<title>Speed and memory of seven ways to read and edit activations, in {dtype}</title><style>"
    yield ".panel { fill: #fff; stroke: #d0d7de; } text { fill: #59636e; } text.title { font-weight: 600; }"
    yield "rect.peer { fill: #8c959f; } rect.ours { fill: #0757b8; } text.ours { fill: #0757b8; font-weight: 600; }"
    yield ".range { fill: none; stroke: #1f2328; stroke-width: 1.5; }"
    yield "@media (prefers-color-scheme: dark) { .panel { fill: #0d1117; stroke: #3d444d; } text { fill: #9198a1; }"
    yield "rect.peer { fill: #656c76; } rect.ours { fill: #58a6ff; } text.ours { fill: #58a6ff; }"
    yield ".range { stroke: #f0f6fc; } }</style>"
    yield f'<rect class="panel" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>'
    yield f'<text x="16" y="24">SmolLM2-135M-Instruct, {dtype}, one thread; lines show the range over turns</text>'
    yield from parts
    yield "</svg>\n"
