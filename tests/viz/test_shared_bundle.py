"""One script for all views of a notebook, and a copy wherever it would be missing."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from radiant_lens.viz import _shared_bundle
from radiant_lens.viz._shared_bundle import SharedBundle


@pytest.fixture
def run(monkeypatch):
    """Show views in a cell; returns which of them bring the script."""
    shared, number = SharedBundle(), iter(range(1, 100))

    def cell(source: str, views: int = 1) -> list[bool]:
        execution = (next(number), source)
        monkeypatch.setattr(_shared_bundle, "_running_cell", lambda: execution)
        return [shared.is_due() for _ in range(views)]

    return cell


def test_the_first_view_brings_the_script_for_all(run):
    assert run("first", 2) == [True, False]
    assert run("second", 2) == [False, False]
    assert run("third") == [False]


def test_a_cell_that_runs_again_brings_it_again(run):
    run("first"), run("second")
    assert run("second", 2) == [True, False]


def test_a_second_pass_begins_anew(run):
    for _ in range(2):
        assert [run(name) for name in ("first", "second", "third")] == [[True], [False], [False]]


def test_each_output_of_colab_is_complete(run, monkeypatch):
    run("first")
    assert run("second") == [False]
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert run("third") == [True]


def test_outside_a_notebook_every_view_is_complete():
    shared = SharedBundle()
    assert [shared.is_due(), shared.is_due()] == [True, True]
