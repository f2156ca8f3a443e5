"""Folding: a model with the edits in its weights equals one that is edited at every position."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from plain_models import SETTINGS, random_model, random_steering, shape
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError
from radiant_lens.steering.gates import TrustRegion
from radiant_lens.steering.maps import RankOneMaps, ResampleMaps

# Their output projection has no bias, and no setting gives it one.
WITHOUT_BIAS = {"gptj", "mistral", "mixtral", "mpt", "phi3", "qwen2", "stablelm"}
TOKENS = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def edited_everywhere(model, steering):
    with rl.steer(model, steering, start=0):
        return logits(model)


@pytest.mark.parametrize("kind", ["rank_one", "dense"])
@pytest.mark.parametrize("model_type", sorted(set(SETTINGS) - WITHOUT_BIAS))
def test_the_folded_model_and_its_saved_copy_equal_the_edited_one(model_type, kind, tmp_path):
    model = random_model(model_type)
    steering = random_steering(*shape(model), gate="none", kind=kind, sites=[(0, 1), (0, 3), (1, 2)])
    unsteered, expected = logits(model), edited_everywhere(model, steering)
    assert not torch.allclose(expected, unsteered, atol=1e-3)
    steering.fold_into(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(loaded.eval()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(WITHOUT_BIAS))
def test_a_bias_that_could_not_be_saved_is_refused(model_type):
    model = random_model(model_type)
    steering = random_steering(*shape(model), gate="none")
    unsteered, expected = logits(model), edited_everywhere(model, steering)
    with pytest.raises(InvalidArgumentError, match="no bias and its configuration no setting"):
        steering.fold_into(model)
    assert torch.equal(logits(model), unsteered)
    steering.fold_into(model, savable=False)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_maps_without_a_constant_part_need_no_bias(tmp_path):
    model = random_model("qwen2")
    steering = random_steering(*shape(model), gate="none")
    assert isinstance(steering.head_maps, RankOneMaps)
    linear = replace(steering, head_maps=replace(steering.head_maps, shift=torch.zeros(len(steering.sites))))
    expected = edited_everywhere(model, linear)
    linear.fold_into(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    assert "o_proj.bias" not in json.dumps(list(dict(model.named_parameters())))


def test_a_constant_part_with_zeros_is_folded():
    model = random_model("gpt2")
    steering = random_steering(*shape(model), gate="none", kind="dense", sites=[(0, 1)])
    maps = steering.head_maps
    steering = replace(steering, head_maps=replace(maps, shift=maps.shift * torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])))
    expected = edited_everywhere(model, steering)
    steering.fold_into(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_folding_edits_the_prompt_too():
    model = random_model("gpt2")
    steering = random_steering(*shape(model), gate="none")
    with rl.steer(model, steering):
        from_last = logits(model)
    steering.fold_into(model)
    assert not torch.allclose(logits(model), from_last, atol=1e-3)


def test_edits_that_are_not_constant_and_other_models_are_refused():
    model = random_model("gpt2")
    sizes, before = shape(model), logits(model)
    for gate in ("head", "vote", "layer", "joint"):
        with pytest.raises(
            InvalidArgumentError, match=f"this steering has gate '{gate}', which decides at every token"
        ):
            random_steering(*sizes, gate=gate).fold_into(model)
    plain = random_steering(*sizes, gate="none")
    n, d = len(plain.sites), sizes[2]
    trust = TrustRegion(torch.zeros(n, d), torch.eye(d).repeat(n, 1, 1), torch.ones(n))
    with pytest.raises(InvalidArgumentError, match="A trust region decides at every token"):
        replace(plain, trust=trust).fold_into(model)
    drawn = ResampleMaps(torch.zeros(n, 4, d), torch.ones(n, 2, d), torch.zeros(n, d))
    with pytest.raises(InvalidArgumentError, match="Resample ablation is no affine map"):
        replace(plain, head_maps=drawn).fold_into(model)
    with pytest.raises(ModelMismatchError, match="for 3 layers"):
        random_steering(3, *sizes[1:], gate="none").fold_into(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("trained", [True, False])
def test_a_new_bias_is_trained_where_its_weight_is(trained):
    model = random_model("llama").requires_grad_(trained)
    random_steering(*shape(model), gate="none").fold_into(model)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("o_proj.bias")}
    assert biases and all(p.requires_grad == trained for p in biases.values())


class Lora(torch.nn.Module):
    """A stand-in for the LoRA layer of peft: a module around another one, of the same size."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.weight = base_layer, base_layer.weight
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lora_A = torch.nn.Linear(self.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, self.out_features, bias=False)

    def forward(self, z):
        return self.base_layer(z) + self.lora_B(self.lora_A(z))


class Quantised(torch.nn.Linear):
    """A subclass that rounds its weights as it is called."""

    def forward(self, z):
        return torch.nn.functional.linear(z, (8 * self.weight).round() / 8, self.bias)


class DuckTyped(torch.nn.Module):
    """No `Linear`, but with the attributes of one."""

    def __init__(self, inner):
        super().__init__()
        self.weight, self.bias, self.in_features = inner.weight, inner.bias, inner.in_features

    def forward(self, z):
        return 2 * torch.nn.functional.linear(z, self.weight)


def attention(model, layer=1):
    return model.model.layers[layer].self_attn


def lora_at_the_output(model):
    attention(model).o_proj = Lora(attention(model).o_proj)


def lora_elsewhere(model):
    attention(model).q_proj = Lora(attention(model).q_proj)


def adapter_of_transformers(model):
    model._hf_peft_config_loaded = True


def quantised(model):
    attention(model).o_proj.__class__ = Quantised


def duck_typed(model):
    attention(model).o_proj = DuckTyped(attention(model).o_proj)


def weight_norm(model):
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(attention(model).o_proj)


def parametrised(model):
    torch.nn.utils.parametrizations.weight_norm(attention(model).o_proj)


def tensor_of_a_quantiser(model):
    """As torchao does: the module is a plain `Linear`, its weight a tensor of another class."""

    class Packed(torch.nn.Parameter):
        pass

    attention(model).o_proj.weight = Packed(attention(model).o_proj.weight.detach())


def integer_weights(model):
    projection = attention(model).o_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().mul(100).to(torch.int8), requires_grad=False)


def shared_weights(model):
    attention(model, 0).o_proj.weight = attention(model, 1).o_proj.weight


# One change each after which the output is no longer `weight a + bias`, or the weight is not that of one projection.
STATES = {
    lora_at_the_output: "has an adapter .*merge_and_unload",
    lora_elsewhere: "has an adapter",
    adapter_of_transformers: "has an adapter",
    quantised: r"layer 1 is a [\w.]*test_folding.Quantised, which is neither .*Linear.* nor the `Conv1D`",
    duck_typed: r"layer 1 is a [\w.]*test_folding.DuckTyped",
    weight_norm: "has a weight that is a NoneType, not a plain parameter",
    parametrised: "layer 1 is a .*Parametrized",
    tensor_of_a_quantiser: "has a weight that is a Packed",
    integer_weights: "has weights of type torch.int8",
    shared_weights: "shares its weight with another module",
}


def everything(model):
    """Names and copies of all tensors, and the configuration."""
    return {name: value.clone() for name, value in model.state_dict().items()}, model.config.to_dict()


@pytest.mark.parametrize("sites", [[(1, 0)], [(0, 1), (1, 2)]], ids=str)
@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_projections_that_are_not_plain_are_refused_and_nothing_changes(change, sites):
    """The bias is missing, so that a fold which notices too late would have switched it on."""
    model = random_model("llama")
    change(model)
    tensors, config = everything(model)
    steering = random_steering(*shape(random_model("llama")), gate="none", sites=sites)
    with pytest.raises(InvalidArgumentError, match=STATES[change]) as caught:
        steering.fold_into(model)
    assert "nothing was folded" in str(caught.value) and "use `steer`" in str(caught.value).replace("Use", "use")
    after, config_after = everything(model)
    assert config_after == config and after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)


def test_offloaded_weights_are_refused(tmp_path):
    random_model("llama").save_pretrained(tmp_path / "model")
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    before = model.model.layers[0].self_attn.o_proj.weight.clone()
    steering = random_steering(*shape(model), gate="none")
    with pytest.raises(InvalidArgumentError, match="layer 1 has weights that are offloaded: nothing was folded"):
        steering.fold_into(model)
    assert torch.equal(model.model.layers[0].self_attn.o_proj.weight, before)


def test_weights_that_would_overflow_are_refused():
    model = random_model("gpt2").to(torch.float16)
    tensors, _ = everything(model)
    strong = random_steering(*shape(model), gate="none", kind="rank_one", sites=[(0, 0), (1, 1)])
    huge = replace(strong, head_maps=replace(strong.head_maps, write=1e7 * strong.head_maps.write))
    with pytest.raises(InvalidArgumentError, match=r"too large for torch.float16: nothing was folded"):
        huge.fold_into(model)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    # The same heads with an edit of usual size fit.
    strong.fold_into(model)
    assert not all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
