"""Every example in the help of a command runs as it stands, on small data under the names that it uses."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator

import pytest
from typer.main import get_command

import radiant_lens as rl
from radiant_lens import datasets
from radiant_lens.cli.app import app
from radiant_lens.tiny import model_folder


def examples() -> Iterator[tuple[str, str]]:
    for name, command in get_command(app).commands.items():
        for line in re.findall(r"radiant-lens [a-z].*", command.callback.__doc__ or ""):
            yield name, line


EXAMPLES = list(examples())
# These take most of the time of all; the tests of these commands run the same on less.
LONG = ("bench tiny-facts", "fit --policy least_kl", "ablate --vary")


def marked(line: str) -> object:
    """The example, slow if it is long."""
    slow = line.removeprefix("radiant-lens ").startswith(LONG)
    return pytest.param(line, id=line[13:60], marks=[pytest.mark.slow] * slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, facts, steering, model, experiment):
    """The files and folders that the examples name."""
    place = tmp_path_factory.mktemp("examples")
    small = facts.head(60)
    rows = [{"text": s.text, "label": s.label, "group": s.group} for s in small.atoms]
    rows += [
        {
            "prompt": p.text,
            "correct_answers": list(p.correct_answers),
            "incorrect_answers": list(p.incorrect_answers),
            "group": p.group,
        }
        for p in small.bare_prompts
    ]
    (place / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (place / "my.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("statement", "is_true"), ("Snow is white.", 1), ("Snow is black.", 0)])
    shutil.copytree(model_folder(), place / "my-gpt2")
    for name in ("my-steering", "radiant-demo"):
        steering.save(place / name)
    for name, edits in (("plain", None), ("on", steering)):
        rl.evaluate(model, experiment.test.head(8), edits, max_new_tokens=4).save(place / f"{name}.json")
    return place


@pytest.mark.parametrize("line", [marked(line) for _, line in EXAMPLES])
def test_an_example_runs(line, folder, facts, command_line, monkeypatch):
    monkeypatch.chdir(folder)
    # Data sets of the package, cut: what an example shows is the command.
    load = datasets.load_dataset
    cut = facts.head(60)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **o: cut if name == "tiny-facts" else load(name, **o))
    if "smollm2" in line:
        pytest.skip("needs the weights of a real model; test_demo_model.py and test_benchmark.py run the same commands")
    if line == "radiant-lens demo":
        pytest.skip("test_cli.py runs it")
    if line.split()[1] == "serve" or "--engine vllm" in line:
        pytest.importorskip("vllm", reason="needs vLLM: .ci/serving runs tests/serving in an environment with it")
    if " lm-eval " in line:
        pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'radiant-lens[harness]'")
        monkeypatch.setattr("radiant_lens.harness.run_command_line", lambda arguments: None)
    if line.split()[1] == "explore":
        # It serves until it is interrupted; test_explore.py does that.
        monkeypatch.setattr("radiant_lens.viz.explorer.server.ExplorerServer.run", lambda server: None)
        monkeypatch.setattr("webbrowser.open", lambda address: None)
    # Several processes are tested in test_distributed.py; here the same command runs in one.
    status, out, err = command_line(*shlex.split(line.split("radiant-lens ", 1)[1]))
    assert status == 0, err
    assert " lm-eval " in line or out


def test_every_command_has_an_example():
    assert {name for name, _ in EXAMPLES} == set(get_command(app).commands)
    assert len(EXAMPLES) >= 12
