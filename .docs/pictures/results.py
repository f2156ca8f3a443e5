"""The chart of README's first results: gain against tested KL, with the intervals.

python .docs/pictures/results.py    write pages/assets/results.svg from what `radiant-lens bench ... --json` printed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / ".docs" / "pages" / "assets" / "results.svg"
RESULTS = ROOT / ".docs" / "results" / "truthfulqa-smollm2.json"
WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 200, 24, 56
LIGHT = ("#0757b8", "#c25100", "#59636e", "#1a7f37", "#8250df", "#9a6700")
DARK = ("#58a6ff", "#f0883e", "#9198a1", "#3fb950", "#bc8cff", "#d29922")


Place = Callable[[float, float], tuple[float, float]]


class Point(NamedTuple):
    """One row of the table: a steering at a budget."""

    name: str
    kl: float
    gain: float
    low: float
    high: float


def read_points(file: Path = RESULTS) -> list[Point]:
    """Read the rows of steerings on the task itself."""
    content = json.loads(file.read_text())
    rows = [row for row in content["rows"] if row["data"] == content["settings"]["data"] and row["budget"] is not None]
    return [Point(row["arm"], row["kl"], *(row["gain"][key] for key in ("value", "low", "high"))) for row in rows]


def draw(points: list[Point], label: str) -> str:
    """Draw a line for each steering, the largest gain first in the legend."""
    most_kl, most = max(p.kl for p in points) * 1.08, max(p.high for p in points) * 1.08
    least = min(0.0, *(p.low for p in points))

    def place(kl: float, gain: float) -> tuple[float, float]:
        x = LEFT + kl / most_kl * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - (gain - least) / (most - least) * (HEIGHT - TOP - BOTTOM), 1)

    by_name = {name: list(rows) for name, rows in groupby(sorted(points), lambda p: p.name)}
    parts = list(axes(place, most_kl, most, label))
    names = sorted(by_name, key=lambda name: -by_name[name][-1].gain)
    # Names stand right of all points, each below the one before: ends that meet would write one over the other.
    right, free = place(most_kl / 1.08, 0)[0] + 7 * len(names) + 8, 0.0
    for i, name in enumerate(names):
        # Intervals at one KL would hide each other, so each steering is moved aside a little.
        aside = 7 * (i - (len(names) - 1) / 2)
        places = [(round(x + aside, 1), y) for x, y in (place(p.kl, p.gain) for p in by_name[name])]
        parts.append(f'<path class="line c{i}" d="M{" L".join(f"{x} {y}" for x, y in [place(0, 0), *places])}"/>')
        for point, (x, y) in zip(by_name[name], places):
            low, high = place(point.kl, point.low)[1], place(point.kl, point.high)[1]
            parts.append(f'<path class="bar c{i}" d="M{x} {low}V{high}"/>')
            parts.append(f'<circle class="dot c{i}" cx="{x}" cy="{y}" r="4.5"/>')
        free = max(free, places[-1][1] + 5)
        parts.append(f'<text class="name c{i}" x="{right:.1f}" y="{free:.1f}">{escape(name)}</text>')
        free += 18
    return "\n".join(frame(parts))


def axes(
    place: Callable[[float, float], tuple[float, float]], most_kl: float, most: float, label: str
) -> Iterator[str]:
    """Axes with a few round values; both hold zero, which means no change."""
    text = '<text class="tick" text-anchor="{}" transform="translate({} {}) rotate({})">{}</text>'
    for gain in ticks(most):
        x, y = place(0, gain)
        yield f'<path class="grid" d="M{x} {y}H{WIDTH - RIGHT}"/>'
        yield text.format("end", x - 8, y + 5, 0, f"{gain:g}")
    for kl in ticks(most_kl):
        yield text.format("middle", place(kl, 0)[0], HEIGHT - BOTTOM + 22, 0, f"{kl:g}")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    yield text.format("middle", middle, HEIGHT - 10, 0, "KL on desirable text, nats a token")
    yield text.format("middle", 20, HEIGHT / 2, -90, escape(label))


def ticks(most: float) -> list[float]:
    """At most seven round values from zero on."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if most / s <= 6)
    return [i * step for i in range(int(most / step) + 1)]


def frame(parts: list[str]) -> Iterator[str]:
    """The lines of the picture."""
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"14\""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {font}>'
    yield "<title>Gain against KL for each steering, with 95% intervals</title><style>"
    yield ".name { font-weight: 600; } .line, .bar { fill: none; stroke-width: 2; } .line { stroke-opacity: .5; }"
    yield ".panel { fill: #fff; stroke: #d0d7de; } .tick { fill: #59636e; } .grid { stroke: #d8dee4; }"
    yield from colours(LIGHT)
    yield "@media (prefers-color-scheme: dark) {"
    yield ".panel { fill: #0d1117; stroke: #3d444d; } .tick { fill: #9198a1; } .grid { stroke: #3d444d; }"
    yield from colours(DARK)
    yield "}</style>"
    yield f'<rect class="panel" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>'
    yield from parts
    yield "</svg>\n"


def colours(palette: tuple[str, ...]) -> Iterator[str]:
    """Rules for the steerings, in their order."""
    for i, colour in enumerate(palette):
        yield f".line.c{i}, .bar.c{i} {{ stroke: {colour}; }} .dot.c{i}, .name.c{i} {{ fill: {colour}; }}"


if __name__ == "__main__":
    PICTURE.write_text(draw(read_points(), "gain of MC2"))
