"""The explorer in a real browser: as a widget in JupyterLab, and as the page of `radiant-lens explore`.

Both are started once. The same steps are done in both, with a mouse and with a keyboard.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest

import radiant_lens as rl
from radiant_lens.evaluation import generate_answers
from radiant_lens.viz.explorer import assets
from radiant_lens.viz.explorer.engine import Engine
from radiant_lens.viz.explorer.messages import snapshot

PATIENCE = 300_000
"""Milliseconds: a machine may have much else to do."""

CELL = """
import torch
torch.set_num_threads(1)
import radiant_lens as rl
model = rl.load_model("tiny", device="cpu")
rl.explore(model, rl.Steering.load({folder!r}), rl.load_dataset("tiny-facts"), max_new_tokens=10)
"""


class Place(NamedTuple):
    """Where an explorer is seen: a page, and how its dark theme is switched on and off."""

    page: Any
    set_dark: Callable[[bool], None]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """That of the two programs: one thread each, and no settings of whoever runs the tests."""
    place = tmp_path_factory.mktemp("home")
    folders = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{name}": str(place / name) for name in folders}
    own |= {f"JUPYTERLAB_{name}_DIR": str(place / name) for name in ("SETTINGS", "WORKSPACES")}
    # A question about news would lie over the notebook.
    news = place / "SETTINGS" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return {**os.environ, **own, "IPYTHONDIR": str(place), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def folder(edits, tmp_path_factory) -> Path:
    return edits.save(tmp_path_factory.mktemp("steering") / "edits")


def first_match(process: subprocess.Popen[str], pattern: str) -> str:
    """Read the output of a program up to the first line that matches."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if match := re.search(pattern, line):
            return match[0]
    raise AssertionError("".join(lines))


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@pytest.fixture(scope="module")
def command(environment, folder) -> Iterator[subprocess.Popen[str]]:
    arguments = ["--model", "tiny", "--steering", str(folder), "--data", "tiny-facts", "--max-new-tokens", "10"]
    with subprocess.Popen(
        [sys.executable, "-m", "radiant_lens.cli", "explore", "--no-browser", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        yield process
        if process.poll() is None:
            end(process)


@pytest.fixture(scope="module")
def lab(environment, folder, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed: pip install jupyterlab")
    place = tmp_path_factory.mktemp("lab")
    cell = nbformat.v4.new_code_cell(CELL.format(folder=str(folder)).strip())
    # Without a kernel named here, JupyterLab asks for one.
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
    nbformat.write(notebook, place / "explorer.ipynb")
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=secret", "--expose-app-in-browser"]
    options += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = place / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--notebook-dir={place}"],
            env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=place,
        )  # fmt: skip
    deadline = time.monotonic() + PATIENCE / 1000
    while not (match := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", log.read_text())):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    # The kernel starts while the page loads.
    yield f"http://127.0.0.1:{match[1]}"
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def is_jupyterlab_s(error: Any) -> bool:
    """True for an error that JupyterLab's own code throws, as it sometimes does while it lays out a page."""
    frames = [line for line in (error.stack or "").splitlines() if line.strip().startswith("at ")]
    return bool(frames) and "/static/lab/" in frames[0]


def open_page(browser: Any, address: str) -> tuple[Any, list[str]]:
    """A page that may ask this machine alone, and the messages that it should not have printed."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    messages: list[str] = []
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: None if is_jupyterlab_s(error) else messages.append(f"error: {error}"))
    local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:", "ws://127.0.0.1:")
    page.on("request", lambda r: None if r.url.startswith(local) else messages.append(f"asked for {r.url}"))
    page.goto(address)
    return page, messages


@pytest.fixture(scope="module")
def served_page(browser, command) -> Iterator[Place]:
    page, messages = open_page(browser, first_match(command, r"http://127\.0\.0\.1:\S+"))
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    yield Place(page, lambda dark: page.emulate_media(color_scheme="dark" if dark else "light"))
    assert messages == []
    page.context.close()


def run_cell(page: Any) -> None:
    """Run the notebook's cell once its kernel is connected; before that, JupyterLab asks for one in a dialog."""
    page.wait_for_function(
        """() => {
            const context = jupyterapp.shell.currentWidget?.sessionContext;
            const kernel = context?.isReady && context.session?.kernel;
            return kernel && kernel.connectionStatus === "connected" && kernel.status === "idle";
        }"""
    )
    # Without waiting for its promise, which ends when the cell has run.
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_selector(".rl-explorer")


@pytest.fixture(scope="module")
def lab_page(browser, lab) -> Iterator[Place]:
    page, messages = open_page(browser, f"{lab}/lab/tree/explorer.ipynb?token=secret")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    run_cell(page)

    def set_dark(dark: bool) -> None:
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        page.evaluate("theme => { jupyterapp.commands.execute('apputils:change-theme', { theme }); }", theme)
        page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(not dark).lower()}'")

    page.evaluate("() => { jupyterapp.commands.execute('application:toggle-left-area'); }")
    yield Place(page, set_dark)
    assert messages == []
    page.context.close()


@pytest.fixture(params=["served_page", "lab_page"])
def place(request, command, lab) -> Place:
    # Both programs are started before the first of them is waited for.
    return request.getfixturevalue(request.param)


def text(page: Any, side: str) -> str:
    return "".join(page.locator(f".rl-explorer .{side} .token:not(.beyond)").all_text_contents()).strip()


def wait_for_answer(page: Any, *, changed_from: str | None = None) -> str:
    """Wait until nothing is under way, and the steered text is another; return it."""
    page.wait_for_function(
        """before => {
            const root = document.querySelector(".rl-explorer");
            const tokens = [...root.querySelectorAll(".steered .token:not(.beyond)")];
            const text = tokens.map(token => token.textContent).join("").trim();
            const ended = root.querySelector(".steered .foot").textContent;
            return !root.classList.contains("busy") && ended && text !== before;
        }""",
        arg=changed_from,
    )
    return text(page, "steered")


def test_it_answers_and_follows_the_mouse_and_the_keyboard(place, model, edits, facts):
    page = place.page
    before = wait_for_answer(page)
    plain = text(page, "plain")
    assert plain and before

    # Examples are named by their last whole words, where the question to answer is.
    labels = page.locator(".examples option").all_text_contents()[1:]
    assert labels and max(map(len, labels)) <= 46
    ends = [f" {label.removeprefix('… ')}" for label in labels]
    assert all(any(f" {prompt.text}".endswith(end) for prompt in facts.prompts) for end in ends)

    # Strength, by the keyboard: the steered text changes, the plain one stays.
    slider = page.locator(".strength").first
    slider.focus()
    page.keyboard.press("End")
    strong = wait_for_answer(page, changed_from=before)
    assert text(page, "plain") == plain
    assert page.locator(".by-strength .value").input_value() == "4"

    # Gate, by the mouse.
    page.locator(".gate", has_text="none").click()
    ungated = wait_for_answer(page, changed_from=strong)
    assert page.locator(".gate input:checked").get_attribute("value") == "none"

    # A head, by the mouse: its numbers, and its switch.
    cell = page.locator(".cell[data-site=L1H5]")
    cell.click()
    page.wait_for_function("() => document.querySelector('.rl-explorer h4')?.textContent === 'L1H5'")
    page.locator(".switch").click()
    page.wait_for_function("() => document.querySelector('.cell[data-site=L1H5]').classList.contains('off')")
    assert page.locator(".switch").get_attribute("aria-checked") == "false"
    assert "taken out" in cell.get_attribute("aria-label")
    wait_for_answer(page)
    page.wait_for_selector(".top li mark")

    # Heads, by the keyboard: arrows move one tab stop, Enter chooses, Space takes out.
    assert page.locator(".cell[tabindex='0']").count() == 1
    cell.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.rl-explorer h4').textContent === 'L2H7'")
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelector('.cell[data-site=L2H7]').classList.contains('off')")
    assert page.locator(".cell[tabindex='0']").get_attribute("data-site") == "L2H7"
    wait_for_answer(page)

    # The budget sets the strength.
    page.locator(".budget").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "() => document.querySelector('.rl-explorer.by-kl') && !document.querySelector('.rl-explorer.busy')"
    )
    assert page.locator(".by-strength .value").input_value() not in ("", "4")
    wait_for_answer(page)

    # A token shows its votes, and so do the heads.
    token = page.locator(".steered .token").first
    token.hover()
    assert re.search(
        r"KL .* nats; \d heads edited, moved by .*; \d of 4 heads vote", page.locator(".token-line").text_content()
    )
    token.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.index") == "1"

    # The code gives the texts that are shown.
    page.locator(".copy").click()
    page.wait_for_function("() => document.querySelector('.copy').textContent === 'Copied'")
    code = page.evaluate("() => navigator.clipboard.readText()")
    assert code == page.locator(".source").text_content()
    names: dict[str, Any] = {"model": model, "steering": edits}
    exec(code, names)
    assert (names["plain"], names["steered"]) == (text(page, "plain"), text(page, "steered"))
    assert ungated

    # Another prompt.
    page.locator(".ask textarea").fill("Q : what is the metal of dupeka ? A :")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('.source').textContent.includes('the metal of dupeka')")
    wait_for_answer(page)
    options = {"max_new_tokens": 10, "temperature": 0.0, "stop": facts.stop}
    assert text(page, "plain") == generate_answers(model, ["Q : what is the metal of dupeka ? A :"], **options)[0][0]


def test_a_view_that_comes_while_an_answer_is_under_way_shows_it_from_its_first_token(browser, explorer):
    engine_messages: list[dict[str, Any]] = []
    engine = Engine(explorer, engine_messages.append)
    engine.receive({"kind": "hello"})
    while sum(message["kind"] == "kl" for message in engine_messages) < 2:
        engine.turn()
    middle = [m["kind"] for m in engine_messages].index("kl") - 1
    late = engine_messages[middle:]
    engine_messages.clear()
    # Its greeting reaches all views, after what was under way.
    engine.receive({"kind": "hello"})
    while engine.turn():
        pass
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    module = f"data:text/javascript;base64,{base64.b64encode(assets.MODULE.read_bytes()).decode()}"
    page.evaluate(
        """async ([module, snapshot]) => {
            const { default: { render } } = await import(module);
            const model = { get: () => snapshot, on: (_, handler) => { window.tell = handler; }, send: () => {} };
            render({ model, el: document.body });
        }""",
        [module, snapshot(explorer)],
    )
    page.evaluate("messages => messages.forEach(tell)", late)
    assert text(page, "steered") == ""
    page.evaluate("messages => messages.forEach(tell)", engine_messages)
    assert errors == []
    answers = {m["side"]: m["text"] for m in engine_messages if m["kind"] == "answer"}
    assert answers["plain"] != answers["steered"]
    assert {side: text(page, side) for side in answers} == answers
    page.close()


@pytest.mark.parametrize("width", [1280, 700])
def test_it_fits_and_follows_the_theme(place, width, tmp_path):
    page = place.page
    page.set_viewport_size({"width": width, "height": 900})
    papers = []
    for dark in (False, True):
        place.set_dark(dark)
        root = page.locator(".rl-explorer").first
        colours = root.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]")
        papers.append(colours[0])
        light = [sum(map(float, re.findall(r"[\d.]+", c)[:3])) for c in colours]
        # Dark paper has light ink, and the other way round.
        assert (light[0] < light[1]) == dark
        overflow = "e => [...e.querySelectorAll('.panel')].filter(p => p.scrollWidth > p.clientWidth + 1).length"
        assert root.evaluate(overflow) == 0
        assert root.evaluate("e => e.scrollWidth <= e.clientWidth")
        if shots := os.environ.get("RADIANT_LENS_SHOTS"):
            name = "lab" if "lab/tree" in page.url else "page"
            root.screenshot(path=Path(shots) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert papers[0] != papers[1]
    boxes = [page.locator(f".rl-explorer .{name}").first.bounding_box() for name in ("answers", "heads")]
    beside = boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 1
    assert beside == (width == 1280)


def test_the_page_is_painted_at_once_and_the_command_ends_at_ctrl_c(served_page, command):
    page = served_page.page
    page.reload()
    page.wait_for_selector(".cell")
    painted = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 5000
    address = page.url
    page.goto("about:blank")
    with urllib.request.urlopen(address) as response:
        state = re.search(r'id="snapshot">(.*?)</script>', response.read().decode())[1]
    assert json.loads(state)["model"] == "tiny"
    assert end(command) == 0
    assert command.stdout.read().endswith("The explorer has ended.\n")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
    assert rl.explore
