"""Commands of the package in several processes, with a log of what each of them computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import radiant_lens as rl

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = ["--standalone", "--nproc-per-node", "2"]

# Commands of the package, with small shards, a log of what each rank computes, and a way to kill one of them.
SCRIPT = """
import os, signal, sys
from radiant_lens import cli
from radiant_lens.capture import run as runs
from radiant_lens.distributed import launched
from radiant_lens.capture.store import CacheStore
from radiant_lens.studies.cells import CellStore

log, how = os.environ["LOG"], os.environ["HOW"]
rank, n_written = launched().number, 0
runs.SHARD_BYTES = 100_000

def logging(kind, method, name):
    function = getattr(kind, method)
    def logged(self, *args):
        global n_written
        if how == "die" and rank == 1 and n_written == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        function(self, *args)
        n_written += 1
        with open(f"{log}-{rank}", "a") as file:
            file.write(f"{name(args[0])} ")
    setattr(kind, method, logged)

logging(CacheStore, "write", str)
logging(CellStore, "save", str)
cli.main()
"""


class Launch:
    """Runs commands of the package in several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "script.py").write_text(SCRIPT)

    def command(self, *arguments: object, launcher: list[str]) -> list[str]:
        return [*launcher, str(self.folder / "script.py"), *map(str, arguments)]

    def environment(self, how: str) -> dict[str, str]:
        root = str(Path(rl.__file__).parents[1])
        settings = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "LOG": str(self.folder / "log"), "HOW": how}
        return {**os.environ, **settings}

    def __call__(
        self, *arguments: object, how: str = "live", launcher: list[str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, launcher=launcher or [*TORCHRUN, *TWO])
        return subprocess.run(
            command, env=self.environment(how), capture_output=True, text=True, check=False, timeout=300
        )

    def done(self) -> list[list[str]]:
        """Names of the results that each rank has computed, in all runs."""
        logs = [self.folder / f"log-{rank}" for rank in (0, 1)]
        return [log.read_text().split() if log.exists() else [] for log in logs]


def write_data(facts: rl.datasets.Dataset, path: Path) -> Path:
    """Statements and prompts of some groups, as a file."""
    few = facts.head(10)
    rows = [asdict(s) for s in few.statements]
    for p in few.prompts:
        answers = {"correct_answers": p.correct_answers, "incorrect_answers": p.incorrect_answers}
        rows.append({"prompt": p.text, "group": p.group, **answers})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def assert_all_once(done: list[list[str]], *, each: int = 1) -> None:
    everything = [name for names in done for name in names]
    assert len(set(everything)) == len(everything)
    assert min(map(len, done)) >= each
