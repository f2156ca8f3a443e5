"""Checks at the end of loading: heads that can be read, and one pass that runs as collecting and generating do."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from weakref import WeakSet

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens.errors import ModelLoadError
from radiant_lens.models.identity import plain_model
from radiant_lens.models.load_errors import not_supported
from radiant_lens.models.precision import TOLERANCES
from radiant_lens.models.tokens import ordinary_tokens, pad_rows, pad_token
from radiant_lens.sites import hook_name, input_width

LONG, SHORT = 6, 3
"""Tokens of the two rows of the pass."""

_PASSED: WeakSet[TransformerBridge] = WeakSet()


def check_bridge(bridge: TransformerBridge) -> TransformerBridge:
    """Return the bridge if its heads can be collected, steered and generated with.

    Raises:
        ModelLoadError: says what is missing, or what goes wrong in a pass.
    """
    name, hooks = bridge.cfg.model_name, bridge.hook_dict
    missing = [hook_name(layer) for layer in range(bridge.cfg.n_layers) if hook_name(layer) not in hooks]
    if missing:
        raise ModelLoadError(
            f"Model {name!r} has no {missing[0]!r}: every layer must have an attention whose heads can be hooked."
        )
    _check_width(bridge)
    generates = getattr(bridge.original_model, "can_generate", None)
    if generates is not None and not generates():
        raise ModelLoadError(f"Model {name!r} does not generate text: there is nothing to steer.")
    if bridge.tokenizer is None:
        raise ModelLoadError(f"Model {name!r} has no tokenizer; pass one as `tokenizer`.")
    _check_cache(bridge)
    # Once for each bridge: a later call may come inside a `steer` block, whose trace would record the pass.
    if bridge not in _PASSED:
        _check_pass(bridge)
        _PASSED.add(bridge)
    return bridge


def _check_width(bridge: TransformerBridge) -> None:
    heads = (bridge.cfg.n_heads, bridge.cfg.d_head)
    for layer, block in enumerate(bridge.blocks):
        width = input_width(block.attn.o.original_component)
        if width != heads[0] * heads[1]:
            raise ModelLoadError(
                f"Model {bridge.cfg.model_name!r} has {heads[0]} heads of {heads[1]}, but its output projection in "
                f"layer {layer} reads {width} values: they cannot be told apart by head."
            )


def _check_cache(bridge: TransformerBridge) -> None:
    """Refuse a bridge that does not fill the KV cache: it would generate each token as if it were the first."""
    plain = plain_model(bridge)
    if "cache" not in inspect.signature(plain.forward).parameters:
        # Under the name that the cache had before transformers 5.24, every version of TransformerLens fills it.
        return
    with torch.no_grad():
        cache = plain(torch.zeros((1, 1), dtype=torch.long, device=bridge.cfg.device), use_cache=True).cache
    if cache is None or not int(cache.get_seq_length()):
        raise ModelLoadError(
            f"TransformerLens {version('transformer-lens')} leaves the KV cache of transformers "
            f"{version('transformers')} empty: generated text would be wrong. `pip install 'transformers<5.24'`."
        )


def _check_pass(bridge: TransformerBridge) -> None:
    """Run a text and its beginning, padded, in one pass with an attention mask: both must be predicted alike.

    They differ if tokens see those after them, or padding. Some models do so under a mask alone, so a pass without one
    would not show it.
    """
    ids = ordinary_tokens(bridge, LONG)
    tokens, mask = pad_rows([ids, ids[:SHORT]], pad_token(bridge))
    try:
        logits = _logits(bridge, tokens, mask)[:, :SHORT].float()
    except Exception as error:
        raise not_supported(str(bridge.cfg.model_name), error) from error
    difference = float((logits[0] - logits[1]).abs().max()) / max(1.0, float(logits.abs().max()))
    # Weights that are not finite are for the caller to see: half precision overflows in some models, and errors at use
    # name the remedy.
    if difference > TOLERANCES[bridge.cfg.dtype]:
        raise ModelLoadError(
            f"Model {bridge.cfg.model_name!r} in TransformerLens {version('transformer-lens')} predicts the same "
            f"tokens otherwise when others follow them (by {difference:.1e}): under an attention mask it sees later "
            "tokens or padding, so batches would give wrong results. Use another version of TransformerLens or another "
            "model."
        )


@torch.no_grad()
def _logits(bridge: TransformerBridge, tokens: Int[Tensor, "batch pos"], mask: Tensor) -> Tensor:
    return bridge(tokens.to(bridge.cfg.device), attention_mask=mask.long().to(bridge.cfg.device))
