"""Every code block of the documentation runs on the embedded model, or says in its title that it is not run."""

from __future__ import annotations

import ast
import re
import shlex
import traceback
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

PAGES = Path(__file__).parents[2] / ".docs" / "pages"
FENCE = re.compile(r"^```(python|sh)(.*)\n((?:.*\n)*?)```$", re.M)
FIRST = "quickstart.md"
# Pages whose blocks take half a minute and more.
LONG = ("least-kl", "certificates", "gates", "controls", "least-edit", "choose-a-policy")


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


def run_python(block: Block, names: dict[str, object]) -> None:
    """Run a block of Python in the namespace `names`."""
    try:
        exec(compile(block.code, block.place, "exec"), names)
    except Exception:
        raise AssertionError(f"{block.place}\n{traceback.format_exc()}") from None


class Session(NamedTuple):
    """A folder in which the first page has run, the names that it made, and what it printed."""

    folder: Path
    names: dict[str, object]
    printed: str


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    """The session that all other pages continue."""
    folder, names, printed = tmp_path_factory.mktemp("pages"), {}, StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        for block in read_blocks(PAGES / FIRST):
            if block.runs:
                assert block.language == "python", block.place
                run_python(block, names)
    return Session(folder, names, printed.getvalue())


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in LONG)) for p in every_page()[1:]],
)
def test_every_block_runs(path, session, monkeypatch, command_line):
    monkeypatch.chdir(session.folder)
    names = dict(session.names)
    for block in read_blocks(path):
        if block.runs and block.language == "python":
            run_python(block, names)
        elif block.runs:
            for line in filter(None, block.code.splitlines()):
                assert line.startswith("radiant-lens "), block.place
                status, _, err = command_line(*shlex.split(line, comments=True)[1:])
                assert status == 0, f"{block.place}: {err}"


def test_the_first_page_ends_in_a_certificate(session):
    assert "held-out groups still flagged" in session.printed


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
