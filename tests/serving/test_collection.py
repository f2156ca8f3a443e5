"""Activations that vLLM collects are those of `rl.collect`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from serving.engines import before_release, make_model

import radiant_lens as rl
from radiant_lens.capture import collect_with_engine, engine_run
from radiant_lens.capture.store import CacheStore
from radiant_lens.errors import ArtefactError, DataError, InvalidArgumentError
from radiant_lens.models.tokens import answer_rows
from radiant_lens.serving.collecting_worker import KeptHeads
from radiant_lens.serving.head_reader import join_parts

# vLLM warns of much as it is imported and started.
pytestmark = pytest.mark.filterwarnings("ignore")
# Passes of 24 tokens: longer texts are read in chunks. Blocks of 32 tokens, the smallest on CPUs.
SMALL = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "block_size": 32}


def make_statements() -> list[rl.Statement]:
    """Answers to prompts of several lengths, some of them beyond a block of the prefix cache, and one prompt twice."""
    statements = []
    for n in (1, 5, 20, 40, 40):
        prompt = " ".join(f"w{(7 * i + n) % 50}" for i in range(n))
        for k in range(3):
            answer = " ".join(f" w{(3 * i + k) % 50}" for i in range(2 + 3 * k))
            statements.append(rl.Statement(f"{prompt}{answer}", k % 2, f"{n}", len(prompt)))
    return statements


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(engine_run, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(engine_run, "_TEXTS_AT_ONCE", 2)


def assert_close(one: rl.HeadCache, other: rl.HeadCache) -> None:
    torch.testing.assert_close(one.z, other.z, rtol=1e-5, atol=1e-5)
    for name in ("labels", "text_index", "positions"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.texts, one.group_names) == (other.texts, other.group_names)
    assert one.meta["model"] == other.meta["model"]


# vLLM runs GPT-NeoX with the code of transformers, whose activations have one axis more.
@pytest.mark.parametrize("model_type", ["llama", *before_release("qwen3", "gpt_neox")])
def test_every_choice_of_positions_and_layers(vllm, model_type, tmp_path, small_shards):
    make_model(model_type, tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    choices = [{}, {"positions": "all", "layers": [1]}, {"positions": [-1, 0]}]
    for i, options in enumerate(choices if model_type == "llama" else choices[:1]):
        expected = rl.collect(bridge, statements, **options)
        cache = collect_with_engine(tmp_path / "model", statements, tmp_path / f"s{i}", options=SMALL, **options)
        assert_close(cache, expected)
        assert cache.meta.get("layers") == expected.meta.get("layers")


def test_chunks_and_the_prefix_cache_are_used(vllm, tmp_path, small_shards, monkeypatch):
    """Answers to one prompt share its blocks, but for those with a kept token."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    hits, find = [], KVCacheManager.get_computed_blocks

    def count(self, request):
        result = find(self, request)
        hits.append(result[1])
        return result

    monkeypatch.setattr(KVCacheManager, "get_computed_blocks", count)
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    assert_close(
        collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=SMALL),
        rl.collect(bridge, statements),
    )
    # Five of the six answers to the prompt of 40 words find its first block.
    assert sum(n == 32 for n in hits) == 5 and max(hits) == 32
    # The same without the key: blocks with kept tokens are found, and what is not computed is not kept.
    from radiant_lens.serving import kept_rows

    monkeypatch.setattr(kept_rows, "keep_key", lambda *args: None)
    with pytest.raises(DataError, match="activations of shard"):
        collect_with_engine(tmp_path / "model", statements, tmp_path / "all", options=SMALL, positions="all")


def test_answers_share_their_whole_prompt(vllm, tmp_path, monkeypatch):
    """Also within a block: every prompt is computed once, and of the other answers their own tokens."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from radiant_lens.serving import prompt_tails

    scheduled, schedule = [], Scheduler.schedule

    def count(self, *args, **options):
        output = schedule(self, *args, **options)
        scheduled.append(output.total_num_scheduled_tokens)
        return output

    monkeypatch.setattr(Scheduler, "schedule", count)
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    expected = rl.collect(bridge, statements)
    # A text whose answer begins within a block, and that ends in another one.
    assert_close(collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=SMALL), expected)
    rows = [(row[:start], row[start:]) for row, start in answer_rows(bridge, statements)]
    own = sum(len(answer) for _, answer in rows)
    assert sum(scheduled) == own + sum(len(prompt) for prompt in {tuple(prompt) for prompt, _ in rows})
    # The same without: each answer computes what its prompt has beyond whole blocks.
    scheduled.clear()
    monkeypatch.setattr(prompt_tails, "shared_prefix", lambda tokens, positions: ())
    assert_close(collect_with_engine(tmp_path / "model", statements, tmp_path / "t", options=SMALL), expected)
    assert sum(scheduled) == own + sum(len(p) - 32 * (len(p) > 32) for p, _ in rows) + 32


def test_few_blocks_are_held_at_a_time(vllm, tmp_path, monkeypatch):
    from radiant_lens.serving import prompt_tails

    monkeypatch.setattr(prompt_tails, "MOST", 1)
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    # Seven blocks of the cache: a text takes two of them.
    options = {**SMALL, "num_gpu_blocks_override": 8}
    cache = collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=options)
    assert_close(cache, rl.collect(bridge, statements))


def test_what_two_processes_keep_of_heads_and_layers_is_joined():
    z = torch.arange(3 * 2 * 4 * 2, dtype=torch.float32).view(3, 2, 4, 2)
    # Two ranks of tensor parallelism in one stage with layer 5, and one process with layer 2.
    parts = [KeptHeads((5,), 0, z[:, 1:, :2]), KeptHeads((5,), 2, z[:, 1:, 2:].double()), KeptHeads((2,), 0, z[:, :1])]
    joined = torch.full_like(z, torch.nan)
    join_parts(parts, (2, 5), joined)
    assert torch.equal(joined, z)
    joined[:] = torch.nan
    join_parts(parts[:1], (2, 5), joined)
    assert torch.equal(joined[:, 1, :2], z[:, 1, :2]) and int(joined.isnan().sum()) == 3 * 2 * 6


@pytest.mark.slow
def test_two_tensor_parallel_processes(vllm, tmp_path):
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    options = {**SMALL, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    cache = collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=options, layers=[0])
    assert_close(cache, rl.collect(bridge, statements, layers=[0]))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[5])
from radiant_lens.capture import collect_with_engine, engine_run
from radiant_lens.capture.store import CacheStore
from serving.test_collection import SMALL, make_statements
engine_run.SHARD_BYTES, engine_run._TEXTS_AT_ONCE = 20_000, 2
write = CacheStore.write

def logged(self, i, *args):
    if i == 2 and sys.argv[4] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, i, *args)
    with open(sys.argv[3], "a") as file:
        file.write(f"{i} ")

CacheStore.write = logged
collect_with_engine(sys.argv[1], make_statements(), sys.argv[2], options=SMALL)
"""


@pytest.mark.slow
def test_after_a_kill_nothing_is_lost_and_nothing_computed_twice(vllm, tmp_path, small_shards):
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()

    def run(how: str) -> int:
        tests = str(Path(__file__).parents[1])
        arguments = [str(tmp_path / "model"), str(tmp_path / "s"), str(tmp_path / "log"), how, tests]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode

    assert run("die") == -signal.SIGKILL
    assert not (tmp_path / "s" / "meta.json").exists()
    assert run("live") == 0
    shards = [int(i) for i in (tmp_path / "log").read_text().split()]
    assert shards == list(range(len(shards))) and len(shards) > 3
    assert_close(rl.HeadCache.load(tmp_path / "s"), rl.collect(bridge, statements))


def test_a_store_goes_on_with_its_own_engine_alone(vllm, tmp_path, small_shards, monkeypatch):
    make_model("llama", tmp_path / "model")
    bridge, statements = rl.load_model(tmp_path / "model", device="cpu"), make_statements()
    with monkeypatch.context() as broken:
        write = CacheStore.write
        broken.setattr(CacheStore, "write", lambda self, i, *rest: 1 / 0 if i == 2 else write(self, i, *rest))
        with pytest.raises(ZeroDivisionError):
            collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=SMALL)
    with pytest.raises(ArtefactError, match="begun with other settings: engine = 'vllm', now 'transformers'"):
        rl.collect(bridge, statements, store=tmp_path / "s")
    whole = collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=SMALL)
    assert_close(whole, rl.collect(bridge, statements))
    # A complete store is loaded without an engine.
    monkeypatch.setattr(vllm, "LLM", None)
    assert_close(collect_with_engine(tmp_path / "model", statements, tmp_path / "s"), whole)
    rl.collect(bridge, statements, store=tmp_path / "other")
    with pytest.raises(ArtefactError, match="engine = 'transformers', now 'vllm'"):
        collect_with_engine(tmp_path / "model", statements, tmp_path / "other")


def test_a_text_may_fill_the_context(vllm, tmp_path):
    make_model("llama", tmp_path / "model", max_position_embeddings=24)
    bridge = rl.load_model(tmp_path / "model", device="cpu")
    texts = [" ".join(["w1"] * n) for n in range(8, 30)]
    (full,) = (text for text in texts if len(bridge.tokenizer(text).input_ids) == 24)
    statements = [rl.Statement(full, 1, "a", 0), rl.Statement("w1 w2", 0, "b", 0)]
    cache = collect_with_engine(tmp_path / "model", statements, tmp_path / "s", options=SMALL)
    assert_close(cache, rl.collect(bridge, statements))


# Refusals


def test_what_cannot_be_collected(vllm, tmp_path, monkeypatch):
    statements = make_statements()
    make_model("llama", tmp_path / "model")
    for options, message in (
        ({"engine": "vlm"}, "`engine` must be"),
        ({"options": {"seed": 1}}, "`options` must not hold 'seed', which the collection sets: leave it out"),
        ({"layers": [7]}, "`layers` must"),
        ({"positions": "first"}, "`positions` must"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            collect_with_engine(tmp_path / "model", statements, tmp_path / "s", **options)
    with pytest.raises(InvalidArgumentError, match="`model` must be a .*vLLM loads a model by its name or folder"):
        collect_with_engine(object(), statements, tmp_path / "s")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgumentError, match="starts its own processes; 2 were launched"):
        collect_with_engine(tmp_path / "model", statements, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_command_writes_a_store(vllm, tmp_path, command_line, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_STREAM", "elsewhere")
    monkeypatch.delenv("VLLM_LOGGING_STREAM")
    make_model("llama", tmp_path / "model")
    statements = make_statements()
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps(asdict(s)) for s in statements))
    line = ["--model", tmp_path / "model", "--data", tmp_path / "few.jsonl", "--store", tmp_path / "s"]
    line += ["--engine", "vllm", "--engine-options", json.dumps(SMALL), "--layers", "1", "--json"]
    status, output, err = command_line("collect", *line)
    assert status == 0, err
    # Standard output is for the result; processes that begin after this read the setting.
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    expected = rl.collect(rl.load_model(tmp_path / "model", device="cpu"), statements, layers=[1])
    assert_close(rl.HeadCache.load(tmp_path / "s"), expected)
    assert json.loads(output)["shape"] == list(expected.z.shape)
