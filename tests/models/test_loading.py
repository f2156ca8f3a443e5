"""Loading: every kind of source gives a bridge whose logits are the model's own."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import radiant_lens as rl
from radiant_lens.datasets.world import make_fact_world, vocabulary
from radiant_lens.errors import InvalidArgumentError, ModelLoadError, ModelMismatchError, UnknownNameError
from radiant_lens.models.identity import require_same, signature
from radiant_lens.tiny import model_folder
from radiant_lens.tiny.train import make_tokenizer


def test_every_source_gives_the_same_model(model):
    folder = model_folder()
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokens = model.to_tokens("Q : what is the capital of dupeka ? A :")
    with torch.no_grad():
        expected = hf(tokens).logits
        for source in ("tiny", folder, str(folder), hf, model):
            bridge = rl.load_model(source)
            assert torch.equal(bridge(tokens), expected)
            assert signature(bridge)["content"] == signature(model)["content"]
    assert rl.load_model(model) is model


def test_another_architecture_loads_alike(foreign_folder):
    bridge = rl.load_model(foreign_folder)
    hf = AutoModelForCausalLM.from_pretrained(foreign_folder, attn_implementation="eager").eval()
    tokens = bridge.to_tokens("the soup")
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), hf(tokens).logits, rtol=1e-5, atol=1e-5)
    assert signature(bridge)["n_heads"] == 4


def test_dtype_is_the_one_given(foreign_folder):
    assert rl.load_model(foreign_folder).cfg.dtype == torch.float32
    assert rl.load_model(foreign_folder, dtype=torch.bfloat16).cfg.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_weights_in_another_precision_are_the_same_model(model, dtype):
    half = rl.load_model("tiny", dtype=dtype)
    require_same(signature(model), half)
    require_same(signature(half), model)
    for key in ("weights", "content"):
        assert set(signature(half)[key]) & set(signature(model)[key])
    assert signature(half)["dtype"] != signature(model)["dtype"]


def test_a_model_without_pad_token_gets_one(foreign_folder):
    tokenizer = AutoTokenizer.from_pretrained(foreign_folder)
    tokenizer.pad_token = None
    bridge = rl.load_model(AutoModelForCausalLM.from_pretrained(foreign_folder), tokenizer=tokenizer)
    assert bridge.tokenizer.pad_token_id is not None


def test_refusals(tmp_path, model, foreign_folder):
    with pytest.raises(UnknownNameError, match="'tinny' is not a known model: did you mean 'tiny'"):
        rl.load_model("tinny")
    with pytest.raises(ModelLoadError, match="not a local folder and not in the local cache, and the Hugging Face Hub"):
        rl.load_model("nobody/nothing")
    with pytest.raises(ModelLoadError, match="has no config.json"):
        rl.load_model(tmp_path)
    with pytest.raises(InvalidArgumentError, match="`model` must be a name"):
        rl.load_model(3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        rl.load_model(tmp_path)
    with pytest.raises(ModelMismatchError, match="architecture"):
        require_same(signature(model), rl.load_model(foreign_folder))


def test_a_nameless_model_needs_its_tokenizer(foreign_folder):
    hf = AutoModelForCausalLM.from_pretrained(foreign_folder)
    hf.config._name_or_path = ""
    with pytest.raises(InvalidArgumentError, match="`tokenizer` must be given"):
        rl.load_model(hf)


def test_a_tokenizer_need_not_have_been_saved(foreign_folder, tmp_path):
    in_memory = make_tokenizer(vocabulary(make_fact_world()))
    in_memory.save_pretrained(tmp_path)
    for tokenizer in (in_memory, AutoTokenizer.from_pretrained(tmp_path)):
        bridge = rl.load_model(foreign_folder, tokenizer=tokenizer)
        assert bridge.tokenizer.get_vocab() == in_memory.get_vocab()
        assert bridge.to_tokens("the soup")[0].tolist() == in_memory("the soup")["input_ids"]


@pytest.mark.parametrize("filled", [True, False])
def test_a_bridge_that_does_not_fill_the_cache_is_refused(foreign_folder, monkeypatch, filled):
    """As TransformerLens 4.3 does with transformers 5.24, where the cache has another name."""
    bridge = rl.load_model(foreign_folder)
    returned = DynamicCache()
    if filled:
        returned.update(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8), 0)

    def forward(input_ids, cache=None, use_cache=None):
        return SimpleNamespace(cache=returned)

    monkeypatch.setattr(bridge.original_model, "forward", forward)
    with nullcontext() if filled else pytest.raises(ModelLoadError, match="leaves the KV cache of .* empty"):
        assert rl.load_model(bridge) is bridge
