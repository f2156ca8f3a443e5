from __future__ import annotations

import signal

import pytest

import radiant_lens as rl
from radiant_lens.cli.stopping import Stopped


@pytest.fixture
def folder(tmp_path, model, edits):
    return edits.save(tmp_path / "edits")


@pytest.fixture
def edits(model):
    from plain_models import random_steering

    return random_steering(4, 8, 24, sites=[(0, 3), (2, 2)])


@pytest.fixture
def served(monkeypatch):
    """Servers that ran until they were interrupted, and addresses that a browser was sent to."""
    servers, opened = [], []

    def run(server):
        servers.append(server)
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr("radiant_lens.viz.explorer.server.ExplorerServer.run", run)
    monkeypatch.setattr("webbrowser.open", opened.append)
    return servers, opened


def test_it_prints_and_opens_the_address_and_ends_well(command_line, folder, served):
    servers, opened = served
    status, out, _ = command_line("explore", "--model", "tiny", "--steering", folder, "--data", "tiny-facts")
    assert status == 0
    assert f"Open {servers[0].address}\n" in out and out.endswith("The explorer has ended.\n")
    assert opened == [servers[0].address]
    explorer = servers[0]._engine.explorer
    assert explorer.data.name == "tiny-facts"
    names: dict[str, object] = {}
    explorer.set(max_new_tokens=2)
    assert "model = rl.load_model('tiny', prepend_bos=" in explorer.code()
    assert f"steering = rl.Steering.load({str(folder)!r})" in explorer.code()
    exec(explorer.code(), names)
    assert names["plain"]


def test_without_a_browser_nothing_is_opened(command_line, folder, served):
    _, opened = served
    status, out, _ = command_line("explore", "--steering", folder, "--model", "tiny", "--no-browser")
    assert status == 0 and opened == [] and "Open http://127.0.0.1:" in out


def test_effects_are_estimated_first(command_line, folder, served):
    status, _, _ = command_line("explore", "--steering", folder, "--data", "tiny-facts", "--effects", 3)
    assert status == 0
    effects = served[0][0]._engine.explorer._measured
    assert [str(site) for site in effects.sites] == ["L0H3", "L2H2"] and len(effects.group_names) == 3


def test_effects_need_data_with_answers(command_line, folder, served, tmp_path):
    status, _, err = command_line("explore", "--steering", folder, "--effects", 3)
    assert status == 2 and "`--effects 3` needs `--data`" in err
    file = tmp_path / "texts.csv"
    file.write_text("text,label\na,0\nb,1\n")
    status, _, err = command_line("explore", "--steering", folder, "--data", file, "--effects", 3)
    assert status == 1 and "both correct and incorrect answers" in err and served[0] == []


def test_another_signal_is_reported_as_for_all_commands(command_line, folder, monkeypatch):
    def run(server):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("radiant_lens.viz.explorer.server.ExplorerServer.run", run)
    status, _, err = command_line("explore", "--steering", folder, "--model", "tiny", "--no-browser")
    assert status == 143 and "stopped by SIGTERM" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing option '--steering'"),
        (["--steering", "none"], 1, "There is no folder 'none' with a saved steering"),
        (
            ["--steering", "FOLDER", "--port", "70000"],
            2,
            "`port` must be a whole number between 0 and 65535; got 70000",
        ),
        (["--steering", "FOLDER", "--port", "x"], 2, "for '--port'"),
        (["--steering", "FOLDER", "--data", "tiny-fact"], 2, "did you mean 'tiny-facts'"),
        (["--steering", "FOLDER", "--model", "tiny", "--max-new-tokens", "0"], 2, "`max_new_tokens` must be a whole"),
    ],
)
def test_what_is_refused(command_line, folder, served, arguments, status, message):
    line = [str(folder) if word == "FOLDER" else word for word in arguments]
    got, _, err = command_line("explore", *line)
    assert (got, served[0]) == (status, [])
    assert message in err


def test_the_python_call_has_the_same_name():
    assert rl.explore.__name__ == "explore"
