"""Every code block of the documentation runs on the embedded model, or says in its title that it is not run."""

from __future__ import annotations

import ast
import re
import shlex
import traceback
from pathlib import Path
from typing import NamedTuple

PAGES = Path(__file__).parents[2] / ".docs" / "pages"
FENCE = re.compile(r"^```(python|sh)(.*)\n((?:.*\n)*?)```$", re.M)
FIRST = "quickstart.md"


class Block(NamedTuple):
    """A block of code: where it stands, its language and text, and whether it is to be run."""

    place: str
    language: str
    code: str
    runs: bool


def read_blocks(path: Path) -> list[Block]:
    text = path.read_text()
    blocks = []
    for match in FENCE.finditer(text):
        language, options, code = match.groups()
        assert options == "" or re.fullmatch(r' title="Not run: [^"]+"', options), f"{path.name}: {options}"
        place = f"{path.relative_to(PAGES)}:{text[: match.start()].count(chr(10)) + 1}"
        blocks.append(Block(place, language, code, not options))
    # A fence that the expression above does not read would not be run either.
    assert len(blocks) == len(re.findall(r"^```(?:python|sh|bash|shell|console|py)\b", text, re.M)), path
    return blocks


def every_page() -> list[Path]:
    """The pages, beginning with the one whose names all others use."""
    return sorted(PAGES.rglob("*.md"), key=lambda path: (path.name != FIRST, path))


def test_every_block_runs(tmp_path, monkeypatch, command_line, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for path in every_page():
        page = names if path.name == FIRST else dict(names)
        for block in read_blocks(path):
            if block.runs and block.language == "sh":
                for line in filter(None, block.code.splitlines()):
                    assert line.startswith("radiant-lens "), block.place
                    status, _, err = command_line(*shlex.split(line, comments=True)[1:])
                    assert status == 0, f"{block.place}: {err}"
            elif block.runs:
                try:
                    exec(compile(block.code, block.place, "exec"), page)
                except Exception:
                    raise AssertionError(f"{block.place}\n{traceback.format_exc()}") from None
    assert "held-out groups still flagged" in capsys.readouterr().out


def test_blocks_that_are_not_run_are_python_at_least():
    blocks = [block for path in every_page() for block in read_blocks(path) if block.language == "python"]
    for block in blocks:
        ast.parse(block.code, block.place)
    assert sum(block.runs for block in blocks) > len(blocks) / 2


def test_a_block_is_read_with_its_mark(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PAGES", tmp_path)
    page = tmp_path / "page.md"
    page.write_text('```python\nx = 1\n```\n\n```sh title="Not run: long"\nls\n```\n')
    assert [(b.language, b.runs) for b in read_blocks(page)] == [("python", True), ("sh", False)]
