"""Two processes of `torchrun` share the shards of a store, also after one of them was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import radiant_lens as rl
from radiant_lens.ranks import Rank, this_rank

SCRIPT = """
import os, signal, sys
from pathlib import Path
import radiant_lens as rl
from radiant_lens import runs
from radiant_lens.ranks import this_rank
from radiant_lens.stores import CacheStore

store, log, how = sys.argv[1:]
runs.SHARD_BYTES = 100_000
rank = this_rank().number
write, n_written = CacheStore.write, 0

def logged(self, i, *args):
    global n_written
    if how == "die" and rank == 1 and n_written == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, i, *args)
    n_written += 1
    with open(f"{log}-{rank}", "a") as file:
        file.write(f"{i} ")

CacheStore.write = logged
statements = rl.load_dataset("tiny-facts").statements[:120]
cache = rl.collect(rl.load_model("tiny", device="cpu"), statements, max_tokens=400, store=store)
Path(f"{log}-{rank}-loaded").write_text(str(float(cache.z.double().sum())))
"""


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(how: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(rl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = [str(tmp_path / name) for name in ("script.py", "store", "log")]
        return subprocess.run(
            [*launcher, *arguments, how], env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    return run


def shards(tmp_path: Path) -> list[list[int]]:
    return [[int(i) for i in (tmp_path / f"log-{rank}").read_text().split()] for rank in (0, 1)]


def test_a_process_by_itself_is_the_only_rank():
    assert this_rank() == Rank(0, 1)
    Rank(0, 1).wait()


def test_two_ranks_share_the_shards_and_give_the_result_of_one(model, facts, tmp_path, launch):
    finished = launch("live")
    assert finished.returncode == 0, finished.stderr
    one, other = shards(tmp_path)
    assert sorted(one + other) == list(range(len(one) + len(other)))
    assert min(len(one), len(other)) >= 2
    expected = rl.collect(model, facts.statements[:120], max_tokens=400)
    found = rl.HeadCache.load(tmp_path / "store")
    torch.testing.assert_close(found.z, expected.z, rtol=1e-4, atol=1e-5)
    assert (found.texts, found.group_names, found.meta) == (expected.texts, expected.group_names, expected.meta)
    loaded = [float((tmp_path / f"log-{rank}-loaded").read_text()) for rank in (0, 1)]
    assert loaded == [float(found.z.double().sum())] * 2


def test_a_killed_rank_fails_the_command_and_a_rerun_computes_no_shard_twice(model, facts, tmp_path, launch):
    failed = launch("die")
    assert failed.returncode != 0
    assert "rank" in failed.stderr and "Signal 9 (SIGKILL)" in failed.stderr
    assert not (tmp_path / "store" / "meta.json").exists()
    before = sum(map(len, shards(tmp_path)))
    finished = launch("live")
    assert finished.returncode == 0, finished.stderr
    one, other = shards(tmp_path)
    assert sorted(one + other) == list(range(len(one) + len(other))) and len(one) + len(other) > before >= 2
    expected = rl.collect(model, facts.statements[:120], max_tokens=400)
    torch.testing.assert_close(rl.HeadCache.load(tmp_path / "store").z, expected.z, rtol=1e-4, atol=1e-5)
