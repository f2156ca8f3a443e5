"""Processes of one launch share the work of collect, evaluate and ablate, also after one of them was killed."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch
from launches import Launch, assert_all_once, write_data

import radiant_lens as rl
from radiant_lens import distributed as ranks
from radiant_lens import linalg
from radiant_lens.capture import _collect
from radiant_lens.capture import run as runs
from radiant_lens.distributed import Rank, alone, launched, shared, this_rank
from radiant_lens.errors import RankError
from radiant_lens.policies import shared_solve
from radiant_lens.solvers.problem import UncertifiedError
from radiant_lens.studies import Study, grid
from radiant_lens.studies import study as study_module


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.fixture
def data(tmp_path, facts):
    return write_data(facts, tmp_path / "few.jsonl")


# One process


def test_a_process_by_itself_is_the_only_rank():
    assert this_rank() == launched() == Rank(0, 1)
    Rank(0, 1).wait()
    assert Rank(0, 1).gather("mine") == ["mine"]


def test_alone_shares_nothing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert this_rank() == Rank(1, 2)
    with alone():
        assert this_rank() == Rank(0, 1)
    assert this_rank() == Rank(1, 2)


@pytest.mark.parametrize("n_items", [0, 1, 2, 7])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_shares_are_put_together_in_order(monkeypatch, n_items, n):
    """Every rank's turn in one process: first what each hands in, then what each gets."""
    items, handed = list(range(n_items)), []

    def work(mine):
        assert mine
        return [f"result {i}" for i in mine]

    def hand_in(self, mine):
        handed.append(mine)
        raise RankError

    monkeypatch.setattr(Rank, "gather", hand_in)
    for number in range(n):
        monkeypatch.setattr(ranks, "this_rank", lambda number=number: Rank(number, n))
        with pytest.raises(RankError):
            shared(items, work)
    monkeypatch.setattr(Rank, "gather", lambda self, mine: handed)
    assert shared(items, work) == [f"result {i}" for i in items]
    parts = [Rank(number, n).part(items) for number in range(n)]
    assert list(chain(*parts)) == items
    for sizes in (list(map(len, parts)), list(map(len, handed))):
        assert max(sizes) - min(sizes) <= 1


def test_the_death_of_another_rank_is_one_sentence(monkeypatch):
    def closed(gathered, mine):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", closed)
    with pytest.raises(RankError, match="Rank 1 of 2 stopped because another one has died"):
        Rank(1, 2).wait()


# Two processes on one machine


@pytest.mark.slow
def test_a_killed_rank_fails_collect_and_a_rerun_computes_no_shard_twice(model, data, tmp_path, launch):
    command = ("collect", "--data", data, "--max-tokens", 400, "--store", tmp_path / "store", "--json")
    failed = launch(*command, how="die")
    assert failed.returncode != 0
    assert "rank      : 1" in failed.stderr and "Signal 9 (SIGKILL)" in failed.stderr
    assert not (tmp_path / "store" / "meta.json").exists()
    before = sum(map(len, launch.done()))
    finished = launch(*command)
    assert finished.returncode == 0, finished.stderr
    assert_all_once(launch.done())
    assert sum(map(len, launch.done())) > before >= 2
    expected = rl.collect(model, rl.load_dataset(data), max_tokens=400)
    stored = rl.HeadCache.load(tmp_path / "store")
    torch.testing.assert_close(stored.z, expected.z, rtol=1e-4, atol=1e-5)
    assert (stored.texts, stored.group_names, stored.meta) == (expected.texts, expected.group_names, expected.meta)
    # Rank 0 alone speaks.
    assert json.loads(finished.stdout)["examples"] == len(expected)


def test_two_ranks_evaluate_as_one(model, data, tmp_path, launch, steering):
    steering.save(tmp_path / "steering")
    out = tmp_path / "evaluation.json"
    arguments = ["--data", data, "--part", "all", "--steering", tmp_path / "steering", "--samples", 2, "--out", out]
    families = [part for family in ("answers", "text", "choice", "diversity") for part in ("--metrics", family)]
    finished = launch("evaluate", *arguments, *families, "--json")
    assert finished.returncode == 0, finished.stderr
    expected = rl.evaluate(
        model, rl.load_dataset(data), steering, n_samples=2, metrics=["answers", "text", "choice", "diversity"]
    )
    saved = rl.Evaluation.load(out)
    pd.testing.assert_frame_equal(saved.table, expected.table)
    pd.testing.assert_frame_equal(saved.parts, expected.parts, rtol=1e-4, atol=1e-5)
    assert set(json.loads(finished.stdout)["metrics"]) == set(expected.metrics)


def study(data: Path) -> Study:
    return Study("grid", grid(policy="iti", alpha=[1.0, 2.0]), data=data, n_samples=1)


@pytest.mark.slow
def test_a_killed_rank_fails_a_study_and_a_rerun_computes_no_cell_twice(data, tmp_path, launch):
    command = ("ablate", "--vary", "policy=iti", "--vary", "alpha=1.0,2.0", "--data", data, "--samples", 1)
    command = (*command, "--out", tmp_path / "study", "--json")
    failed = launch(*command, how="die")
    assert failed.returncode != 0
    assert "rank      : 1" in failed.stderr and "Signal 9 (SIGKILL)" in failed.stderr
    before = sum(map(len, launch.done()))
    finished = launch(*command)
    assert finished.returncode == 0, finished.stderr
    assert_all_once(launch.done())
    expected = study(data).run()
    assert expected.n_computed == sum(map(len, launch.done())) > before >= 2
    (row,) = json.loads(finished.stdout)["studies"]
    assert row["computed"] == expected.n_computed - before
    rows = pd.DataFrame(row["rows"]).astype(expected.to_dataframe().dtypes.to_dict())
    pd.testing.assert_frame_equal(rows, expected.to_dataframe(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_accelerate_launches_as_well(model, data, tmp_path, launch):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = ("collect", "--data", data, "--max-tokens", 400, "--store", tmp_path / "store", "--json")
    finished = launch(*command, launcher=launcher)
    assert finished.returncode == 0, finished.stderr
    assert_all_once(launch.done(), each=2)
    expected = rl.collect(model, rl.load_dataset(data), max_tokens=400)
    torch.testing.assert_close(rl.HeadCache.load(tmp_path / "store").z, expected.z, rtol=1e-4, atol=1e-5)


MOMENTS = """
import sys
import radiant_lens as rl
from radiant_lens import linalg
from radiant_lens.detectors import detector as fitting, subset
from radiant_lens.distributed import this_rank, together

# Several chunks of the activations, and of the heads.
linalg.CHUNK_BYTES = subset.HEADS_BYTES = 2**12
rank, n_fits, fit_heads = this_rank(), 0, fitting.fit_heads
cache = rl.HeadCache.load(sys.argv[1])

def counting(*args, **kwargs):
    global n_fits
    n_fits += 1
    return fit_heads(*args, **kwargs)

def fit(name, heads):
    detector = rl.RiskAwareDetector().fit(cache)
    for geometry in ("mahalanobis", "procrustes"):
        policy = rl.RadiantPolicy(gamma=0.05, heads=heads, geometry=geometry)
        policy.fit(cache, detector).save(f"{sys.argv[2]}-{geometry}-{heads}-{name}")

fitting.fit_heads = counting
for heads in (1, 3):
    if rank.number == 0:
        fit("alone", heads)
        assert n_fits == 6
    n_fits = 0
    with together():
        fit(rank.number, heads)
    assert n_fits == 3
    n_fits = 0
"""


def test_ranks_fit_detectors_and_policies_together(gaussian_cache, tmp_path, launch):
    gaussian_cache(400).save(tmp_path / "cache")
    (tmp_path / "script.py").write_text(MOMENTS)
    finished = launch(tmp_path / "cache", tmp_path / "steering")
    assert finished.returncode == 0, finished.stderr
    z = gaussian_cache(50, seed=1).z
    # One head: a rank has none to solve for.
    for kind in (f"{geometry}-{heads}" for geometry in ("mahalanobis", "procrustes") for heads in (1, 3)):
        alone, *both = (rl.Steering.load(tmp_path / f"steering-{kind}-{name}") for name in ("alone", 0, 1))
        for layer in alone.layers:
            expected = alone.edit(z[:, layer], layer)
            assert not torch.equal(expected, z[:, layer])
            for steering in both:
                torch.testing.assert_close(steering.edit(z[:, layer], layer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrink_below", [0.0, 1e9])
def test_moments_are_sums_over_what_each_rank_has_read(monkeypatch, shrink_below):
    monkeypatch.setattr(linalg, "CHUNK_BYTES", 2**8)
    x = torch.randn(37, 2, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(37 * 2).reshape(37, 2) % 3 > 0
    expected = linalg.masked_moments(x, mask, shrink_below=shrink_below)
    handed, met = [None] * 3, threading.Barrier(3)

    def add(self, mine):
        handed[self.number] = mine.clone()
        met.wait()
        total = sum(handed)
        met.wait()
        return total

    second = mask[:, 0]

    def by_class(workers):
        means = linalg.class_means(x, second, workers=workers)
        sums = linalg.MaskedSums(mask, means)
        scatters = linalg.class_scatters(x, second, means, shrink_below=shrink_below, masked=sums, workers=workers)
        # Asked twice: the sums of a rank must not become those of all.
        return [scatter.moments() for scatter in scatters] + [sums.moments(workers), sums.moments(workers)]

    of_classes = by_class(linalg.ONE_PROCESS)

    def turn(number):
        workers = Rank(number, 3)
        return linalg.masked_moments(x, mask, shrink_below=shrink_below, workers=workers), by_class(workers)

    monkeypatch.setattr(Rank, "sum", add)
    with ThreadPoolExecutor(3) as pool:
        for masked, classes in pool.map(turn, range(3)):
            for moments, wanted in zip([masked, *classes], [expected, *of_classes]):
                torch.testing.assert_close(moments.mean, wanted.mean)
                torch.testing.assert_close(moments.covariance, wanted.covariance)
    monkeypatch.setattr(Rank, "sum", lambda self, mine: mine)
    masked, classes = turn(1)
    assert not torch.allclose(masked.mean, expected.mean)
    assert not torch.allclose(classes[0].mean, of_classes[0].mean)


def test_a_problem_that_a_rank_cannot_solve_has_its_place_among_all(monkeypatch):
    def failing(x):
        assert x.tolist() == [2, 3, 4]
        raise UncertifiedError("no", [(0,), (2,)])

    monkeypatch.setattr(shared_solve, "fitting_rank", lambda: Rank(1, 2))
    with pytest.raises(UncertifiedError) as failed:
        shared_solve.solve_shared(failing, torch.arange(5))
    assert failed.value.index == [(2,), (4,)]


# Refusals


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("fit", "--out", "o"), "`fit` runs in one process; 2 were launched"),
        (("demo",), "`demo` runs in one process; 2 were launched"),
        (("collect", "--out", "o"), "`collect --out` runs in one process; 2 were launched. `--store` is shared"),
    ],
)
def test_commands_that_cannot_be_shared_are_refused(monkeypatch, command_line, command, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    status, _, err = command_line(*command)
    assert status == 2
    assert err.startswith("radiant-lens: rank 1: ") and words in err


def test_a_rank_that_does_not_see_the_store_says_so(monkeypatch, model, facts, tmp_path):
    monkeypatch.setattr(_collect, "this_rank", lambda: Rank(1, 2))
    monkeypatch.setattr(Rank, "gather", lambda self, mine: [mine] * self.n)
    with pytest.raises(RankError, match="Rank 1 of 2 does not see the store .* a folder that all machines share"):
        rl.collect(model, facts.statements[:5], store=tmp_path / "s")


def test_shards_that_other_ranks_wrote_elsewhere_are_an_error(monkeypatch, model, facts, tmp_path):
    monkeypatch.setattr(_collect, "this_rank", lambda: Rank(0, 2))
    monkeypatch.setattr(Rank, "gather", lambda self, mine: [mine] * self.n)
    monkeypatch.setattr(runs, "SHARD_BYTES", 100_000)
    with pytest.raises(RankError, match=r"Rank 0 sees \d+ of the \d+ shards"):
        rl.collect(model, facts.statements[:40], store=tmp_path / "s", max_tokens=400)
    assert not (tmp_path / "s" / "meta.json").exists()


def test_cells_that_other_ranks_wrote_elsewhere_are_an_error(monkeypatch, data, tmp_path):
    monkeypatch.setattr(study_module, "this_rank", lambda: Rank(1, 2))
    monkeypatch.setattr(Rank, "gather", lambda self, mine: [mine] * self.n)
    unfinished = Study("grid", grid(policy="iti"), data=data, n_samples=1, out=tmp_path / "study")
    monkeypatch.setattr(Study, "_compute", lambda *args, **kwargs: None)
    with pytest.raises(RankError, match=r"Rank 1 of 2 does not see \d+ cells that others computed"):
        unfinished.run()
