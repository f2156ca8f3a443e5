"""Telling models apart: what a model is, and whether an artefact was made for it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointGateUpMLPBridge, JointQKVAttentionBridge
from transformers import PreTrainedModel

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens._typing import HookFunction
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError
from radiant_lens.sites import input_width, output_projections, walk
from radiant_lens.steering.steering import Steering
from radiant_lens.tiny import model_folder

AnyModel = TransformerBridge | PreTrainedModel

# What of a configuration decides what a model computes; a list of its own, since transformers adds keys with time.
_CONFIG_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "layer_norm_eps", "rms_norm_eps"),
    *("rope_parameters", "sliding_window", "tie_word_embeddings"),
)


def signature(model: AnyModel) -> dict[str, Any]:
    """What tells this model from others: name, revision, shape, configuration, and a hash of a sample of its weights.

    A plain model and its bridge have the same. Weights in another precision are the same, up to `dtype`.
    """
    described, plain = _description(model), plain_model(model)
    return {
        "name": _name(model),
        "revision": getattr(getattr(plain, "config", None), "_commit_hash", None),
        **described,
        "dtype": str(next(plain.parameters()).dtype).removeprefix("torch."),
        "weights": list(_weight_hashes(plain)),
    }


def plain_model(model: AnyModel) -> PreTrainedModel:
    """What a bridge wraps; a plain model itself."""
    # The bridge declares its model as any module.
    return cast(PreTrainedModel, model.original_model) if isinstance(model, TransformerBridge) else model


def _name(model: AnyModel) -> str:
    name = str(model.cfg.model_name) if isinstance(model, TransformerBridge) else model.config.name_or_path
    # A plain model knows the embedded one by its folder only.
    return "tiny" if name == str(model_folder()) else name or _architecture(model)


def _architecture(model: AnyModel) -> str:
    return str(model.cfg.architecture) if isinstance(model, TransformerBridge) else type(model).__name__


def _description(model: AnyModel) -> dict[str, Any]:
    """Architecture, shape and configuration, which must be the same of two models whatever their weights."""
    if not isinstance(model, (TransformerBridge, PreTrainedModel)):
        raise InvalidArgumentError(
            f"`model` must be a TransformerBridge or a PreTrainedModel; got {type(model).__name__}: "
            "use `load_model(model)`, and of a compiled model what was compiled."
        )
    whole = getattr(plain_model(model), "config", None)
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
    }


def _config_values(config: Any) -> dict[str, Any]:
    # To ask a configuration for something takes a while, most of all for what it does not have, and none has all.
    held, kind, names = vars(config), type(config), config.attribute_map
    found = {key: names.get(key, key) for key in _CONFIG_KEYS}
    values = {
        key: held[name] if name in held else getattr(config, name) if hasattr(kind, name) else None
        for key, name in found.items()
    }
    return {key: _as_json(value) for key, value in values.items() if value is not None}


def _as_json(value: Any) -> Any:
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _as_json(inner) for key, inner in value.items()}
    return value if type(value) in (bool, int, float, str) else json.loads(json.dumps(value, default=str))


def _weight_hashes(model: PreTrainedModel) -> Iterator[str]:
    """Hashes of a sample of the weights, rounded so that the same checkpoint in another precision shares one.

    Single precision has the one of bfloat16 (the first) and, rounded twice, the one of float16 (the second).
    """
    sampled = _sampled(model)
    for rounded in (Tensor.bfloat16, lambda values: values.half().bfloat16()):
        yield _hash([part for values, sizes in sampled for part in _split(rounded(values).float(), sizes)])


@torch.no_grad()
def _sampled(model: PreTrainedModel) -> list[tuple[Float[Tensor, " value"], list[int]]]:
    """Samples of all weights, those of one kind as one tensor, with their sizes."""
    # Every `steer` waits for this: one copy for each kind of sample, however many parameters there are.
    samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for sample in _samples(model):
        samples[sample.device, sample.dtype].append(sample)
    return [(torch.cat(parts).cpu().float(), [part.numel() for part in parts]) for parts in samples.values()]


def _split(values: Tensor, sizes: Sequence[int]) -> list[bytes]:
    content, ends = values.numpy().tobytes(), [4 * end for end in accumulate(sizes)]
    return [content[begin:end] for begin, end in zip([0, *ends], ends)]


def _hash(samples: Iterable[bytes]) -> str:
    # Sorted: a bridge may hold the parts of an attention in another order.
    return sha256(sorted(samples))[:16]


_COPYING = {JointQKVAttentionBridge: ("q", "k", "v"), JointGateUpMLPBridge: ("gate", "in")}
"""Bridges of a matrix that serves several purposes, and where they hold its parts beside it."""


def _samples(model: torch.nn.Module) -> Iterator[Tensor]:
    """The beginning of every parameter that is no copy, each once; those that are offloaded are fetched."""
    seen: set[int] = set()
    copying, offloaded = tuple(_COPYING), defaultdict[torch.nn.Module, list[str]](list)
    for _, module in walk(model):
        if isinstance(module, copying):
            # What is inside a module comes after it.
            parts = next(parts for kind, parts in _COPYING.items() if isinstance(module, kind))
            seen.update(id(p) for part in parts for p in getattr(module, part).parameters())
        # As `named_parameters` has them, which takes several times as long.
        held: dict[str, torch.nn.Parameter | None] = vars(module)["_parameters"]
        for key, parameter in held.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                if parameter.is_meta:
                    offloaded[module].append(key)
                else:
                    yield parameter.flatten()[:64]
    if offloaded:
        yield from _fetched(model, offloaded)


def _fetched(model: torch.nn.Module, offloaded: dict[torch.nn.Module, list[str]]) -> Iterator[Tensor]:
    from accelerate.utils import align_module_device

    # Offloaded, tied parameters are no longer one object.
    tied = getattr(model, "all_tied_weights_keys", {})
    paths = {module: name.removesuffix("._original_component") for name, module in model.named_modules()}
    for module, keys in offloaded.items():
        with align_module_device(module, torch.device("cpu")):
            # A copy: a view would keep the whole of it in memory.
            yield from [getattr(module, k).flatten()[:64].clone() for k in keys if f"{paths[module]}.{k}" not in tied]


def require_same(expected: dict[str, Any], model: AnyModel) -> None:
    """Raise where an artefact made for one model meets another.

    Raises:
        ModelMismatchError: names the first difference that matters; names of the same weights may differ.
    """
    difference = next(_differences(expected, model), None)
    if difference is not None:
        key, wanted, found = difference
        made_for = f"This was made for model {expected.get('name')!r}"
        if key == "weights" and isinstance(wanted, str):
            raise ModelMismatchError(
                f"{made_for} by an earlier version, whose hash of weights cannot be compared: make it anew, or pass "
                "`allow_mismatch=True` to `steer` if you are sure."
            )
        raise ModelMismatchError(f"{made_for} with {key} = {wanted!r}; {_name(model)!r} has {found!r}.")


def _differences(expected: dict[str, Any], model: AnyModel) -> Iterator[tuple[str, Any, Any]]:
    """Key, what was expected, and what the model has; the weights, which take longest to look at, last."""
    yield from _unequal(expected, _description(model))
    if "weights" in expected:
        wanted, hashes = expected["weights"], []
        for made in _weight_hashes(plain_model(model)):
            if isinstance(wanted, list) and made in wanted:
                return
            hashes.append(made)
        yield "weights", wanted, hashes


def _unequal(expected: dict[str, Any], actual: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What two descriptions both tell, and differently."""
    for key, value in actual.items():
        if isinstance(value, dict) and isinstance(expected.get(key), dict):
            yield from _unequal(expected[key], value, f"{path}{key}.")
        elif key in expected and expected[key] != value:
            yield path + key, expected[key], value


def require_bridge(model: object) -> None:
    """Raise `InvalidArgumentError` for what is no bridge, with the remedy."""
    _checks.instance("model", model, TransformerBridge, hint="use `load_model(model)`")


def require_fitting(steering: Steering, model: AnyModel, *, allow_mismatch: bool = False) -> None:
    """Raise where a steering meets a model that it was not made for.

    Args:
        steering: any; its own shape counts where it does not say which model it was made for.
        model: bridge or plain.
        allow_mismatch: only the shape must be the same.

    Raises:
        InvalidArgumentError: no steering, or no model.
        ModelMismatchError: names the first difference that matters.
    """
    hint = "a policy's `fit` returns one, `Steering.load(folder)` reads one"
    _checks.instance("steering", steering, Steering, hint=hint)
    expected = dict(steering.meta.get("model", {}))
    expected |= dict(zip(("n_layers", "n_heads", "d_head"), steering.scores.weights.shape))
    if allow_mismatch:
        expected = {key: expected[key] for key in ("n_layers", "n_heads", "d_head")}
    require_same(expected, model)


def check_hooks(model: TransformerBridge, fwd_hooks: Sequence[tuple[Any, HookFunction]]) -> None:
    """Raise `UnknownNameError` for a hook that the model does not have; TransformerLens also takes filters of names."""
    for name, _ in fwd_hooks:
        if isinstance(name, str):
            _checks.known("hook of this model", name, model.hook_dict)
