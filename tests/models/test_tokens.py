"""Special tokens are those of the model's own tokenizer, in every call that reads text."""

from __future__ import annotations

import pytest
import torch
from plain_models import random_model
from tokenizers import processors
from transformers import AutoTokenizer

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.tokens import encode
from radiant_lens.tiny.train import make_tokenizer

TEXT = "w1 w2 w3"


def make_words(*, adds_bos: bool, has_bos: bool = True):
    """A tokenizer whose own rule is to begin texts with BOS, or not."""
    tokenizer = make_tokenizer([f"w{i}" for i in range(50)])
    if not adds_bos:
        # As SmolLM2's: there is a BOS token, and texts do not begin with it.
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    if not has_bos:
        tokenizer.bos_token = None
    assert (tokenizer(TEXT)["input_ids"][0] == 1) == adds_bos
    return tokenizer


@pytest.fixture(params=[True, False], ids=["adds BOS", "adds none"])
def words(request):
    return make_words(adds_bos=request.param)


@pytest.mark.parametrize("saved", [True, False])
def test_a_text_has_the_ids_of_the_models_own_tokenizer(words, tmp_path, saved):
    expected = words(TEXT)["input_ids"]
    random_model("llama").save_pretrained(tmp_path)
    if saved:
        words.save_pretrained(tmp_path)
        bridge = rl.load_model(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == expected
    else:
        bridge = rl.load_model(tmp_path, tokenizer=words)
    assert bridge.to_tokens(TEXT)[0].tolist() == expected
    assert encode(bridge, [TEXT])[0].ids == expected
    assert bridge.tokenizer(TEXT)["input_ids"] == expected


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_the_rule_can_be_set(words, tmp_path, prepend_bos):
    random_model("llama").save_pretrained(tmp_path)
    bridge = rl.load_model(tmp_path, tokenizer=words, prepend_bos=prepend_bos)
    expected = [1] * prepend_bos + words(TEXT, add_special_tokens=False)["input_ids"]
    assert bridge.to_tokens(TEXT)[0].tolist() == encode(bridge, [TEXT])[0].ids == expected


def test_a_rendered_chat_has_the_special_tokens_of_its_template_alone(words, tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    for prepend_bos in (None, True, False):
        bridge = rl.load_model(tmp_path, tokenizer=words, prepend_bos=prepend_bos)
        prompt = rl.Prompt(TEXT, ("w4",), ("w5",), "group", rendered=True)
        assert encode(bridge, [prompt])[0].ids == words(TEXT, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_without_bos_has_none_afterwards(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    tokenizer = make_words(adds_bos=False, has_bos=False)
    bridge = rl.load_model(tmp_path, tokenizer=tokenizer)
    assert bridge.tokenizer.bos_token is None
    assert encode(bridge, [TEXT])[0].ids == tokenizer(TEXT)["input_ids"]
    with pytest.raises(InvalidArgumentError, match="`prepend_bos=True` needs a BOS token, and the tokenizer of model"):
        rl.load_model(tmp_path, tokenizer=tokenizer, prepend_bos=True)


def test_the_callers_tokenizer_stays_as_it_was(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    tokenizer = make_words(adds_bos=False)
    before = (dict(tokenizer.init_kwargs), tokenizer.padding_side, tokenizer.special_tokens_map, len(tokenizer))
    rl.load_model(tmp_path, tokenizer=tokenizer)
    assert (dict(tokenizer.init_kwargs), tokenizer.padding_side, tokenizer.special_tokens_map, len(tokenizer)) == before


def test_a_bridge_keeps_its_rule(model):
    with pytest.raises(InvalidArgumentError, match="a bridge keeps those that it was made with"):
        rl.load_model(model, prepend_bos=False)


def test_logits_follow_the_rule(words, tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    bridge = rl.load_model(tmp_path, tokenizer=words)
    with torch.no_grad():
        by_text = bridge(TEXT)
        by_ids = bridge(torch.tensor([words(TEXT)["input_ids"]]))
    assert torch.equal(by_text, by_ids)
