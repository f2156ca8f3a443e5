"""Bars go to standard error, from the first rank alone, and those of steps stand below the bar of the run."""

from __future__ import annotations

import io
import json
import sys
from contextvars import ContextVar

import pytest
import rich.progress

from radiant_lens import distributed
from radiant_lens.distributed import progress_bar


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    # Some surroundings name one that cannot move its cursor.
    monkeypatch.setenv("TERM", "xterm")


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
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


# Colours that are asked for do not make a terminal of a file.
@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_what_is_printed_meanwhile_stays_where_it_was_sent(environment, monkeypatch):
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
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


@pytest.fixture
def lines(terminal, monkeypatch):
    """Descriptions of the tasks of the last outermost bar that was begun."""
    made = []

    class Recorded(rich.progress.Progress):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(distributed, "Progress", Recorded)
    return lambda: [task.description for task in made[-1].tasks]


def test_steps_are_lines_of_the_bar_of_their_run(lines):
    with progress_bar(shown=True) as run:
        run.add_task("run", total=2)
        with progress_bar(shown=True) as step:
            step.add_task("step", total=2)
            with progress_bar(shown=False) as quiet:
                quiet.add_task("quiet", total=2)
            assert lines() == ["run", "step"]
        assert lines() == ["run"]
        with pytest.raises(KeyError), progress_bar(shown=True) as step:
            # Held, as a traceback holds it: the rest of it may be read or dropped after the block.
            tracked = step.track(range(2), description="broken")
            next(tracked)
            assert lines() == ["run", "broken"]
            raise KeyError
        assert lines() == ["run"] and list(tracked) == [1]
    with progress_bar(shown=True):
        assert lines() == []


def test_blocks_that_end_in_another_order_take_off_their_own_lines(lines):
    with progress_bar(shown=True) as run:
        run.add_task("run", total=None)
        one, other = progress_bar(shown=True), progress_bar(shown=True)
        first, second = one.__enter__(), other.__enter__()
        first.add_task("first", total=2)
        task = second.add_task("second", total=2)
        one.__exit__(None, None, None)
        second.advance(task)
        second.update(task, description="still second")
        assert lines() == ["run", "still second"]
        other.__exit__(None, None, None)
        assert lines() == ["run"]


def test_a_bar_that_was_left_behind_is_not_used(lines, monkeypatch):
    with progress_bar(shown=True) as bar:
        bar.add_task("old", total=1)
        stopped = distributed._BAR.get()
    monkeypatch.setattr(distributed, "_BAR", ContextVar("bar", default=stopped))
    with progress_bar(shown=True) as bar:
        bar.add_task("new", total=1)
        assert lines() == ["new"]


def test_a_run_with_json_shows_its_bar_and_prints_one_object(terminal, command_line):
    groups = ["--train-groups", "20", "--validation-groups", "4", "--test-groups", "4"]
    line = ["bench", "tiny-facts", "--arms", "least KL", *groups]
    status, out, err = command_line(*line, "--answers", "0", "--budgets", "0.02", "--folds", "0", "--json")
    assert status == 0, err
    assert {row["arm"] for row in json.loads(out)["rows"]} == {"none", "least KL"}
    assert "least KL, fold 0" in err and "Fisher information" in err
