"""Tiny random models of many architectures, and steerings for them that need no data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel

import radiant_lens as rl
from radiant_lens.steering.gates import HeadScores, JointScores
from radiant_lens.steering.maps import Certificate, DenseMaps, HeadMaps, RankOneMaps
from radiant_lens.tiny.train import make_tokenizer

_NEW: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_WIDE = {**_NEW, "head_dim": 16}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": _NEW,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": _WIDE,
    "gemma2": _WIDE,
    "gemma3_text": _WIDE,
    "gpt2": _OLD,
    "gpt_bigcode": _OLD,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {key: value for key, value in _NEW.items() if key != "num_key_value_heads"},
    "gptj": {**_OLD, "rotary_dim": 4},
    "granite": _NEW,
    "llama": _NEW,
    "mistral": _NEW,
    "mixtral": {**_NEW, "num_local_experts": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "olmo": _NEW,
    "olmo2": _NEW,
    "opt": {**_NEW, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": _NEW,
    "phi3": _NEW,
    "qwen2": _NEW,
    "qwen3": _WIDE,
    "smollm3": _NEW,
    "stablelm": _NEW,
    "starcoder2": _NEW,
}


def tokenizer():
    return make_tokenizer([f"w{i}" for i in range(50)])


def random_model(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of two layers with four heads, random weights and random biases."""
    ids = tokenizer()
    special = {name: getattr(ids, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(model_type, vocab_size=len(ids), **special, **{**SETTINGS[model_type], **changes})
    # Eager attention, whose padding and masks are the same in all architectures.
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        # Biases and norms begin at 0 and 1, which would hide an edit of them.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model


def on_cache(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """A cache by the name that the installed transformers has for it."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def shape(model: PreTrainedModel) -> tuple[int, int, int]:
    config = model.config.get_text_config()
    n_heads = config.num_attention_heads
    return config.num_hidden_layers, n_heads, getattr(config, "head_dim", None) or config.hidden_size // n_heads


def carry(n_layers: int) -> torch.Tensor:
    """Shares of the joint score of the layer below: half of it, and of none below the first."""
    return 0.5 * (torch.arange(n_layers) > 0)


def random_steering(
    n_layers: int,
    n_heads: int,
    d_head: int,
    *,
    gate: str = "head",
    kind: str = "rank_one",
    seed: int = 0,
    sites=None,
    strength: float = 1.0,
    hands_over: bool = False,
) -> rl.Steering:
    """Edits of all heads (or `sites`) that are large enough to be seen, open at about every other token.

    With `hands_over`, joint scores depend on those of the layer below.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*lengths: int) -> torch.Tensor:
        return torch.randn(*lengths, generator=generator)

    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)] if sites is None else sites
    chosen = tuple(sorted(rl.HeadSite(*pair) for pair in heads))
    n = len(chosen)
    maps: HeadMaps = (
        RankOneMaps(strength * noise(n, d_head), 0.3 * noise(n, d_head), noise(n))
        if kind == "rank_one"
        else DenseMaps(0.3 * noise(n, d_head, d_head), noise(n, d_head))
    )
    own = noise(n_layers, n_heads, d_head)
    joint = JointScores(noise(n_layers, n_heads, d_head), torch.zeros(n_layers), hands_over * carry(n_layers))
    scores = HeadScores(own, torch.zeros(n_layers, n_heads), torch.full((n_layers,), n_heads // 2), joint)
    certificates = tuple(Certificate("random") for _ in chosen)
    return rl.Steering(chosen, maps, scores, gate, certificates, meta={"policy": {"name": "random"}})


def strong(model: Any, gate: str = "head", **options: Any) -> rl.Steering:
    config = getattr(model, "cfg", None)
    axes = shape(model) if config is None else (config.n_layers, config.n_heads, config.d_head)
    return random_steering(*axes, gate=gate, **{"strength": 5.0, **options})


def padded(rows: list[list[int]], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, columns], mask[i, columns] = torch.tensor(row), 1
    return tokens, mask


def last_logits(model: Any, rows: list[list[int]], side: str = "left") -> torch.Tensor:
    """Logits after each row's last token."""
    # A bridge makes its own positions from the mask.
    tokens, mask = padded(rows, side, 0)
    options = {} if hasattr(model, "cfg") else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    with torch.no_grad():
        output = model(tokens, attention_mask=mask, **options)
    logits = getattr(output, "logits", output)
    last = torch.where(mask.bool(), torch.arange(mask.shape[1]), -1).amax(1)
    return logits[torch.arange(len(rows)), last]


def steered(model: Any, steering: rl.Steering, rows: list[list[int]], side: str = "left") -> torch.Tensor:
    with rl.steer(model, steering):
        return last_logits(model, rows, side)


def n_hooks(model: Any) -> int:
    """Hooks of PyTorch and of TransformerLens that are on."""
    inner = getattr(model, "original_model", model)
    points = {id(h): h for h in model.hook_dict.values()}.values() if hasattr(model, "hook_dict") else ()
    registered = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in inner.modules())
    return registered + sum(len(h.fwd_hooks) for h in points)
