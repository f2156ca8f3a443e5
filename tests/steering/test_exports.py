"""A LoRA and a control vector, each read back by its own runtime."""

from __future__ import annotations

import json

import pytest
import torch
from plain_models import random_model, random_steering, shape, strong

import radiant_lens as rl
from radiant_lens.errors import (
    InvalidArgumentError,
    MissingPackageError,
    ModelMismatchError,
    NothingToEditError,
    OutputError,
)
from radiant_lens.steering import control_vector
from radiant_lens.steering.maps import RankOneMaps

TOKENS = torch.arange(3, 27).reshape(2, 12)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def steered_logits(model, steering: rl.Steering) -> torch.Tensor:
    with rl.steer(model, steering, start=0, allow_mismatch=True):
        return logits(model)


# Llama and Gemma have no bias there: such an adapter can be used, but not merged.
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed but the targeted layer")
# Of transformers, asked by peft.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["rank_one", "dense"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_peft_reads_the_edits_back(model_type, kind, tmp_path):
    peft = pytest.importorskip("peft", reason="pip install 'radiant-lens[peft]'")
    model = random_model(model_type)
    steering = strong(model, gate="none", kind=kind, sites=[(0, 1), (1, 0), (1, 3)])
    plain, expected = logits(model), steered_logits(model, steering)
    assert steering.to_lora(tmp_path / "lora", model) == tmp_path / "lora"
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(adapted), plain, atol=1e-2)
    # One row for each head of a rank-one map, one for each entry of a head otherwise.
    assert adapted.peft_config["default"].r == (2 if kind == "rank_one" else 2 * shape(model)[2])


def test_linear_edits_need_no_bias(tmp_path):
    model = random_model("llama")
    zero = rl.Steering.load(_saved(strong(model, gate="none", kind="dense"), tmp_path))
    assert json.loads((zero.to_lora(tmp_path / "lora", model) / "adapter_config.json").read_text())["lora_bias"]
    maps = type(zero.head_maps)(zero.head_maps.change, torch.zeros_like(zero.head_maps.shift))
    linear = rl.Steering(zero.sites, maps, zero.scores, "none", zero.certificates)
    folder = linear.to_lora(tmp_path / "lora", model)
    assert not json.loads((folder / "adapter_config.json").read_text())["lora_bias"]


def _saved(steering: rl.Steering, folder):
    return steering.save(folder / "steering")


def test_what_a_lora_cannot_hold_is_refused(tmp_path):
    model = random_model("llama")
    with pytest.raises(InvalidArgumentError, match="Only edits without a gate can be folded.*has gate 'head'"):
        strong(model).to_lora(tmp_path / "lora", model)
    with pytest.raises(ModelMismatchError, match="is for 3 layers"):
        random_steering(3, 4, 8, gate="none").to_lora(tmp_path / "lora", model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(OutputError, match="is a folder that is no adapter, and is not replaced"):
        strong(model, gate="none").to_lora(tmp_path / "mine", model)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def constant(model, size: float = 1.0, sites=((0, 1), (1, 2))) -> rl.Steering:
    steering = strong(model, gate="none", sites=list(sites))
    generator = torch.Generator().manual_seed(1)
    by = size * torch.randn(steering.head_maps.write.shape, generator=generator)
    return rl.Steering(steering.sites, RankOneMaps.translation(by), steering.scores, "none", steering.certificates)


def read_directions(file) -> dict[str, torch.Tensor]:
    gguf = pytest.importorskip("gguf", reason="pip install 'radiant-lens[gguf]'")
    reader = gguf.GGUFReader(file)
    fields = reader.fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "llama"
    assert fields["controlvector.layer_count"].contents() == len(reader.tensors)
    return {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}


def test_the_control_vector_is_the_mean_of_what_the_edits_write(tmp_path):
    model = random_model("llama", num_hidden_layers=3)
    steering = constant(model, sites=((1, 0), (1, 2), (2, 3)))
    result = steering.to_gguf_control_vector(tmp_path / "vector.gguf", model, TOKENS)
    directions = read_directions(result.path)
    assert sorted(directions) == ["direction.1", "direction.2"]
    by = steering.head_maps.write
    weight = model.model.layers[1].self_attn.o_proj.weight
    d_head = by.shape[1]
    expected = weight[:, :d_head] @ by[0] + weight[:, 2 * d_head : 3 * d_head] @ by[1]
    torch.testing.assert_close(directions["direction.1"], expected.detach(), rtol=1e-5, atol=1e-5)


def test_its_kl_is_that_of_adding_the_file_after_the_layers(tmp_path):
    model = random_model("llama", num_hidden_layers=3)
    steering = constant(model, 0.1, sites=((0, 0), (1, 2), (2, 3)))
    result = steering.to_gguf_control_vector(tmp_path / "vector.gguf", model, TOKENS)
    directions, handles = read_directions(result.path), []
    # That of layer 0 is added after layer 1.
    assert sorted(directions) == ["direction.1", "direction.2"]
    exact, plain = steered_logits(model, steering).log_softmax(-1), logits(model).log_softmax(-1)
    for layer in (1, 2):

        def add(module, args, output, direction=directions[f"direction.{layer}"]):
            return output + direction

        handles.append(model.model.layers[layer].register_forward_hook(add))
    approximate = logits(model).log_softmax(-1)
    for handle in handles:
        handle.remove()
    for kl, other in ((result.kl, approximate), (result.kl_unsteered, plain)):
        assert kl == pytest.approx(float((exact.exp() * (exact - other)).sum(-1).mean()), rel=1e-3, abs=1e-7)
    assert 0 < result.kl < result.kl_unsteered


def test_gated_edits_are_averaged_over_the_tokens(tmp_path):
    model = random_model("llama")
    gated, always = (strong(model, gate=gate, sites=[(1, 0)]) for gate in ("head", "none"))
    files = [s.to_gguf_control_vector(tmp_path / f"{s.gate}.gguf", model, TOKENS).path for s in (gated, always)]
    first, second = (read_directions(file)["direction.1"] for file in files)
    assert not torch.allclose(first, second)


def test_bad_input_of_a_control_vector(tmp_path, monkeypatch):
    model = random_model("llama")
    steering = constant(model)
    with pytest.raises(InvalidArgumentError, match=r"`tokens` must be token ids with axes `row pos`.*got shape \(3,\)"):
        steering.to_gguf_control_vector(tmp_path / "a.gguf", model, torch.arange(3))
    with pytest.raises(NothingToEditError, match="edits none of these tokens"):
        steering.scaled(0).to_gguf_control_vector(tmp_path / "a.gguf", model, TOKENS)
    with pytest.raises(OutputError, match="cannot be written"):
        steering.to_gguf_control_vector(tmp_path, model, TOKENS)
    monkeypatch.setattr(control_vector, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="needs the package gguf: pip install"):
        steering.to_gguf_control_vector(tmp_path / "a.gguf", model, TOKENS)
    assert not list(tmp_path.iterdir())
