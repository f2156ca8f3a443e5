"""A process killed at any step of any write: complete artefacts can be read, and a rerun completes the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Hundreds of processes, each killed at another step.
pytestmark = pytest.mark.slow

JOBS = ["cache", "steering", "evaluation", "page"]


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, list[list]]:
    """For every job and step: the readable artefact before, after the kill and after a rerun, and folders left over."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(here / "faulty_writes.py"), str(tmp_path_factory.mktemp("faults"))]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {job["job"]: job["states"] for job in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", JOBS)
def test_a_first_save_is_there_whole_or_not_at_all(states, name):
    steps = states[f"{name}, new"]
    assert len(steps) > 8
    assert {after for _, after, _, _ in steps} == {None, "new"}
    assert {again for _, _, again, _ in steps} == {"new"}


@pytest.mark.parametrize("name", JOBS)
def test_the_old_one_or_the_new_one_can_be_read(states, name):
    steps = states[f"{name}, over an old one"]
    assert len(steps) > 8
    assert {before for before, _, _, _ in steps} == {"old"}
    assert {after for _, after, _, _ in steps} == {"old", "new"}
    assert {again for _, _, again, _ in steps} == {"new"}
    # Nothing old is left that could be taken for the artefact once that is removed.
    assert not any(beside for _, _, _, beside in steps)


def test_a_study_keeps_what_was_complete_and_computes_the_rest(states):
    steps = states["study"]
    assert len(steps) > 40
    assert {after for _, after, _, _ in steps} == {None, "new"}
    assert {again for _, _, again, _ in steps} == {"new"}


def test_a_store_keeps_its_shards_and_computes_the_rest(states):
    steps = states["store"]
    assert len(steps) > 40
    assert {after for _, after, _, _ in steps} == {None, "new"}
    assert {again for _, _, again, _ in steps} == {"new"}


def test_a_careless_write_would_be_seen(states):
    assert {after for _, after, _, _ in states["careless"]} - {"old", "new"}
