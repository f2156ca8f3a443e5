"""Times of the explorer in a browser, on one thread: `python tests/benchmarks/explorer_times.py --model tiny`.

Starts `radiant-lens explore`, opens its page in Debian's chromium, and moves the slider of the strength. Printed are:
the first paint after the address is opened, with the model already loaded; and for each change of strength the seconds
until the first new token of the steered answer and until its last one is shown, with the delay after which the page
sends the slider's value. Processor seconds are those of the command alone, without the browser: where others share the
machine, they say what the change takes. Without `--steering`, random edits of all heads under the gate "vote", which is
the costliest; they may end an answer early, so the number of tokens is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain_models import random_steering

import radiant_lens as rl

PATIENCE = 300_000
"""Milliseconds that the browser waits."""

MOVE = """strength => new Promise(resolve => {
    const root = document.querySelector(".rl-explorer"), slider = root.querySelector(".strength");
    const tokens = root.querySelector(".steered .tokens"), foot = root.querySelector(".steered .foot");
    const start = performance.now();
    let stale = false, first = null;
    const look = () => {
        // The tokens of the answer before stay, marked as stale, until the first one of the new answer replaces them.
        stale ||= tokens.classList.contains("stale");
        if (!stale) return;
        if (first === null && !tokens.classList.contains("stale")) first = performance.now() - start;
        if (first === null || !foot.textContent || root.classList.contains("busy")) return;
        observer.disconnect();
        // After the next frame the text is painted.
        requestAnimationFrame(() => resolve([first, performance.now() - start, foot.textContent]));
    };
    const observer = new MutationObserver(look);
    observer.observe(root, { subtree: true, childList: true, characterData: true, attributes: true });
    slider.value = strength;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
})"""


class Change(NamedTuple):
    """One change of strength: seconds to the first and the last new token, of the processor, and tokens."""

    first: float
    last: float
    processor: float
    n_tokens: int


@contextmanager
def explorer(model: str, steering: Path, n_tokens: int) -> Generator[tuple[str, psutil.Process]]:
    """Run `radiant-lens explore` on one thread; gives the address of its page and its process."""
    command = [sys.executable, "-m", "radiant_lens.cli", "explore", "--no-browser", "--model", model]
    command += ["--steering", str(steering), "--max-new-tokens", str(n_tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(m[0] for line in process.stdout if (m := re.search(r"http://127\.0\.0\.1:\S+", line)))
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)


def processor_seconds(process: psutil.Process) -> float:
    """Seconds of the processor that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def move(page: Any, process: psutil.Process, strength: float) -> Change:
    """Set the slider to a strength and wait for the answer."""
    before = processor_seconds(process)
    first, last, foot = page.evaluate(MOVE, str(strength))
    match = re.match(r"(\d+) tokens", foot)
    assert match is not None, foot
    return Change(first / 1000, last / 1000, processor_seconds(process) - before, int(match[1]))


def measure(address: str, process: psutil.Process, prompt: str, n_changes: int) -> tuple[list[float], list[Change]]:
    """First paints of the page, in seconds, and changes of strength."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        paints = []
        for _ in range(3):
            page.goto(address)
            page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
            page.wait_for_selector(".cell")
            paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
            paints.append(paint / 1000)
        page.locator(".ask textarea").fill(prompt)
        page.keyboard.press("Control+Enter")
        page.wait_for_function(
            "() => document.querySelector('.steered .foot').textContent && !document.querySelector('.rl-explorer.busy')"
        )
        # The first change is not counted.
        strengths = [0.2 + 0.1 * (i % 10) for i in range(n_changes + 1)]
        changes = [move(page, process, strength) for strength in strengths][1:]
        browser.close()
    return paints, changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steering", type=Path, default=None, help="folder of a fitted steering")
    parser.add_argument("--prompt", default="Q : what is the capital of dupeka ? A :")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--changes", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steering = options.steering
        if steering is None:
            cfg: Any = rl.load_model(options.model, device="cpu").cfg
            random = random_steering(cfg.n_layers, cfg.n_heads, cfg.d_head, gate="vote", strength=0.1)
            steering = random.save(Path(folder) / "random")
        start = time.perf_counter()
        with explorer(options.model, steering, options.tokens) as (address, process):
            print(f"{options.model}: address printed after {time.perf_counter() - start:.1f} s")
            paints, changes = measure(address, process, options.prompt, options.changes)
    print(f"first paint: {', '.join(f'{paint:.2f}' for paint in paints)} s")
    print("| seconds | median | most |\n|-|-|-|")
    names = {"first": "first new token", "last": "last new token", "processor": "of the processor"}
    for field, name in names.items():
        values = [getattr(change, field) for change in changes]
        print(f"| {name} | {statistics.median(values):.2f} | {max(values):.2f} |")
    counts = sorted({change.n_tokens for change in changes})
    print(f"{len(changes)} changes; tokens of the steered answers: {', '.join(map(str, counts))}")


if __name__ == "__main__":
    main()
