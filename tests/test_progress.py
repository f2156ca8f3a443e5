"""Bars go to standard error, from the first rank alone, and those of steps stand below the bar of the run."""

from __future__ import annotations

import io
import json
import sys

import pytest

from radiant_lens.distributed import progress_bar


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")


def test_a_bar_is_on_standard_error_alone(terminal, capsys):
    with progress_bar(shown=True) as bar:
        assert [*bar.track(range(3), description="counting")] == [0, 1, 2]
    with progress_bar(shown=False) as bar:
        list(bar.track(range(3), description="unseen"))
    shown = capsys.readouterr()
    assert shown.out == "" and "counting" in shown.err and "unseen" not in shown.err


def test_nothing_is_printed_where_there_is_no_terminal(capsys):
    with progress_bar(shown=True) as bar:
        list(bar.track(range(3), description="counting"))
    shown = capsys.readouterr()
    assert shown.out == "" and "counting" not in shown.err


def test_what_is_printed_meanwhile_stays_where_it_was_sent(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(shown=True) as bar:
        bar.add_task("counting", total=1)
        sys.stdout.write("a result\n")
    assert file.getvalue() == "a result\n"
    assert "counting" in terminal.getvalue() and "a result" not in terminal.getvalue()


def test_of_several_ranks_the_first_shows_its_bar(terminal, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with progress_bar(shown=True) as bar:
            list(bar.track(range(3), description=f"rank {rank}"))
    shown = capsys.readouterr().err
    assert "rank 0" in shown and "rank 1" not in shown


def test_steps_are_lines_of_the_bar_of_their_run(terminal, capsys):
    def names(bar):
        return [task.description for task in bar.tasks]

    with progress_bar(shown=True) as run:
        run.add_task("run", total=2)
        with progress_bar(shown=True) as step:
            step.add_task("step", total=2)
            with progress_bar(shown=False) as quiet:
                quiet.add_task("quiet", total=2)
            assert names(run) == ["run", "step"]
        assert names(run) == ["run"]
        with pytest.raises(KeyError), progress_bar(shown=True) as step:
            step.add_task("broken", total=2)
            raise KeyError
        assert names(run) == ["run"]
    with progress_bar(shown=True) as other:
        assert other is not run and names(other) == []


def test_a_run_with_json_shows_its_bar_and_prints_one_object(terminal, command_line):
    line = ["bench", "tiny-facts", "--arms", "least KL", "--test-groups", "4", "--validation-groups", "4"]
    status, out, err = command_line(*line, "--answers", "0", "--budgets", "0.02", "--folds", "0", "--json")
    assert status == 0, err
    assert {row["arm"] for row in json.loads(out)["rows"]} == {"none", "least KL"}
    assert "least KL, fold 0" in err and "Fisher information" in err
