"""Kill a process at every single step of every write, in turn, and look at the files that are left.

Run by test_faults.py. A step is anything that changes files: Python reports it (audit events) before it happens, and
writes of content are split into nothing, half and all. Each fault has its own process, forked after the imports.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import make_cache
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens import _files, studies
from radiant_lens.capture import run as runs
from radiant_lens.capture import store as stores
from radiant_lens.capture.store import CacheStore
from radiant_lens.errors import ArtefactError
from radiant_lens.studies import study as study_module

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Steps:
    """Counts steps; at number `last` the process is killed."""

    def __init__(self) -> None:
        self.n, self.last = 0, -1

    def step(self) -> None:
        self.n += 1
        if self.n == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event != "open" or _writes(*arguments[1:3])):
            self.step()


def _writes(mode: object, flags: object) -> bool:
    return bool(isinstance(flags, int) and flags & WRITING) or (isinstance(mode, str) and mode != "r" and mode != "rb")


STEPS = Steps()


def in_halves(write: Callable[[bytes], object], content: bytes) -> None:
    """Nothing, half, and all of a file: three steps."""
    STEPS.step()
    write(content[: len(content) // 2])
    STEPS.step()
    write(content[len(content) // 2 :])
    STEPS.step()


def take_writes_apart() -> None:
    """Every way in which the package writes content, a half at a time."""
    save_file, fdopen = _files.save_file, os.fdopen

    def save_tensors(tensors: Any, path: Path) -> None:
        STEPS.step()
        save_file(tensors, path)
        content = path.read_bytes()
        with path.open("wb", buffering=0) as file:
            in_halves(file.write, content)

    def opened(*arguments: Any, **options: Any) -> Any:
        file = fdopen(*arguments, **options)
        raw = file.buffer.raw if hasattr(file, "buffer") else None
        if raw is not None and file.writable():
            file.writelines = lambda pieces: in_halves(raw.write, "".join(pieces).encode())
        return file

    def write_text(path: Path, text: str, **options: Any) -> None:
        with path.open("wb", buffering=0) as file:
            in_halves(file.write, text.encode())

    _files.save_file, os.fdopen = save_tensors, opened
    pathlib.Path.write_text = write_text
    vars(stores)["open"] = InHalves


class InHalves:
    """An open file of which every write is taken apart, and every other change is a step."""

    def __init__(self, path: Path, mode: str) -> None:
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 - it is a context manager itself

    def __enter__(self) -> InHalves:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> None:
        in_halves(self._file.write, content)

    def truncate(self, size: int) -> None:
        STEPS.step()
        self._file.truncate(size)


class Job(NamedTuple):
    """Something that writes below a folder, and what can be read there: "old", "new", or None for nothing."""

    name: str
    begin: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def _saved(name: str, old: Any, new: Any, load: Callable[[Path], Any], same: Callable[[Any, Any], bool]) -> list[Job]:
    """Two jobs: a first save, and one that replaces the old."""

    def read(folder: Path) -> object:
        try:
            artefact = load(folder / name)
        except ArtefactError:
            return "something broken" if (folder / name).exists() else None
        return "old" if same(artefact, old) else "new" if same(artefact, new) else "something else"

    return [
        Job(f"{name}, new", lambda folder: None, lambda folder: new.save(folder / name), read),
        Job(f"{name}, over an old one", lambda f: old.save(f / name), lambda f: new.save(f / name), read),
    ]


def _same_cache(a: rl.HeadCache, b: rl.HeadCache) -> bool:
    return torch.equal(a.z, b.z) and a.texts == b.texts and a.meta == b.meta


def _same_steering(a: rl.Steering, b: rl.Steering) -> bool:
    return a.sites == b.sites and a.meta == b.meta and torch.equal(a.scores.weights, b.scores.weights)


def _same_evaluation(a: rl.Evaluation, b: rl.Evaluation) -> bool:
    return a.table.equals(b.table) and a.parts.equals(b.parts) and a.settings == b.settings


def _page(path: Path) -> rl.Report:
    if not path.is_file():
        raise ArtefactError("there is no page")
    return rl.Report("page", path.read_text(encoding="utf-8"))


def jobs() -> list[Job]:
    """Whatever saves: collect, fit, evaluate, report, ablate, and collect shard by shard."""
    caches = make_cache(4), make_cache(4, seed=1)
    steerings = random_steering(2, 3, 4), random_steering(2, 3, 4, seed=1)
    evaluation, study_job = ablation()
    pages = rl.Report("page", "old " * 1000), rl.Report("page", "new " * 1000)
    return [
        *_saved("cache", *caches, rl.HeadCache.load, _same_cache),
        *_saved("steering", *steerings, rl.Steering.load, _same_steering),
        *_saved("evaluation", evaluation, replace(evaluation, settings={}), rl.Evaluation.load, _same_evaluation),
        *_saved("page", *pages, _page, lambda a, b: a.html == b.html),
        study_job,
        sharded(),
        Job("careless", lambda folder: _careless(folder, "old"), lambda folder: _careless(folder, "new"), _care),
    ]


def _careless(folder: Path, text: str) -> None:
    """The twin: a file that is written where it stands must be found broken."""
    (folder / "careless").write_text(text, encoding="utf-8")


def _care(folder: Path) -> object:
    return (folder / "careless").read_text(encoding="utf-8")


def sharded() -> Job:
    """Statements whose activations take four shards; none that is marked as done may be computed again."""
    model, statements = rl.load_model("tiny", device="cpu"), rl.load_dataset("tiny-facts").statements[:8]
    expected = rl.collect(model, statements, max_tokens=32)
    runs.SHARD_BYTES = expected.z.nbytes // 3
    compute, computed = CacheStore.write, set[int]()

    def write_shard(store: CacheStore, shard: int, *arguments: Any) -> None:
        computed.add(shard)
        compute(store, shard, *arguments)

    CacheStore.write = write_shard

    def write(folder: Path) -> None:
        done = {int(mark.stem.removeprefix("shard-")) for mark in (folder / "store").glob("shard-*.done")}
        computed.clear()
        rl.collect(model, statements, max_tokens=32, store=folder / "store")
        assert not computed & done

    def read(folder: Path) -> object:
        try:
            cache = rl.HeadCache.load(folder / "store")
        except ArtefactError:
            return None
        return "new" if _same_cache(cache, expected) else "something else"

    return Job("store", lambda folder: None, write, read)


def ablation() -> tuple[rl.Evaluation, Job]:
    """A study whose cells are known beforehand: what is under test is how they are kept."""
    model = rl.load_model("tiny", device="cpu")
    prompts = tuple(rl.Prompt(f"Q : what {i} ? A :", ("soup",), ("stew",), f"g{i}") for i in range(3))
    evaluation = rl.evaluate(model, rl.Dataset("soup", (), prompts), metrics=["answers"], max_new_tokens=3)

    class Known:
        def __init__(self, *arguments: object) -> None: ...

        def run(self, cell: Any) -> rl.Evaluation:
            return replace(evaluation, settings={"cell": cell.key})

    study_module.CellRunner = Known

    def study(folder: Path) -> rl.Study:
        return rl.Study("mine", studies.grid(gamma=[0.1]), seeds=(0,), out=folder / "study")

    def read(folder: Path) -> object:
        again = study(folder)
        missing = again.missing()
        done = [cell for cell in again.cells() if cell not in missing and _is(load(folder, cell), cell)]
        assert len(done) + len(missing) == len(again.cells())
        return "new" if not missing else None

    def load(folder: Path, cell: Any) -> rl.Evaluation:
        return rl.Evaluation.load(folder / "study" / "cells" / f"{cell.key}.json")

    def _is(found: rl.Evaluation, cell: Any) -> bool:
        return found.settings == {"cell": cell.key} and found.table.equals(evaluation.table)

    return evaluation, Job("study", lambda folder: None, lambda folder: study(folder).run(), read)


def killed_at(number: int, job: Job, folder: Path) -> bool:
    """Write in a process of its own that is killed at a step; False where it had finished before."""
    child = os.fork()
    if child == 0:
        take_writes_apart()
        STEPS.n, STEPS.last = 0, number
        try:
            job.write(folder)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"{job.name}, step {number}"
    return os.WIFSIGNALED(status)


def try_all(job: Job, folder: Path) -> dict[str, Any]:
    """Kill at step 1, 2, ... until the job gets through; what could be read after each, and after a rerun."""
    number, states = 0, []
    while True:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        job.begin(folder)
        before = job.read(folder)
        was_killed = killed_at(number, job, folder)
        after = job.read(folder)
        job.write(folder)
        states.append([before, after, job.read(folder), sorted(p.name for p in folder.glob(".*-old-*"))])
        if not was_killed:
            return {"job": job.name, "steps": number - 1, "states": states}


def main(folder: str) -> None:
    """All jobs; one line of JSON for each."""
    torch.set_num_threads(1)
    all_jobs = jobs()
    sys.addaudithook(STEPS.audit)
    for job in all_jobs:
        sys.stdout.write(json.dumps(try_all(job, Path(folder) / "place")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
