"""The identity of a model, and checks that an artefact was made for it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any, cast

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError, TokenRuleWarning
from radiant_lens.models.fingerprint import active_adapters, content_hashes
from radiant_lens.models.sample_hash import sample_hashes
from radiant_lens.sites import input_width, output_projections
from radiant_lens.steering.steering import Steering
from radiant_lens.tiny import model_folder

AnyModel = TransformerBridge | PreTrainedModel

# The entries of a configuration that decide what a model computes. A fixed list, because later versions of transformers
# add entries, and a comparison of all of them would tell a model from itself.
_CONFIG_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "layer_norm_eps", "rms_norm_eps"),
    *("rope_parameters", "sliding_window", "tie_word_embeddings"),
)


def signature(model: AnyModel) -> dict[str, Any]:
    """Describe a model so that it can be told from others.

    A plain model and its bridge have the same description, but for `prepend_bos`, which only a bridge has. Weights in
    another precision give the same description up to `dtype` and one hash of each pair.

    Returns:
        Name, revision, architecture, shape, configuration, quantisation, active adapters, `dtype`, the rule for special
        tokens, and two pairs of hashes: "content" of all weights, and "weights" of a sample, which is the only one that
        artefacts of version 0.1 hold.
    """
    description, plain = _description(model), plain_model(model)
    return {
        "name": _name(model),
        "revision": getattr(getattr(plain, "config", None), "_commit_hash", None),
        **description,
        "dtype": str(next(plain.parameters()).dtype).removeprefix("torch."),
        "weights": list(sample_hashes(plain)),
        # Read again in any case: what is recorded must not rest on signs of change, of which one could be missed.
        "content": content_hashes(plain, reread=True),
        **({"prepend_bos": prepends_bos(model)} if isinstance(model, TransformerBridge) else {}),
    }


def prepends_bos(bridge: TransformerBridge) -> bool:
    """Return True if texts that are not chats begin with the BOS token."""
    return bool(bridge.cfg.default_prepend_bos)


def plain_model(model: AnyModel) -> PreTrainedModel:
    """The transformers model inside a bridge; a plain model itself."""
    # A bridge declares its model as any module.
    return cast(PreTrainedModel, model.original_model) if isinstance(model, TransformerBridge) else model


def _name(model: AnyModel) -> str:
    name = str(model.cfg.model_name) if isinstance(model, TransformerBridge) else model.config.name_or_path
    # A plain model knows the embedded one by its folder only.
    return "tiny" if name == str(model_folder()) else name or _architecture(model)


def _architecture(model: AnyModel) -> str:
    return str(model.cfg.architecture) if isinstance(model, TransformerBridge) else type(model).__name__


def _description(model: AnyModel) -> dict[str, Any]:
    """Architecture, shape, configuration, quantisation and adapters: quick to compare, and before any weights."""
    if not isinstance(model, (TransformerBridge, PreTrainedModel)):
        raise InvalidArgumentError(
            f"`model` must be a TransformerBridge or a PreTrainedModel; got {type(model).__name__}: "
            f"{inner_model_advice(model) or 'use `load_model(model)`'}."
        )
    plain = plain_model(model)
    whole = getattr(plain, "config", None)
    config: Any = None if whole is None else whole.get_text_config()
    if isinstance(model, TransformerBridge):
        shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    else:
        projections, n_heads = output_projections(model), config.num_attention_heads
        shape = (len(projections), n_heads, input_width(projections[0]) // n_heads)
    return {
        "architecture": _architecture(model),
        **dict(zip(("n_layers", "n_heads", "d_head"), map(int, shape))),
        "config": {} if config is None else _config_values(config),
        "quantization": _quantization(whole),
        "adapters": active_adapters(plain),
    }


def inner_model_advice(model: object) -> str:
    """The remedy for an object that holds a transformers model but is not one; empty for any other object."""
    if hasattr(model, "merge_and_unload"):
        return (
            "pass `model.get_base_model()`, whose adapters can still be switched on and off, or "
            "`model.merge_and_unload()`"
        )
    if hasattr(model, "_orig_mod"):
        return "pass the model as it was before `torch.compile`, `model._orig_mod`"
    if type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
        return "pass the model inside, `model.module`"
    if type(model).__name__.startswith("Hooked"):
        return "pass the name or folder that it was loaded from; `load_model` makes a TransformerBridge of it"
    return ""


def _config_values(config: Any) -> dict[str, Any]:
    # Reading an attribute of a configuration is slow, most of all one that is missing, and no model has all of them:
    # its dictionary and its class answer faster. `steer` waits for this at every generation.
    values_by_name, kind, aliases = vars(config), type(config), config.attribute_map
    names = {key: aliases.get(key, key) for key in _CONFIG_KEYS}
    values = {
        key: values_by_name[name] if name in values_by_name else getattr(config, name) if hasattr(kind, name) else None
        for key, name in names.items()
    }
    return {key: _as_json(value) for key, value in values.items() if value is not None}


def _as_json(value: Any) -> Any:
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _as_json(inner) for key, inner in value.items()}
    return value if type(value) in (bool, int, float, str) else json.loads(json.dumps(value, default=str))


def _quantization(config: Any) -> str | None:
    """Method by which the weights are quantised; None for weights in full."""
    settings: Any = vars(config).get("quantization_config") if config is not None else None
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method))


def require_same(expected: dict[str, Any], model: AnyModel) -> None:
    """Raise if an artefact that was made for one model is used with another.

    Args:
        expected: the `signature` that the artefact holds, or a part of it.
        model: bridge or plain.

    Raises:
        ModelMismatchError: names the first difference that matters; the name of the model does not.
    """
    difference = next(_differences(expected, model), None)
    if difference is None:
        return
    key, recorded, actual = difference
    made_for = f"This was made for model {expected.get('name')!r}"
    if key == "weights" and isinstance(recorded, str):
        raise ModelMismatchError(
            f"{made_for} by an earlier version, whose hash of weights cannot be compared: make it again, or pass "
            "`allow_mismatch=True` to `steer` if you are sure."
        )
    reason = ": its weights, or the weights of its active adapters, are not the same" if key == "content" else ""
    raise ModelMismatchError(f"{made_for} with {key} = {recorded!r}; {_name(model)!r} has {actual!r}{reason}.")


def _differences(expected: dict[str, Any], model: AnyModel) -> Iterator[tuple[str, Any, Any]]:
    """Key, recorded value and actual value of each difference; weights last, since they take longest."""
    yield from _unequal(expected, _description(model))
    # Artefacts of version 0.1 have no hash of all weights. Where there is one, the sample is not compared: it also
    # counts the weights of adapters that are switched off.
    for key, make_hashes in (("content", content_hashes), ("weights", sample_hashes)):
        if key in expected:
            recorded, hashes = expected[key], list[str](make_hashes(plain_model(model)))
            if not isinstance(recorded, list) or set(hashes).isdisjoint(map(str, cast("list[object]", recorded))):
                yield key, recorded, hashes
            return


def _unequal(expected: dict[str, Any], actual: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Differences between two descriptions in the keys that both have."""
    for key, value in actual.items():
        if isinstance(value, dict) and isinstance(expected.get(key), dict):
            yield from _unequal(expected[key], cast("dict[str, Any]", value), f"{path}{key}.")
        elif key in expected and expected[key] != value:
            yield path + key, expected[key], value


def require_bridge(model: object) -> None:
    """Raise `InvalidArgumentError` for anything but a bridge, with the remedy."""
    _checks.instance("model", model, TransformerBridge, hint="use `load_model(model)`")


def require_fitting(steering: Steering, model: AnyModel, *, allow_mismatch: bool = False) -> None:
    """Raise if a steering is used with a model that it was not made for.

    Warns with `TokenRuleWarning` if the texts that it was fitted on began with other special tokens than the model's
    texts do now.

    Args:
        steering: any; one that does not record its model is compared by its shape.
        model: bridge or plain.
        allow_mismatch: compare the shape only.

    Raises:
        InvalidArgumentError: not a steering, or not a model.
        ModelMismatchError: names the first difference that matters.
    """
    hint = "a policy's `fit` returns one, `Steering.load(folder)` reads one"
    _checks.instance("steering", steering, Steering, hint=hint)
    recorded: dict[str, Any] = dict(steering.meta.get("model", {}))
    expected = {**recorded, **dict(zip(("n_layers", "n_heads", "d_head"), steering.scores.weights.shape))}
    if allow_mismatch:
        expected = {key: expected[key] for key in ("n_layers", "n_heads", "d_head")}
    require_same(expected, model)
    if not allow_mismatch and isinstance(model, TransformerBridge):
        _compare_token_rules(recorded.get("prepend_bos"), model)


def _compare_token_rules(recorded: bool | None, bridge: TransformerBridge) -> None:
    if recorded is None or recorded == prepends_bos(bridge):
        return
    warnings.warn(
        f"This steering was fitted on texts {'with' if recorded else 'without'} a BOS token in front, and model "
        f"{_name(bridge)!r} reads texts {'without' if recorded else 'with'} one, so its effect may differ. "
        f"Load the model with `prepend_bos={recorded}`, or fit the steering again.",
        TokenRuleWarning,
        stacklevel=3,
    )
