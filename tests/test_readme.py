"""README: its length, its example, its commands (the ones that CI runs), its links and its pictures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import plotly.graph_objects as go

import radiant_lens as rl

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MOST_WORDS = 1000


def words(text: str) -> list[str]:
    """Words and numbers outside code blocks, tables included; addresses of links, comments and punctuation are none."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->|(?<=\])\([^)]*\)", "", text, flags=re.S)
    return [word for word in text.replace("|", " ").split() if re.search(r"\w", word)]


def load_script(name: str) -> ModuleType:
    """A script that draws a picture of README."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".docs" / "pictures" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_it_is_short():
    assert len(words(README.read_text())) <= MOST_WORDS


def test_words_are_counted_in_tables_and_not_in_code():
    assert words("Two words.\n\n| a | +.1 |\n|-|-|\n\n```sh\nnot these\n```\n<!-- nor\nthese --> [link](to/this)") == [
        "Two", "words.", "a", "+.1", "[link]",
    ]  # fmt: skip


def test_the_eight_lines_end_in_before_after_and_a_figure(capsys, monkeypatch):
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 8
    exec(compile(code, "README", "exec"), names := {})
    prompt = names["fitted"].splits.test.prompts[0]
    before, after = (line.removeprefix(prompt.text).strip() for line in capsys.readouterr().out.splitlines()[:2])
    assert before in prompt.incorrect_answers
    assert after in prompt.correct_answers
    assert "held-out groups still flagged" in str(names["fitted"].certificate)
    assert len(shown) == 1 and shown[0].data


def test_there_are_two_commands_of_one_line():
    commands = [block for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.S) if "venv" in block]
    assert len(commands) == 2
    assert all(block.count("\n") == 1 for block in commands)
    assert commands[0].rstrip().endswith("radiant-lens demo")
    assert commands[1].rstrip().endswith("pytest -n auto")


def test_other_commands_say_that_they_are_not_run_and_exist():
    from typer.main import get_command

    from radiant_lens.cli.app import app

    text = README.read_text()
    blocks = [m for m in re.finditer(r"```sh\n(.*?)```", text, re.S) if "venv" not in m[1]]
    assert blocks
    for block in blocks:
        assert re.search(r"<!-- not run: .+ -->\n$", text[: block.start()])
        for line in (line for line in block[1].splitlines() if line.startswith("radiant-lens ")):
            command = get_command(app).commands[line.split()[1]]
            options = {flag for option in command.params for flag in option.opts}
            assert set(re.findall(r"--[\w-]+", line)) <= options, line


def anchors(text: str) -> set[str]:
    """Anchors that GitHub makes of headings."""
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


def test_every_link_within_the_project_leads_somewhere():
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)|src=\"([^\"]+)\"", README.read_text())
    targets = [target for pair in links for target in pair if target and "://" not in target]
    assert len(targets) > 20
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        assert not anchor or anchor in anchors((ROOT / path).read_text()), target
    assert {path.name for path in (ROOT / "tutorials").glob("*.ipynb")} <= {Path(target).name for target in targets}


def test_what_has_to_be_said_first_is_in_the_first_screen():
    first = README.read_text().split("## Set up")[0]
    assert "departs from the paper" in first and "answers.svg" in first
    assert len(words(first)) < 180


def test_the_status_names_what_holds():
    from radiant_lens.sites import PROJECTION_PATHS

    assert f"{len(PROJECTION_PATHS)} model types" in README.read_text()
    assert f"version = {{{rl.__version__}}}" in README.read_text()


def test_the_answers_are_drawn_from_the_measurement():
    script = load_script("answers")
    measurement = script.read_measurement()
    assert script.PICTURE.read_text() == script.draw(measurement)
    answers = measurement["answers"]
    chosen = script.choose(answers)
    assert len(chosen) == 3
    assert [a for a in answers[: answers.index(chosen[-1]) + 1] if a["plain"] != a["steered"]] == chosen
    # The questions are the held-out ones of the split that was fitted on.
    test = rl.load_dataset(script.DATA).split((0.6, 0.2, 0.2), seed=0)[2]
    assert [p.question for p in test.prompts] == [a["question"] for a in answers]


def test_changed_words_are_marked_and_others_are_not():
    script = load_script("answers")
    old, new = script.mark_words("It is red .", "It is a moving cloth .")
    assert [word for word, marked in old if marked] == ["red"]
    assert [word for word, marked in new if marked] == ["a", "moving", "cloth"]
    parts, n_lines = script.draw_words([("word" * 5, i == 1) for i in range(6)], 0, 0, "new")
    assert n_lines == 3
    assert sum("rect" in part for part in parts) == 1


def test_the_chart_is_drawn_from_what_the_command_printed(tmp_path):
    script = load_script("results")
    assert script.PICTURE.read_text() == script.draw(script.read_points(), "gain of MC2")
    row = {"data": "d", "arm": "a", "budget": 0.1, "kl": 0.09, "gain": {"value": 0.2, "low": 0.1, "high": 0.3}}
    rows = [row, {**row, "data": "another task"}, {**row, "arm": "none", "budget": None}]
    (tmp_path / "r.json").write_text(json.dumps({"rows": rows, "settings": {"data": "d"}}))
    assert script.read_points(tmp_path / "r.json") == [("a", 0.09, 0.2, 0.1, 0.3)]
