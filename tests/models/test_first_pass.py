"""Loading ends with a pass as collecting and generating run it, and fails with one sentence if that goes wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from plain_models import SETTINGS, random_model, tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelLoadError
from radiant_lens.models.identity import signature

HYBRID = {
    **{"hidden_size": 32, "intermediate_size": 48, "shared_intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 0},
    **{"layer_types": ["attention", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
}
REFUSED = {
    "sees later tokens under a mask": (
        "openai-gpt",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "under an attention mask it sees later tokens or padding, so batches would give wrong results",
    ),
    "another layout of the joint matrix": (
        "falcon",
        {**SETTINGS["falcon"], "new_decoder_architecture": True, "num_kv_heads": 2},
        r"is not supported by TransformerLens [\d.]+ \(RuntimeError: split_with_sizes",
    ),
    "dies in its first pass": (
        "granitemoehybrid",
        HYBRID,
        r"is not supported by TransformerLens [\d.]+ \(RuntimeError: Original component not set .*use another version",
    ),
}


@pytest.fixture
def folder(request, tmp_path):
    model_type, settings, _ = request.param
    words = tokenizer()
    special = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=len(words), **special, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "message"), [(case, case[2]) for case in REFUSED.values()], ids=REFUSED, indirect=["folder"]
)
def test_bridges_that_would_be_wrong_are_refused(folder, message, command_line):
    with pytest.raises(ModelLoadError, match=message):
        rl.load_model(folder)
    status, out, _ = command_line("doctor", folder, "--json")
    report = json.loads(out)
    assert (status, report["ok"], report["checks"][0]["check"]) == (1, False, "load")


def test_padding_that_is_seen_is_refused(monkeypatch, foreign_folder):
    forward = TransformerBridge.forward

    def without_mask_blind(self, *args, attention_mask=None, **options):
        logits = forward(self, *args, attention_mask=attention_mask, **options)
        # As attention without a mask of later positions: the last column reaches all others.
        return logits if attention_mask is None else logits + logits[:, -1:]

    rl.load_model(foreign_folder)
    monkeypatch.setattr(TransformerBridge, "forward", without_mask_blind)
    with pytest.raises(ModelLoadError, match="predicts the same tokens otherwise when others follow them"):
        rl.load_model(foreign_folder)


def test_any_error_of_loading_is_one_sentence(monkeypatch, foreign_folder):
    for error, message in (
        (AttributeError("no such thing"), r"not supported by TransformerLens .*AttributeError: no such thing"),
        (torch.OutOfMemoryError("of 80 GB"), "does not fit into memory: pass `dtype='bfloat16'`"),
        (ConnectionResetError("reset by peer"), "cannot be read: reset by peer"),
    ):

        def fail(*args, error=error, **options):
            raise error

        with monkeypatch.context() as patched, pytest.raises(ModelLoadError, match=message):
            patched.setattr(TransformerBridge, "boot_transformers", fail)
            rl.load_model(foreign_folder)


def test_a_bridge_is_passed_once(model, steering):
    with rl.steer(model, steering, trace=True) as trace:
        assert rl.load_model(model) is model
    assert trace.to_dataframe().empty


class PeftModel(torch.nn.Module):
    def get_base_model(self):
        return None

    def merge_and_unload(self):
        return None


class HookedTransformer(torch.nn.Module):
    """The class of earlier versions of TransformerLens."""


@pytest.mark.parametrize(
    ("wrapped", "remedy"),
    [
        (PeftModel(), r"got PeftModel: pass `model.get_base_model\(\)`"),
        (SimpleNamespace(_orig_mod=None), "got SimpleNamespace: pass the model as it was before `torch.compile`"),
        (HookedTransformer(), "got HookedTransformer: pass the name or folder"),
        (torch.nn.DataParallel(torch.nn.Linear(2, 2)), "got DataParallel: pass the model inside, `model.module`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_inside_another_object_is_named_with_the_way_to_it(wrapped, remedy):
    with pytest.raises(InvalidArgumentError, match=remedy):
        rl.load_model(wrapped)
    with pytest.raises(InvalidArgumentError, match=remedy):
        signature(wrapped)


def test_a_sound_model_of_each_kind_passes(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        random_model("llama").save_pretrained(tmp_path)
        assert rl.load_model(tmp_path, tokenizer=tokenizer(), dtype=dtype).cfg.dtype == dtype
