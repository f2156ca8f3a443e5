"""The identity of a model: every weight, active adapter and rule for special tokens takes part in it."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_models import random_model, random_steering, shape
from torch import nn
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens.errors import ModelMismatchError, TokenRuleWarning
from radiant_lens.models import fingerprint
from radiant_lens.models.fingerprint import active_adapters, content_hashes
from radiant_lens.models.identity import require_fitting, require_same, signature
from radiant_lens.tiny import model_folder


def load_plain_tiny():
    return AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager")


def head_columns(model, layer: int, head: int) -> torch.Tensor:
    """The weights through which a head of the embedded model writes; a view."""
    width = model.config.hidden_size // model.config.num_attention_heads
    return model.model.layers[layer].self_attn.o_proj.weight[:, head * width : (head + 1) * width]


@pytest.fixture
def steering_of(request):
    """Makes a steering that records the model it was made for."""

    def make(model, **changes):
        sizes = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head) if hasattr(model, "cfg") else shape(model)
        steering = random_steering(*sizes)
        return replace(steering, meta={**steering.meta, "model": {**signature(model), **changes}})

    return make


# Every weight


def test_heads_ablated_in_the_weights_make_another_model(steering_of):
    model = load_plain_tiny()
    before, steering = signature(model), steering_of(model)
    # All that the head writes but the first value of the residual stream, which is in the sample of earlier versions.
    with torch.no_grad():
        head_columns(model, 1, 2)[1:].zero_()
    after = signature(model)
    assert after["weights"] == before["weights"] and set(after["content"]).isdisjoint(before["content"])
    with pytest.raises(ModelMismatchError, match="with content = .* weights of its active adapters, are not the same"):
        require_fitting(steering, model)
    require_fitting(steering, model, allow_mismatch=True)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_the_last_value_of_every_parameter_takes_part(model_type):
    model = random_model(model_type)
    known = {tuple(content_hashes(model))}
    parameters = list(model.parameters())
    for parameter in parameters:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        known.add(tuple(content_hashes(model)))
    assert len(known) == len(parameters) + 1


def test_equal_matrices_at_other_places_make_another_model():
    model = load_plain_tiny()
    before = content_hashes(model)
    layers = model.model.layers
    layers[0].self_attn.o_proj, layers[1].self_attn.o_proj = layers[1].self_attn.o_proj, layers[0].self_attn.o_proj
    assert content_hashes(model) != before
    layers[0].self_attn.o_proj, layers[1].self_attn.o_proj = layers[1].self_attn.o_proj, layers[0].self_attn.o_proj
    attention = layers[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    assert content_hashes(model) != before
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    assert content_hashes(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_shares_a_hash(dtype):
    model = load_plain_tiny()
    other = load_plain_tiny().to(dtype)
    assert set(content_hashes(model)) & set(content_hashes(other))
    with torch.no_grad():
        head_columns(other, 0, 0).zero_()
    assert not set(content_hashes(model)) & set(content_hashes(other))


def test_quantised_weights_in_buffers_take_part():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.arange(2000, dtype=torch.int32))
            self.register_buffer("scratch", torch.zeros(3), persistent=False)

    layer = Packed()
    model = nn.ModuleList([layer, nn.Linear(2, 2)])
    before = content_hashes(model)
    layer.scratch += 1
    assert content_hashes(model) == before
    layer.qweight[-1] += 1
    assert content_hashes(model) != before


def test_quantisation_makes_another_model(steering_of):
    model = load_plain_tiny()
    steering = steering_of(model)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ModelMismatchError, match="quantization = None; 'tiny' has 'bitsandbytes'"):
        require_fitting(steering, model)


# Changes between two calls


def test_changed_weights_are_read_again_and_unchanged_ones_are_not(monkeypatch):
    model = load_plain_tiny()
    before = content_hashes(model)
    n_read, digests = [], fingerprint._digests
    monkeypatch.setattr(fingerprint, "_digests", lambda values: (n_read.append(values.numel()), digests(values))[1])
    assert content_hashes(model) == before and not n_read
    with torch.no_grad():
        head_columns(model, 0, 1).mul_(2)
    assert content_hashes(model) != before and len(n_read) == 1
    with torch.no_grad():
        head_columns(model, 0, 1).div_(2)
    assert content_hashes(model) == before


def test_writes_through_data_are_seen_though_they_leave_no_version():
    for layer in range(4):
        for head in range(8):
            model = load_plain_tiny()
            before = content_hashes(model)
            versions = [p._version for p in model.parameters()]
            head_columns(model, layer, head).data.zero_()
            assert [p._version for p in model.parameters()] == versions
            assert content_hashes(model) != before


def test_a_signature_reads_everything_again():
    model = load_plain_tiny()
    before = signature(model)["content"]
    # One value, written so that neither the version nor any of the compared values changes.
    weight = model.model.layers[0].mlp.up_proj.weight
    compared = fingerprint._spread_index(weight.numel(), weight.device).tolist()
    place = next(i for i in range(weight.numel()) if i not in compared)
    weight.data.view(-1)[place] += 1
    assert content_hashes(model) == before
    assert signature(model)["content"] != before


def test_a_new_parameter_at_the_place_of_a_freed_one_is_read():
    model = nn.Linear(64, 64)
    hashes = set()
    for value in range(20):
        # The old tensor is freed first, so that the new one may get its address.
        model.weight = None
        model.weight = nn.Parameter(torch.full((64, 64), float(value)))
        hashes.add(tuple(content_hashes(model)))
    assert len(hashes) == 20


def test_a_copy_has_the_same_hash_and_a_state_of_its_own():
    model = load_plain_tiny()
    before = content_hashes(model)
    other = copy.deepcopy(model)
    assert content_hashes(other) == before
    with torch.no_grad():
        head_columns(other, 0, 0).zero_()
    assert content_hashes(other) != before and content_hashes(model) == before


def test_a_comparison_takes_less_than_a_few_milliseconds(model, steering):
    require_fitting(steering, model)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        require_fitting(steering, model)
        times.append(time.perf_counter() - start)
    # 0.6 ms on one core of a quiet machine.
    assert min(times) < 0.005


# Adapters


class LowRank(nn.Module):
    """A layer with an adapter, of the form that PEFT gives it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})
        for part in (self.lora_A, self.lora_B):
            part["default"].weight.data.normal_(generator=generator)
        self.lora_embedding = nn.ParameterDict({"default": torch.ones(3), "other": torch.ones(3)})
        self.scaling = {"default": 0.5}
        self.active_adapters: list[str] = ["default"]
        self.disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight


@pytest.fixture
def adapted():
    """The embedded model with an adapter at one output projection, and the layer with the adapter."""
    model = load_plain_tiny()
    attention = model.model.layers[1].self_attn
    attention.o_proj = LowRank(attention.o_proj)
    return model, attention.o_proj


def test_an_adapter_takes_part_while_it_is_on(adapted, steering_of):
    model, layer = adapted
    base = steering_of(load_plain_tiny())
    assert active_adapters(model) == ["default"]
    with pytest.raises(ModelMismatchError, match=r"adapters = \[\]; 'tiny' has \['default'\]"):
        require_fitting(base, model)
    on = steering_of(model)
    require_fitting(on, model)
    layer.disable_adapters = True
    require_fitting(base, model)
    assert signature(model)["content"] == signature(load_plain_tiny())["content"]
    with pytest.raises(ModelMismatchError, match=r"adapters = \['default'\]; 'tiny' has \[\]"):
        require_fitting(on, model)


def test_weights_and_scaling_of_an_active_adapter_take_part(adapted):
    model, layer = adapted
    hashes = [content_hashes(model)]
    layer.scaling["default"] = 1.0
    hashes.append(content_hashes(model))
    with torch.no_grad():
        layer.lora_B["default"].weight[0, 0] += 1
    hashes.append(content_hashes(model))
    with torch.no_grad():
        layer.lora_embedding["default"] += 1
    hashes.append(content_hashes(model))
    assert len(set(map(tuple, hashes))) == 4
    # Those of an adapter that is off do not.
    with torch.no_grad():
        layer.lora_embedding["other"] += 1
    assert content_hashes(model) == hashes[-1]


def test_a_merged_adapter_is_part_of_the_weight(adapted):
    model, layer = adapted
    before = content_hashes(model)
    layer.base_layer.weight.data += layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    layer.merged_adapters = ["default"]
    assert active_adapters(model) == []
    assert content_hashes(model) != before
    assert signature(model)["content"] != signature(load_plain_tiny())["content"]


# Artefacts of earlier versions


def test_an_artefact_without_the_new_hash_is_compared_by_the_sample(model):
    old = {key: value for key, value in signature(model).items() if key not in ("content", "adapters", "quantization")}
    require_same(old, model)
    with pytest.raises(ModelMismatchError, match="with weights = "):
        require_same({**old, "weights": ["0" * 16]}, model)


# The rule for special tokens


def test_another_rule_for_special_tokens_is_a_warning_with_the_remedy(model, steering_of):
    assert signature(model)["prepend_bos"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_fitting(steering_of(model), model)
    other = steering_of(model, prepend_bos=False)
    with pytest.warns(TokenRuleWarning, match="fitted on texts without a BOS token.*`prepend_bos=False`"):
        require_fitting(other, model)
    without = rl.load_model("tiny", prepend_bos=False)
    assert signature(without)["prepend_bos"] is False
    with pytest.warns(TokenRuleWarning, match="fitted on texts with a BOS token.*reads texts without one"):
        with rl.steer(without, steering_of(model)):
            pass


def test_no_warning_where_there_is_nothing_to_compare(model, steering_of):
    old = steering_of(model)
    del old.meta["model"]["prepend_bos"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_fitting(old, model)
        # A plain model gets tokens, not texts.
        require_fitting(steering_of(model, prepend_bos=False), load_plain_tiny())
        require_fitting(steering_of(model, prepend_bos=False), model, allow_mismatch=True)


_READ_TWICE = """
from pathlib import Path
import torch
from torch import nn
from radiant_lens.models.fingerprint import content_hashes

def megabytes(field):
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024

torch.set_num_threads(1)
layers = [nn.Linear(576, 576, dtype=torch.bfloat16) for _ in range(150)]
model = nn.ModuleList([nn.Embedding(49_152, 576, dtype=torch.bfloat16), *layers])
content_hashes(model)
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
for _ in range(2):
    content_hashes(model, reread=True)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is reset through /proc")
def test_reading_all_weights_again_takes_no_memory_of_their_size():
    """In a process of its own. Once it took 75 MB for these 150 MB of weights, and 430 MB with a real model around."""
    run = subprocess.run([sys.executable, "-c", _READ_TWICE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 20
