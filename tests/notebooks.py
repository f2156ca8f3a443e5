"""Run the tutorials; as a script, run them and save what they print and draw.

`python tests/notebooks.py [NAME ...]` runs the notebooks of that name, or all, and writes their outputs into them.
Figures are stored as data for Plotly, which JupyterLab and VS Code draw by themselves without a network, and beside it
as a picture, for what cannot draw them (GitHub); the picture needs Debian's chromium. So does the diagram
`tutorials/method.svg`, which is attached as a picture to the cell that shows it.
"""

from __future__ import annotations

import base64
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "tutorials"
DIAGRAM = "method.png"
PLOTLY = "application/vnd.plotly.v1+json"
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.S)


def notebooks() -> list[Path]:
    """All tutorials, in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: Any) -> list[Any]:
    """Cells with code in them."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def solutions(notebook: Any) -> list[str]:
    """Code of the folded solutions."""
    return [code for cell in notebook.cells if cell.cell_type == "markdown" for code in SOLUTION.findall(cell.source)]


def solved(notebook: Any) -> Any:
    """The notebook with each solution run after its text, and the check that stands before it run again."""
    cells = []
    for i, cell in enumerate(notebook.cells):
        cells.append(cell)
        for code in SOLUTION.findall(cell.source) if cell.cell_type == "markdown" else ():
            check = notebook.cells[i - 1].source
            cells += [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell(check)]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def run(notebook: Any, folder: str | Path) -> float:
    """Run a notebook in a new kernel that starts in the folder; returns the seconds of processor time it took.

    Raises:
        CellExecutionError: a cell failed.
    """
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    # Threads that wait for one another count as processor time, and a busy machine makes them wait.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Where ipywidgets are missing, tqdm says so with its path.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, record_timing=False).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def save(path: Path) -> float:
    """Run a notebook and write its outputs into it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(notebook, folder)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    _add_pictures(notebook)
    nbformat.write(notebook, path)
    return seconds


def diagram_cells(notebook: Any) -> list[Any]:
    """Cells that show the diagram of the method."""
    return [cell for cell in notebook.cells if f"(attachment:{DIAGRAM})" in cell.source]


def _add_pictures(notebook: Any) -> None:
    """Draw the figures and the diagram of a notebook as pictures."""
    outputs = [o.data for c in code_cells(notebook) for o in c.outputs if PLOTLY in o.get("data", {})]
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    draw = """figure => Plotly.toImage({data: figure.data, layout: {...figure.layout, autosize: false}},
        {format: 'png', width: 800, height: figure.layout.height || 450}).then(url => url.split(',')[1])"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(device_scale_factor=1.5)
        page.set_default_timeout(300_000)
        page.add_script_tag(content=get_plotlyjs())
        for data in outputs:
            data["image/png"] = page.evaluate(draw, {key: data[PLOTLY][key] for key in ("data", "layout")})
            assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        for cell in diagram_cells(notebook):
            page.set_content(f"<body style='margin:0'>{(FOLDER / 'method.svg').read_text()}</body>")
            picture = base64.b64encode(page.locator("svg").screenshot()).decode()
            cell.attachments = {DIAGRAM: {"image/png": picture}}
        browser.close()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in notebooks():
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            sys.stdout.write(f"{path.stem}: {save(path):.0f} s of processor time, {path.stat().st_size:,} bytes\n")
