"""Collections that Ray spreads over workers survive their deaths."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving.engines import make_model
from serving.test_collection import assert_close, make_statements

import radiant_lens as rl
from radiant_lens.capture import collect_with_engine, ray_workers
from radiant_lens.errors import InvalidArgumentError, MissingPackageError, RankError

pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = """
import os, signal, sys
model, store, log, how, tests = sys.argv[1:]
sys.path.insert(0, tests)
import ray
from radiant_lens.capture import collect_with_engine, engine_run, ray_workers
from radiant_lens.errors import RankError
from serving.test_collection import SMALL, make_statements
engine_run.SHARD_BYTES, engine_run._TEXTS_AT_ONCE = 20_000, 2

class Worker(ray_workers.ShardWorker):
    def write(self, shard):
        # Kills every worker that takes it.
        if shard == 2 and how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(shard)
        with open(log, "a") as file:
            file.write(f"{shard}:{os.getpid()} ")

ray_workers.ShardWorker = Worker
for attempt in range(5):
    # On a busy machine Ray waits too short a time for itself: 30 seconds, which cannot be changed.
    try:
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        break
    except Exception:
        ray.shutdown()
try:
    collect_with_engine(model, make_statements(), store, engine="ray", workers=2, options=SMALL)
except RankError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.slow
def test_after_kills_of_the_workers_nothing_is_lost_and_nothing_computed_twice(vllm, tmp_path):
    pytest.importorskip("ray")
    make_model("llama", tmp_path / "model")

    def run(how: str) -> subprocess.CompletedProcess[str]:
        paths = [tmp_path / "model", tmp_path / "s", tmp_path / "log", how, Path(__file__).parents[1]]
        command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    died = run("die")
    assert died.returncode == 7, died.stderr
    assert "All 2 workers of Ray have died, with" in died.stdout
    before = (tmp_path / "log").read_text().split()
    assert not (tmp_path / "s" / "meta.json").exists()
    lived = run("live")
    assert lived.returncode == 0, lived.stderr
    entries = [entry.split(":") for entry in (tmp_path / "log").read_text().split()]
    shards = [int(shard) for shard, _ in entries]
    assert sorted(shards) == list(range(len(shards))) and len(shards) > 4
    # The first to take the deadly shard died; the other wrote all others before it took that too.
    assert len(before) == len(shards) - 1
    assert len({process for _, process in entries[: len(before)]}) == 2
    expected = rl.collect(rl.load_model(tmp_path / "model", device="cpu"), make_statements())
    assert_close(rl.HeadCache.load(tmp_path / "s"), expected)


class FakeRay:
    """As much of Ray as `spread` uses; a worker runs when it is asked, and dies at a shard of `deadly`."""

    class exceptions:  # noqa: N801 (Ray's name)
        RayActorError = ConnectionError
        RayTaskError = ChildProcessError

    def __init__(self, deadly=()):
        self.deadly, self.workers = set(deadly), []

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def put(self, value):
        return value

    def remote(self, **resources):
        def of(make):
            def started(*args):
                worker, ray = make(*args), self

                class Write:
                    @staticmethod
                    def remote(shard):
                        ray.workers.append(worker)
                        if shard in ray.deadly:
                            return ("died", shard)
                        worker.write(shard)
                        return ("wrote", shard)

                return SimpleNamespace(write=Write)

            return SimpleNamespace(remote=started)

        return of

    def wait(self, running):
        return running[:1], running[1:]

    def get(self, reference):
        if reference[0] == "died":
            # It kills one worker.
            self.deadly.remove(reference[1])
            raise self.exceptions.RayActorError


def fake_run(store, n):
    return SimpleNamespace(
        options={},
        missing=lambda _: [i for i in range(n) if i not in store.done],
        write=lambda _, i: store.done.append(i),
    )


def test_a_shard_of_a_dead_worker_is_written_by_another(monkeypatch, tmp_path):
    ray, store = FakeRay(deadly=[1]), SimpleNamespace(done=[], path=tmp_path)
    monkeypatch.setitem(sys.modules, "ray", ray)
    ray_workers.spread(fake_run(store, 5), store, 2, progress=True)
    assert sorted(store.done) == [0, 1, 2, 3, 4]
    assert len({id(worker) for worker in ray.workers}) == 2
    # All are done: no worker is begun.
    ray.workers.clear()
    ray_workers.spread(fake_run(store, 5), store, 2, progress=False)
    assert ray.workers == []


def test_when_all_workers_have_died_the_rest_is_named(monkeypatch, tmp_path):
    ray, store = FakeRay(deadly=[1, 2]), SimpleNamespace(done=[], path=tmp_path)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(RankError, match="All 2 workers of Ray have died, with [34] shards left"):
        ray_workers.spread(fake_run(store, 5), store, 2, progress=False)
    assert 0 in store.done


def test_wrong_numbers_of_workers_and_a_missing_package(monkeypatch, tmp_path):
    with pytest.raises(InvalidArgumentError, match="`workers` needs `engine='ray'`; got 2 with 'vllm'"):
        collect_with_engine("tiny", make_statements(), tmp_path / "s", workers=2)
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    with pytest.raises(MissingPackageError, match=r"needs the package ray: pip install 'radiant-lens\[ray\]'"):
        collect_with_engine("tiny", make_statements(), tmp_path / "s", engine="ray")


@pytest.mark.parametrize(
    ("resources", "options", "message"),
    [
        ({"CPU": 2.0}, {}, "`workers` must be at most 2: each needs 1 CPU, and the cluster of Ray has 2; got 3."),
        (
            {"CPU": 64.0, "GPU": 8.0},
            {"tensor_parallel_size": 4},
            "`workers` must be at most 2: each needs 4 GPU, and the cluster of Ray has 8; got 3.",
        ),
    ],
)
def test_more_workers_than_the_cluster_has_room_for(resources, options, message):
    class Cluster:
        cluster_resources = staticmethod(lambda: resources)

    with pytest.raises(InvalidArgumentError) as error:
        ray_workers._resources(Cluster, options, 3)
    assert str(error.value) == message
    assert ray_workers._resources(Cluster, options, 2)["num_gpus"] == options.get("tensor_parallel_size", 0)
