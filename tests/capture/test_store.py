"""Collecting to a folder gives the same cache as in memory, can be resumed, and never mixes two models or data sets."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import files_no_larger_than
from safetensors.torch import load_file

import radiant_lens as rl
from radiant_lens.capture import examples
from radiant_lens.capture import run as runs
from radiant_lens.capture import store as stores
from radiant_lens.capture.store import CacheStore
from radiant_lens.errors import ArtefactError, DataError, InvalidArgumentError, OutputError

COLUMNS = dict.fromkeys(("labels", "text_index", "positions"), lambda: torch.arange(5).split(3))
SHAPE = (5, 3, 2, 4)
# Some ten batches of the statements below.
collect = partial(rl.collect, max_tokens=400)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(runs, "SHARD_BYTES", 400_000)


@pytest.fixture(scope="module")
def statements(facts):
    return facts.statements[:60]


@pytest.fixture
def written(monkeypatch):
    """Numbers of the shards that are written, in order."""
    seen, write = [], CacheStore.write
    monkeypatch.setattr(CacheStore, "write", lambda self, i, *args: (seen.append(i), write(self, i, *args)))
    return seen


def assert_same(one: rl.HeadCache, other: rl.HeadCache) -> None:
    assert torch.equal(one.z, other.z)
    for name in ("labels", "text_index", "positions"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.texts, one.group_names, one.meta) == (other.texts, other.group_names, other.meta)


# The file


def test_rows_are_written_at_their_places(tmp_path):
    store = CacheStore(tmp_path / "s", {}, SHAPE, torch.float32, COLUMNS)
    z = torch.arange(2.0 * 2 * 8).reshape(2, 2, 2, 4) + 1
    store.write(0, torch.tensor([1, 4]), (0, 2), z)
    expected = torch.zeros(SHAPE)
    expected[1, 0], expected[1, 2], expected[4, 0], expected[4, 2] = z.flatten(0, 1)
    tensors = load_file(tmp_path / "s" / "tensors.safetensors")
    assert torch.equal(tensors["z"], expected)
    assert all(torch.equal(tensors[name], torch.arange(5)) for name in COLUMNS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision(tmp_path, dtype):
    store = CacheStore(tmp_path / "s", {}, SHAPE, dtype, COLUMNS)
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    store.write(0, torch.arange(5), (0, 1, 2), z)
    stored = load_file(tmp_path / "s" / "tensors.safetensors")["z"]
    assert stored.dtype == dtype and torch.equal(stored, z)


def test_an_unfinished_store_is_not_a_cache(tmp_path):
    store = CacheStore(tmp_path / "s", {}, SHAPE, torch.float32, COLUMNS)
    store.write(3, torch.arange(5), (0, 1, 2), torch.ones(SHAPE))
    assert (store.done, store.complete) == ({3}, False)
    with pytest.raises(ArtefactError, match="not a saved head cache"):
        rl.HeadCache.load(tmp_path / "s")
    store.finish({"texts": [str(i) for i in range(5)], "group_names": list("abcde"), "meta": {}})
    assert (store.done, store.complete) == (set(), True)
    assert torch.equal(rl.HeadCache.load(tmp_path / "s").z, torch.ones(SHAPE))


# Collecting


@pytest.mark.parametrize("kind", [bool, float])
def test_labels_of_other_kinds_are_whole_numbers(model, statements, kind, tmp_path):
    odd = [replace(s, label=kind(s.label)) for s in statements[:8]]
    expected = collect(model, statements[:8])
    for path in (None, tmp_path / "s"):
        cache = collect(model, odd, store=path)
        assert cache.labels.dtype == torch.int64
        assert_same(cache, expected)


def test_columns_come_in_chunks(model, statements, tmp_path, monkeypatch):
    expected = collect(model, statements, positions="all")
    monkeypatch.setattr(examples, "_TEXTS_AT_ONCE", 7)
    for path in (None, tmp_path / "s"):
        assert_same(collect(model, statements, positions="all", store=path), expected)


@pytest.mark.parametrize("options", [{}, {"positions": "last"}, {"layers": [2, 0, 1]}, {"max_tokens": 100}], ids=str)
def test_a_store_holds_what_memory_would(model, statements, tmp_path, written, options):
    stored = collect(model, statements, store=tmp_path / "s", **options)
    assert_same(stored, collect(model, statements, **options))
    assert written == list(range(len(written))) and len(written) > (3 if options.get("positions") != "last" else 0)
    assert sorted(os.listdir(tmp_path / "s")) == ["meta.json", "plan.json", "tensors.safetensors"]


def test_the_command_writes_a_store(model, facts, tmp_path, command_line):
    few = facts.head(4)
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps(asdict(s)) for s in few.statements))
    options = [
        "--data",
        tmp_path / "few.jsonl",
        "--layers",
        "0,2",
        "--max-tokens",
        400,
        "--device-map",
        "auto",
        "--json",
    ]
    status, out, err = command_line("collect", "--store", tmp_path / "s", *options)
    assert status == 0, err
    expected = collect(model, few.statements, layers=[0, 2])
    assert torch.equal(rl.HeadCache.load(tmp_path / "s").z, expected.z)
    assert json.loads(out)["shape"] == list(expected.z.shape)


def answers_of(facts):
    prompts = facts.bare_prompts[:40]
    return [s for p in prompts for s in map(p.answered, (*p.correct_answers, *p.incorrect_answers))]


@pytest.mark.parametrize(
    "recorded",
    [{}, {"rows": "separate"}, {"rows": "shared"}, {"rows": "short"}],
    ids=lambda plan: plan.get("rows", "old"),
)
def test_a_store_goes_on_with_the_rows_that_it_was_begun_with(model, facts, tmp_path, monkeypatch, recorded):
    """The shards of separate rows hold other examples than those of shared rows, long rows others than short ones."""
    statements, seen = answers_of(facts), []
    shares = recorded.get("rows") in ("shared", "short")
    monkeypatch.setattr(runs, "may_share", lambda model, longest: shares)
    collect(model, statements, store=tmp_path / "s")
    plan = json.loads((tmp_path / "s" / stores._PLAN).read_text())
    plan.pop("rows")
    (tmp_path / "s" / stores._PLAN).write_text(json.dumps({**plan, **recorded}))
    os.remove(tmp_path / "s" / stores.META)
    monkeypatch.setattr(runs, "may_share", lambda model, longest: (seen.append(longest), True)[1])
    again = collect(model, statements, store=tmp_path / "s")
    assert bool(seen) == shares
    assert json.loads((tmp_path / "s" / stores._PLAN).read_text()).get("rows") == recorded.get("rows")
    torch.testing.assert_close(again.z, collect(model, statements).z, rtol=1e-4, atol=1e-5)


def test_a_store_under_a_steering(model, statements, tmp_path, steering):
    stored = collect(model, statements, store=tmp_path / "s", steering=steering)
    assert_same(stored, collect(model, statements, steering=steering))
    assert not torch.equal(stored.z, collect(model, statements).z)


def test_a_store_keeps_the_provenance_of_the_run_that_finished_it(model, statements, tmp_path):
    first = collect(model, statements, store=tmp_path / "s")
    path = tmp_path / "s" / "meta.json"
    saved = json.loads(path.read_text())
    saved["meta"]["versions"]["torch"] = "an older one"
    path.write_text(json.dumps(saved))
    again = collect(model, statements, store=tmp_path / "s")
    assert again.meta == {**first.meta, "versions": {**first.meta["versions"], "torch": "an older one"}}
    assert again.meta == rl.HeadCache.load(tmp_path / "s").meta


def test_a_store_that_is_damaged_while_it_grows_is_an_error(model, statements, tmp_path, monkeypatch):
    write = CacheStore.write

    def damaging(self, shard, *args):
        write(self, shard, *args)
        with open(self.path / "tensors.safetensors", "r+b") as file:
            file.write(b"\xff" * 16)

    monkeypatch.setattr(CacheStore, "write", damaging)
    with pytest.raises(ArtefactError, match="The saved head cache at .*s' is damaged"):
        collect(model, statements, store=tmp_path / "s")


def test_a_finished_store_is_only_loaded(model, statements, tmp_path, written, monkeypatch):
    first = collect(model, statements, store=tmp_path / "s")
    n = len(written)
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model was run"))
    assert_same(first, collect(model, statements, store=tmp_path / "s"))
    assert len(written) == n


def test_marks_that_a_killed_run_left_are_removed(model, statements, tmp_path):
    first = collect(model, statements, store=tmp_path / "s")
    (tmp_path / "s" / "shard-000003.done").touch()
    assert_same(first, collect(model, statements, store=tmp_path / "s"))
    assert sorted(os.listdir(tmp_path / "s")) == ["meta.json", "plan.json", "tensors.safetensors"]


def test_an_interrupted_run_continues_where_it_stopped(model, statements, tmp_path, written, monkeypatch):
    class StopError(Exception):
        pass

    write = CacheStore.write

    def interrupted(self, i, *args):
        if i == 2:
            raise StopError
        write(self, i, *args)

    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(CacheStore, "write", interrupted)
        collect(model, statements, store=tmp_path / "s")
    assert written == [0, 1]
    stored = collect(model, statements, store=tmp_path / "s")
    assert written == list(range(len(written))) and len(written) > 3
    assert_same(stored, collect(model, statements))


KILLED = """
import os, signal, sys
import radiant_lens as rl
from radiant_lens.capture import run as runs
from radiant_lens.capture.store import CacheStore
runs.SHARD_BYTES = 400_000
write = CacheStore.write

def logged(self, i, *args):
    if i == 2 and sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, i, *args)
    with open(sys.argv[2], "a") as file:
        file.write(f"{i} ")

CacheStore.write = logged
rl.collect(rl.load_model("tiny"), rl.load_dataset("tiny-facts").statements[:60], max_tokens=400, store=sys.argv[1])
"""


def test_after_a_kill_no_shard_is_computed_twice(model, statements, tmp_path):
    def run(how: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(Path(rl.__file__).parents[1])}
        arguments = [str(tmp_path / "s"), str(tmp_path / "log"), how]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=False).returncode

    assert run("die") == -signal.SIGKILL
    assert not (tmp_path / "s" / "meta.json").exists()
    assert run("live") == 0
    shards = [int(i) for i in (tmp_path / "log").read_text().split()]
    assert shards == list(range(len(shards))) and len(shards) > 3
    torch.testing.assert_close(rl.HeadCache.load(tmp_path / "s").z, collect(model, statements).z)


# Refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": "last"}, r"positions = 'answer', now 'last'"),
        ({"max_tokens": 500}, "max_tokens = 400, now 500"),
        ({"layers": [1]}, r"layers = \[0, 1, 2, 3\], now \[1\]"),
        ({"data": "fewer"}, "data = "),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_the_store_stays(model, statements, tmp_path, change, words):
    collect(model, statements, store=tmp_path / "s")
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    data = statements[:-1] if change.pop("data", None) else statements
    with pytest.raises(ArtefactError, match="begun with other settings: .*" + words):
        collect(model, data, store=tmp_path / "s", **change)
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before


def test_a_steering_and_another_model_are_other_settings(model, statements, tmp_path, steering, foreign_folder):
    collect(model, statements, store=tmp_path / "s")
    with pytest.raises(ArtefactError, match="steering = None, now '"):
        collect(model, statements, store=tmp_path / "s", steering=steering)
    other = rl.load_model(str(foreign_folder), device="cpu")
    with pytest.raises(ArtefactError, match="model architecture = 'LlamaForCausalLM', now 'GPT2LMHeadModel'"):
        collect(other, statements, store=tmp_path / "s")


@pytest.mark.parametrize("kind", ["file", "saved cache", "other folder"])
def test_a_path_that_is_not_a_store_is_left_alone(model, statements, tmp_path, gaussian_cache, kind):
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("mine")
    elif kind == "saved cache":
        gaussian_cache().save(path)
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtefactError, match="exists and is not a store; it is left alone"):
        collect(model, statements, store=path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_model_with_ablated_heads_gets_no_activations_of_the_whole_one(statements, tmp_path):
    whole, ablated = rl.load_model("tiny"), rl.load_model("tiny")
    expected = collect(whole, statements, store=tmp_path / "s")
    width = ablated.cfg.d_head
    with torch.no_grad():
        ablated.original_model.model.layers[0].self_attn.o_proj.original_component.weight[1:, :width].zero_()
    with pytest.raises(ArtefactError, match="begun with other settings: model content = "):
        collect(ablated, statements, store=tmp_path / "s")
    assert not torch.allclose(collect(ablated, statements).z, expected.z, atol=0.1)
    assert_same(collect(whole, statements, store=tmp_path / "s"), expected)


def test_another_rule_for_special_tokens_is_another_setting(model, statements, tmp_path):
    stored = collect(model, statements, store=tmp_path / "s")
    assert stored.meta["model"]["prepend_bos"] is True
    without = rl.load_model("tiny", prepend_bos=False)
    with pytest.raises(ArtefactError, match="model prepend_bos = True, now False.*tokens = .*Choose another path"):
        collect(without, statements, store=tmp_path / "s")


def test_another_tokenizer_is_another_setting(statements, tmp_path):
    first = collect(rl.load_model("tiny"), statements, positions="last", store=tmp_path / "s")
    other = rl.load_model("tiny")
    ids = other.tokenizer.get_vocab()
    model = json.loads(other.tokenizer.backend_tokenizer.to_str())
    # Two words change places: as many tokens, at the same positions.
    model["model"]["vocab"] |= {"the": ids["of"], "of": ids["the"]}
    other.tokenizer.backend_tokenizer.model = type(other.tokenizer.backend_tokenizer).from_str(json.dumps(model)).model
    with pytest.raises(ArtefactError, match="begun with other settings: tokens = "):
        collect(other, statements, positions="last", store=tmp_path / "s")
    assert not torch.equal(collect(other, statements, positions="last").z, first.z)


def test_a_store_that_an_earlier_version_began_is_continued(model, statements, tmp_path):
    """Its plan has none of the settings that were added since; those that it has must be the same."""
    expected = collect(model, statements, store=tmp_path / "s")
    path = tmp_path / "s" / "plan.json"
    plan = json.loads(path.read_text())
    added = ("model content", "model quantization", "model adapters", "model prepend_bos", "tokens")
    path.write_text(json.dumps({name: value for name, value in plan.items() if name not in added}))
    assert_same(collect(model, statements, store=tmp_path / "s"), expected)
    path.write_text(json.dumps({**plan, "tokens": None}))
    with pytest.raises(ArtefactError, match="tokens = None, now"):
        collect(model, statements, store=tmp_path / "s")
    path.write_text("{}")
    with pytest.raises(ArtefactError, match="model weights = None, now"):
        collect(model, statements, store=tmp_path / "s")


def test_no_room_for_the_store_at_all(model, statements, tmp_path):
    with files_no_larger_than(1000), pytest.raises(OutputError, match="/s' cannot be written .File too large.; what "):
        collect(model, statements, store=tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["a shard", "its mark", "the end"])
def test_a_disk_that_fills_up_later_leaves_what_is_done(model, statements, tmp_path, written, monkeypatch, at):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if at == "a shard":
            write = CacheStore.write

            # The system is out of room from the third shard on.
            def crowded(self, i, *args):
                patched.setattr(os, "fsync", full if i == 2 else os.fsync)
                write(self, i, *args)

            patched.setattr(CacheStore, "write", crowded)
        elif at == "its mark":
            patched.setattr(Path, "touch", full)
        else:
            patched.setattr(stores, "write_meta", full)
        words = r"/s' cannot be written \(No space left on device\); its shards that are done stay, and the same call"
        with pytest.raises(OutputError, match=words):
            collect(model, statements, store=tmp_path / "s")
    done = len(list((tmp_path / "s").glob("shard-*.done")))
    again = len(written)
    assert_same(collect(model, statements, store=tmp_path / "s"), collect(model, statements))
    recomputed = written[again:]
    assert {"a shard": done == 2, "its mark": done == 0, "the end": done > 3}[at]
    assert recomputed[0:1] == ([] if at == "the end" else [done])


def test_hooks_cannot_be_resumed(model, statements, tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be used with `fwd_hooks`"):
        collect(model, statements, store=tmp_path / "s", fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z)])
    assert not (tmp_path / "s").exists()


def test_activations_that_are_not_finite_are_never_marked_as_done(model, statements, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "_fill", lambda run, z, batches, examples: z.fill_(torch.inf))
    with pytest.raises(DataError, match="activations of shard 0"):
        collect(model, statements, store=tmp_path / "s")
    assert not list((tmp_path / "s").glob("*.done"))
    assert json.loads((tmp_path / "s" / "plan.json").read_text())["positions"] == "answer"
