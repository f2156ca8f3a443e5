"""Folding: an ungated steering as weights is the same model as one that is edited at every position."""

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
def test_the_folded_model_and_its_saved_copy_are_the_edited_one(model_type, kind, tmp_path):
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


def test_a_constant_part_that_is_nought_in_places_is_folded():
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


def test_refusals():
    model = random_model("gpt2")
    sizes, before = shape(model), logits(model)
    for gate in ("head", "vote", "layer"):
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
