"""The parts of the plugin that touch vLLM, without vLLM: what it refuses, where it hooks, and whom it follows."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_models import random_model, shape
from serving.steerings import make_steering
from torch import nn

from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.serving import layer_edits
from radiant_lens.serving.batched_editor import make_batched_editor
from radiant_lens.serving.catalog import Catalog
from radiant_lens.serving.layer_edits import LayerEdits, install
from radiant_lens.serving.projections import find_projections, refuse_unserved
from radiant_lens.serving.requests import as_row
from radiant_lens.serving.rows import Rows, SteeredRequest
from radiant_lens.serving.runner import extra_args, follow


def make_config(**changes):
    parallel = {
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "use_ubatching": False,
        "enable_elastic_ep": False,
    }
    parallel.update({key: changes.pop(key) for key in list(changes) if key in parallel})
    settings = {"runner_type": "generate", "model_type": "llama", "fuse_attn_quant": False, "kv_transfer_config": None}
    settings.update(changes)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            runner_type=settings["runner_type"], hf_text_config=SimpleNamespace(model_type=settings["model_type"])
        ),
        parallel_config=SimpleNamespace(**parallel),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(fuse_attn_quant=settings["fuse_attn_quant"])),
        kv_transfer_config=settings["kv_transfer_config"],
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"runner_type": "pooling"}, InvalidArgumentError, "with a pooling model: it generates no answer to edit"),
        ({"model_type": "deepseek_v3"}, UnknownNameError, "'deepseek_v3' is not a known architecture whose output"),
        ({"fuse_attn_quant": True}, InvalidArgumentError, "`fuse_attn_quant`, which quantises the heads before"),
        ({"decode_context_parallel_size": 2}, InvalidArgumentError, "with context parallelism.*use tensor or pipeline"),
        ({"prefill_context_parallel_size": 2}, InvalidArgumentError, "with context parallelism"),
        ({"use_ubatching": True}, InvalidArgumentError, "with microbatches"),
        ({"enable_elastic_ep": True}, InvalidArgumentError, "with elastic expert parallelism"),
        ({"kv_transfer_config": object()}, InvalidArgumentError, "with a KV connector.*remove `kv_transfer_config`"),
    ],
)
def test_what_cannot_be_served(changes, error, message):
    refuse_unserved(make_config())
    with pytest.raises(error, match=message):
        refuse_unserved(make_config(**changes))


class Projection(nn.Linear):
    """With the attribute by which vLLM names the width of this process's part."""

    @property
    def input_size_per_partition(self) -> int:
        return self.in_features


def make_layers(n: int = 2, width: int = 32) -> nn.Module:
    """As much of a model of vLLM as its paths."""
    root, decoder = nn.Module(), nn.Module()
    decoder.layers = nn.ModuleList()
    for _ in range(n):
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.o_proj = Projection(width, 16)
        decoder.layers.append(layer)
    root.model = decoder
    return root


def test_projections_are_found_by_their_path():
    model = make_layers()
    # Of another pipeline stage.
    model.model.layers[0] = nn.Identity()
    assert find_projections(model, "llama", 32) == {1: model.model.layers[1].self_attn.o_proj}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make_layers(width=48), r"'model.layers.0.self_attn.o_proj' must be the only one.*read 32 numbers.*reads 48"),
        (nn.Sequential(), "it has no module 'layers.0.self_attn.o_proj'"),
    ],
)
def test_modules_that_do_not_read_heads_are_refused(model, message):
    with pytest.raises(InvalidArgumentError, match=message):
        find_projections(model, "llama", 32)


def make_edits(model_shape=(2, 4, 8)) -> tuple[Catalog, LayerEdits]:
    catalog = Catalog({"a": "x"}, {"a": make_steering(model_shape, gate="vote")}, None)
    editors = {
        layer: make_batched_editor(list(catalog.steerings.values()), layer, like=torch.zeros(()))
        for layer in range(model_shape[0])
    }
    return catalog, LayerEdits(editors, Rows(16, 1))


class RunnerV2:
    """A model runner of vLLM's second version, as far as the plugin goes; `order` is that of its rows."""

    def __init__(self, order):
        self._order = order

    def execute_model(self, scheduler_output):
        if scheduler_output.total_num_scheduled_tokens:
            self.prepare_inputs(scheduler_output)
        return "output"

    def prepare_inputs(self, scheduler_output):
        return make_batch(self._order, scheduler_output)


class RunnerV1:
    """One of the first version keeps its batch, and prepares inputs under another name."""

    def __init__(self, order):
        self._order = order

    def execute_model(self, scheduler_output):
        if scheduler_output.total_num_scheduled_tokens:
            batch = make_batch(self._order, scheduler_output)
            # Longer than the requests of the pass.
            computed = np.concatenate([batch.num_computed_tokens_np, [99]])
            self.input_batch = SimpleNamespace(req_ids=batch.req_ids, num_computed_tokens_cpu=computed)
            self._prepare_inputs(scheduler_output, batch.num_scheduled_tokens)
        return "output"

    def _prepare_inputs(self, scheduler_output, n_scheduled):
        return "inputs"


def make_batch(order, scheduler_output):
    ids = [i for i in order if i in scheduler_output.num_scheduled_tokens]
    return SimpleNamespace(
        req_ids=ids,
        num_scheduled_tokens=np.array([scheduler_output.num_scheduled_tokens[i] for i in ids]),
        num_computed_tokens_np=np.array([scheduler_output.computed[i] for i in ids]),
    )


def step(scheduled, computed, new=(), finished=()):
    return SimpleNamespace(
        num_scheduled_tokens=scheduled,
        computed=computed,
        total_num_scheduled_tokens=sum(scheduled.values()),
        finished_req_ids=set(finished),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_len=n, sampling_params=SimpleNamespace(extra_args=extra))
            for name, n, extra in new
        ],
    )


@pytest.mark.parametrize("runner_class", [RunnerV1, RunnerV2])
def test_a_runner_tells_of_every_pass(runner_class):
    catalog, edits = make_edits()
    runner, after = runner_class(["b", "a"]), []
    follow(runner, edits.rows, lambda new: as_row(extra_args(new), new.prompt_len, catalog), after.append)
    steered = {"steering": "a", "strength": 1.0}
    begin = step({"a": 3, "b": 2}, {"a": 0, "b": 0}, new=[("a", 3, steered), ("b", 2, None)])
    assert runner.execute_model(begin) == "output"
    assert edits.rows.steering[:6].tolist() == [-1, -1, -1, -1, 0, -1]
    runner.execute_model(step({"a": 1, "b": 1}, {"a": 3, "b": 2}))
    assert edits.rows.steering[:3].tolist() == [-1, 0, -1]
    # A step without tokens tells of requests that ended.
    runner.execute_model(step({}, {}, finished=["a"]))
    assert len(edits.rows) == 0
    assert [output.total_num_scheduled_tokens for output in after] == [5, 2, 0]


@pytest.mark.parametrize("eager", [True, False])
def test_hooks_edit_steered_rows_of_the_edited_layers(eager, monkeypatch):
    monkeypatch.setattr(layer_edits, "_CURRENT", [])
    model = random_model("llama")
    axes = shape(model)
    _, edits = make_edits(axes)
    projections = {i: layer.self_attn.o_proj for i, layer in enumerate(model.model.layers)}
    del edits.editors[0]
    install(edits, projections, eager=eager)
    assert [len(p._forward_pre_hooks) for p in projections.values()] == [0, 1]
    z = torch.randn(3, axes[1] * axes[2])
    expected = torch.nn.functional.linear(z, projections[1].weight, projections[1].bias)
    torch.testing.assert_close(projections[1](z), expected)
    edits.rows.add("a", SteeredRequest(0, 50.0, 1))
    edits.rows.fill(["a", "b"], np.array([2, 1]), np.array([0, 0]))
    changed = (projections[1](z) - expected).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, False]
    (edited,), (sites,) = edits.counts()
    assert 0 < edited <= sites == len(edits.editors[1].owner)
    # A pass of steered rows alone.
    edits.rows.fill(["a", "a"], np.array([1, 2]), np.array([1, 4]))
    edited_z = edits.editors[1].apply(z, torch.zeros(3, dtype=torch.long), torch.full((3,), 50.0)).z
    assert not torch.equal(edited_z[2], z[2])
    torch.testing.assert_close(projections[1](z), torch.nn.functional.linear(edited_z, projections[1].weight))
    # vLLM runs some models with the code of transformers, whose activations have an axis in front.
    torch.testing.assert_close(projections[1](z[None]), projections[1](z)[None])


def test_one_compiled_engine_in_each_process(monkeypatch):
    monkeypatch.setattr(layer_edits, "_CURRENT", [])
    _, first = make_edits()
    _, second = make_edits()
    projections = dict(enumerate(nn.ModuleList([nn.Linear(32, 8), nn.Linear(32, 8)])))
    install(first, projections, eager=False)
    with pytest.raises(InvalidArgumentError, match="One process can hold one compiled engine with steerings"):
        install(second, projections, eager=False)
    install(second, projections, eager=True)
    del first
    install(second, projections, eager=False)


def test_the_operator_is_one_call_for_a_compiler(monkeypatch):
    _, edits = make_edits()
    monkeypatch.setattr(layer_edits, "_CURRENT", [weakref.ref(edits)])
    torch.library.opcheck(
        torch.ops.radiant_lens.edit_heads.default,
        (torch.randn(3, 32), 0),
        test_utils=("test_schema", "test_faketensor"),
    )
