"""Every tutorial runs from an empty folder, with its solutions, and is saved as it ran."""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from notebooks import FOLDER, PLOTLY, code_cells, diagram_cells, notebooks, run, solutions, solved

MAX_BYTES = 1_500_000
COLAB = "https://colab.research.google.com/github/radiant-lens/radiant_lens/blob/main/tutorials/"
# A path of whoever saved it, a warning, a terminal's colours.
UNWANTED = (
    *("/home/", "/root/", "/tmp/", "/Users/", "site-packages", tempfile.gettempdir()),
    *("Warning", "Traceback", "\x1b["),
)

each = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
# One runs on every change; the others before a release.
LONG = tuple(path.stem for path in notebooks() if path.stem != "05_bring_your_own")
each_in_its_time = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in notebooks()],
)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def test_there_are_seven():
    assert [path.stem[:2] for path in notebooks()] == ["01", "02", "03", "04", "05", "06", "07"]


@each_in_its_time
def test_it_runs_and_its_solutions_solve_its_exercises(path, tmp_path, record_property):
    notebook = solved(read(path))
    # Meant to be under 60; what it is depends on the machine, so it is told (`--junit-xml`) and not tested.
    record_property("processor_seconds", round(run(notebook, tmp_path), 1))
    printed = [o.get("text", "") for c in code_cells(notebook) for o in c.outputs]
    unsolved = sum(text.startswith("Not solved yet.") for text in printed)
    right = sum(text.startswith("Right") for text in printed)
    assert unsolved == right == len(solutions(notebook))
    assert not [o for c in code_cells(notebook) for o in c.outputs if o.get("name") == "stderr"]


@each
def test_it_is_saved_as_it_ran(path):
    cells = code_cells(read(path))
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = "".join(
        str(o.get("text", "")) + str({k: v for k, v in o.get("data", {}).items() if k[:4] == "text"}) for o in outputs
    )
    assert [mark for mark in UNWANTED if mark in text] == []


@each
def test_every_figure_is_there_as_data_and_as_a_picture(path):
    outputs = [o.data for c in code_cells(read(path)) for o in c.outputs if "data" in o]
    figures = [data for data in outputs if PLOTLY in data]
    assert figures
    assert all("image/png" in data and "text/html" not in data for data in figures)
    assert path.stat().st_size < MAX_BYTES
    assert "plotly.js v" not in path.read_text()


@each
def test_it_opens_in_colab_and_has_exercises_with_folded_solutions(path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert f"[Open in Colab]({COLAB}{path.name})" in first
    exercises = re.findall(r"^### Exercise \d", "\n".join(c.source for c in notebook.cells), re.M)
    assert 1 <= len(exercises) == len(solutions(notebook))
    folded = [c.source for c in notebook.cells if c.cell_type == "markdown" and "<details>" in c.source]
    assert len(folded) == len(exercises)
    assert all("<summary>Solution</summary>\n\n```python" in source for source in folded)


@each
def test_every_section_ends_in_a_check_or_a_picture(path):
    last: dict[str, bool] = {}
    section = ""
    for cell in read(path).cells:
        heading = re.match(r"#{2,3} (.+)", cell.source) if cell.cell_type == "markdown" else None
        section = heading[1] if heading else section
        if cell.cell_type == "code" and section:
            last[section] = "assert" in cell.source.lower() or any(PLOTLY in o.get("data", {}) for o in cell.outputs)
    assert [name for name, checked in last.items() if not checked] == []


@each
def test_exercises_have_a_difficulty_minutes_and_a_hint_before_the_solution(path):
    cells = [c.source for c in read(path).cells if c.cell_type == "markdown"]
    exercises = [part for source in cells for part in re.split(r"^(?=### Exercise \d)", source, flags=re.M)[1:]]
    assert exercises
    assert all(re.search(r"\*\*Difficulty:\*\* ★{1,3} · \*\*Time:\*\* [\d to]+ minutes", part) for part in exercises)
    folded = [re.findall(r"<summary>(\w+)</summary>", source) for source in cells if "<details>" in source]
    assert folded == [["Hint", "Solution"]] * len(exercises)


@each
def test_each_picture_is_followed_by_what_to_see(path):
    cells = read(path).cells
    pictures = [i for i, c in enumerate(cells) if any(PLOTLY in o.get("data", {}) for o in c.get("outputs", ()))]
    assert [i for i in pictures if not cells[i + 1].source.startswith("**What to see:**")] == []


@each
def test_plots_are_functions_of_the_library(path):
    code = "\n".join(cell.source for cell in code_cells(read(path)))
    assert not re.search(r"\b(plotly|px|go)\.", code)


def test_the_first_tutorial_shows_a_diagram_of_the_method():
    (cell,) = diagram_cells(read(notebooks()[0]))
    picture = base64.b64decode(cell.attachments["method.png"]["image/png"])
    assert picture.startswith(b"\x89PNG")
    # As wide as the drawing that it is made from, in the denser pixels of the saved pictures.
    drawing = re.search(r'width="(\d+)" height="(\d+)"', (FOLDER / "method.svg").read_text())
    size = [int.from_bytes(picture[i : i + 4], "big") for i in (16, 20)]
    assert size == [1.5 * int(pixels) for pixels in drawing.groups()]


@each
def test_links_lead_to_tutorials_that_exist(path):
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", path.read_text())
    assert all((path.parent / link).is_file() for link in links)


def test_the_checks_of_a_saved_notebook_bite():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with tempfile.TemporaryDirectory() as folder, pytest.raises(Exception, match="ZeroDivisionError"):
        run(notebook, folder)
