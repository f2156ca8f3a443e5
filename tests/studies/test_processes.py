"""Studies that are killed, resumed, and shared among processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens.studies import Arm

pytestmark = pytest.mark.slow

ARMS = [Arm("RADIANT", heads="layers:1", detector={"loss": "lda"})]
SMALL = {"n_groups": 30, "n_samples": 1}

SCRIPT = """
import sys
import radiant_lens as rl
from radiant_lens.studies import Arm

arms = [Arm("RADIANT", heads="layers:1", detector={"loss": "lda"})]
study = rl.Study("killed", arms, n_groups=30, n_samples=1, out=sys.argv[1])
result = study.run()
print(result.n_computed)
print(result.to_markdown())
"""


def test_a_killed_study_resumes(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    cells = tmp_path / "a" / "cells"
    first = subprocess.Popen([*command, str(tmp_path / "a")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(cells.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    # SIGKILL leaves no time to clean up: what is on disk must be complete at any moment.
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 2 <= len(done) < 7
    for path in done:
        json.loads(path.read_text())
    rerun = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout
    n_rerun, table = rerun.split("\n", 1)
    assert int(n_rerun) == 7 - len(done)
    # Never interrupted.
    whole = rl.Study("killed", ARMS, out=tmp_path / "b", **SMALL).run()
    assert whole.n_computed == 7
    assert table.strip() == whole.to_markdown()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {p.name for p in Path(cells).glob("*.json")} == {p.name for p in (tmp_path / "b" / "cells").glob("*.json")}


def test_two_processes_find_what_one_finds(tmp_path):
    one, two = (rl.Study("shared", ARMS, out=tmp_path / str(n), **SMALL).run(n_jobs=n) for n in (1, 2))
    assert one.n_computed == two.n_computed == 7
    assert one.to_markdown() == two.to_markdown()


def children(pid: int) -> set[int]:
    """Processes that compute cells (the other child keeps account of shared resources)."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name in parentheses may hold spaces; the parent is the second field after it.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
    return set(pids)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition, seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize(
    ("how", "whom", "status"),
    [
        (signal.SIGTERM, "parent", 143),
        (signal.SIGINT, "parent", 130),
        (signal.SIGINT, "all", 130),
        (signal.SIGKILL, "parent", -signal.SIGKILL),
        (signal.SIGKILL, "child", 1),
    ],
    ids=["SIGTERM", "SIGINT", "Ctrl-C", "kill -9", "kill -9 of a child"],
)
def test_no_process_outlives_a_study_that_is_stopped(tmp_path, how, whom, status):
    cells, options = tmp_path / "s" / "cells", "--vary gamma=0.005,0.01,0.05,0.1 --seeds 0,1 --groups 30 --jobs 2"
    command = [sys.executable, "-m", "radiant_lens.cli", "ablate", *options.split(), "--out", str(tmp_path / "s")]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
    assert until(lambda: list(cells.glob("*.json")))
    # Cells are on disk, so both workers have started.
    workers = children(study.pid)
    assert len(workers) == 2 and all(alive(pid) for pid in workers)
    for pid in {"parent": [study.pid], "child": [min(workers)], "all": [study.pid, *workers]}[whom]:
        os.kill(pid, how)
    errors = study.communicate(timeout=60)[1]
    assert study.returncode == status
    assert until(lambda: not any(alive(pid) for pid in workers), 20)
    done = list(cells.glob("*.json"))
    assert 1 <= len(done) < 20
    for path in done:
        rl.Evaluation.load(path)
    assert "Traceback" not in errors
    if how != signal.SIGKILL:
        assert "what was complete is kept" in errors
        assert {p.name for p in cells.iterdir()} == {p.name for p in done}
    if whom == "child":
        assert "One of 2 processes has died, perhaps for lack of memory" in errors
