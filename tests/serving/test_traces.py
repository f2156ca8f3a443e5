"""Traces of requests: what the file holds is what `rl.steer` traces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from plain_models import shape
from serving.engines import Engine, make_model, prompts
from serving.steerings import make_steering

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, OutputError
from radiant_lens.serving import engine_config
from radiant_lens.serving.batched_editor import make_batched_editor
from radiant_lens.serving.catalog import read_catalog
from radiant_lens.serving.request_traces import RequestTraces, TracedRequest

# vLLM warns of much as it is imported and started.
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 4, 8)


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_votes_and_edits_of_traced_rows(tmp_path):
    steerings = [make_steering(SHAPE, gate="head", seed=1), make_steering(SHAPE, gate="vote", seed=2)]
    z = torch.randn(6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    editor = make_batched_editor(steerings, 1, like=z)
    traces = RequestTraces(tmp_path / "t.jsonl", process=3)
    traces.add("a", TracedRequest("vote", 1, 0.5, first=1))
    traces.add("b", None)
    traces.add("c", TracedRequest("head", 0, 1.0, first=0))
    # Of "a" the position before the last prompt token, which is not edited, and two that are; of "c" one.
    traces.fill(["a", "b", "c"], np.array([3, 2, 1]), np.array([0, 0, 0]))
    numbers = torch.tensor([-1, 1, 1, -1, -1, 0])
    edited = editor.apply(z, numbers, torch.ones(6))
    traces.record(editor, edited)
    traces.remove(["a", "b", "c", "unknown"])
    first, second = read_lines(tmp_path / "t.jsonl")
    assert [t["position"] for t in first["tokens"]] == [1, 2]
    assert (first["request"], first["steering"], first["strength"], first["process"]) == ("a", "vote", 0.5, 3)
    assert second["tokens"][0]["votes"] == {}
    for token, row in ((first["tokens"][0], 1), (first["tokens"][1], 2), (second["tokens"][0], 5)):
        steering = steerings[int(numbers[row])]
        scores = steering.scores
        heads = z[row].unflatten(0, (4, 8))
        flagged = ((scores.weights[1] * heads).sum(-1) + scores.biases[1] >= 0).tolist()
        votes = sum(flagged)
        if steering.gate == "vote":
            assert token["votes"] == {"1": votes}
        is_open = steering.gate == "head" or votes >= int(scores.thresholds[1])
        expected = [s.head for s in steering.sites if s.layer == 1 and flagged[s.head] and is_open]
        assert token["edited"] == ({"1": expected} if expected else {})
    assert any(t["edited"] for t in first["tokens"] + second["tokens"])


def test_a_full_disk_loses_traces_and_not_the_engine(tmp_path, caplog):
    traces = RequestTraces(tmp_path / "gone" / "t.jsonl", process=0)
    traces.add("a", TracedRequest("x", 0, 1.0, first=0))
    traces.remove(["a"])
    assert "Traces of 1 requests are lost" in caplog.text


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path):
    make_steering(SHAPE).save(tmp_path / "s")
    config = engine_config({"a": tmp_path / "s"}, trace_file=tmp_path / "gone" / "t.jsonl")
    with pytest.raises(OutputError, match="t.jsonl' cannot be written"):
        read_catalog(config)


def test_a_trace_is_that_of_steer(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    steerings = {
        "vote": make_steering(shape(model), gate="vote", size=2.0, seed=3),
        "head": make_steering(shape(model), gate="head", seed=4),
    }
    rows = prompts(6, longest=40)
    file = tmp_path / "traces.jsonl"
    choices = [{"steering": name, "trace": True} for name in ("vote", "head", "vote", "head")] + [("vote", 1.0), None]
    with Engine(vllm, tmp_path / "model", steerings, trace_file=file, max_num_batched_tokens=16) as engine:
        outputs = engine.outputs(rows, choices)
    lines = {line["request"].split("-")[0]: line for line in read_lines(file)}
    assert len(lines) == 4
    edits = {"vote": 0, "head": 0}
    for row, choice, output in zip(rows[:4], choices, outputs):
        line, steering = lines[output.request_id.split("-")[0]], steerings[choice["steering"]]
        ids = torch.tensor([row])
        with rl.steer(model, steering, trace=True, allow_mismatch=True) as trace, torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None,
                min_new_tokens=12, max_new_tokens=12,
            )  # fmt: skip
        table = trace.to_dataframe()
        for position, (token, (_, expected)) in enumerate(
            zip(line["tokens"], table.groupby(["call", "position"], sort=False)), start=len(row) - 1
        ):
            assert token["position"] == position
            edited = expected[expected["gated"]].groupby("layer")["head"].apply(list).to_dict()
            assert token["edited"] == {str(layer): heads for layer, heads in edited.items()}
        assert len(line["tokens"]) == 12
        edits[choice["steering"]] += sum(bool(token["edited"]) for token in line["tokens"])
        assert all(bool(token["votes"]) == (choice["steering"] == "vote") for token in line["tokens"])
    assert min(edits.values()) > 0


def test_a_compiled_engine_cannot_trace(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    options = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}
    with pytest.raises(InvalidArgumentError, match="which a compiled model does not do: start the server with"):
        Engine(vllm, tmp_path / "model", {"a": make_steering(shape(model))}, trace_file=tmp_path / "t", **options)
