"""Pictures of a report and of the explorer for the documentation, in pages/assets.

    python .docs/pictures/report.py radiant-demo

shows the report and the steering of a folder that `radiant-lens demo` wrote. It needs playwright and Debian's
chromium.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parents[1] / "pages" / "assets"
PICTURES = {"report": ("Which heads detect, and which act", 2), "vote-timeline": ("One answer, token by token", 1)}
"""Pictures of a report: the section that each shows, and how many of its figures."""

MARGIN, PATIENCE = 14, 300_000
ANSWERED = "() => document.querySelector('.steered .foot').textContent && !document.querySelector('.rl-explorer.busy')"


def draw_report(page: Any, report: Path) -> None:
    """Write the pictures of a report."""
    page.goto(report.resolve().as_uri())
    for name, (heading, n_figures) in PICTURES.items():
        section = page.locator("section", has=page.get_by_role("heading", name=heading, exact=True)).last
        section.scroll_into_view_if_needed()
        figures = section.locator("figure.plot")
        for i in range(n_figures):
            figures.nth(i).locator(".main-svg").first.wait_for()
        # Figures take their width from the page after they are drawn.
        page.wait_for_timeout(2000)
        first, last = figures.first.bounding_box(), figures.nth(n_figures - 1).bounding_box()
        top = section.bounding_box()["y"]
        clip = {
            "x": first["x"] - MARGIN,
            "y": top + page.evaluate("scrollY"),
            "width": last["x"] + last["width"] - first["x"] + 2 * MARGIN,
            "height": max(box["y"] + box["height"] for box in (first, last)) - top,
        }
        page.screenshot(path=ASSETS / f"{name}.png", full_page=True, clip=clip)


@contextmanager
def serve_explorer(steering: Path) -> Generator[str]:
    """Serve the explorer of a steering; gives the address of its page."""
    command = [sys.executable, "-m", "radiant_lens.cli", "explore", "--no-browser", "--data", "tiny-facts"]
    with subprocess.Popen([*command, "--steering", str(steering)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(m[0] for line in process.stdout if (m := re.search(r"http://127\.0\.0\.1:\S+", line)))
        finally:
            process.send_signal(signal.SIGINT)


def draw_explorer(page: Any, address: str) -> None:
    """Write the picture of the explorer, with one head looked at."""
    page.goto(address)
    page.wait_for_function(ANSWERED)
    page.locator(".cell.edited").first.click()
    page.wait_for_selector(".top li mark")
    page.locator(".rl-explorer").screenshot(path=ASSETS / "explorer.png")


def main(folder: Path) -> None:
    """Write all pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        draw_report(page, folder / "report.html")
        with serve_explorer(folder) as address:
            draw_explorer(page, address)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
