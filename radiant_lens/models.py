"""Loading any model as a `TransformerBridge`, and telling two models apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from httpx import HTTPError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointGateUpMLPBridge, JointQKVAttentionBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from radiant_lens import _checks
from radiant_lens._errors import InvalidArgumentError, ModelLoadError, ModelMismatchError
from radiant_lens._typing import HookFunction
from radiant_lens.policies.steering import Steering
from radiant_lens.sites import hook_name, input_width, output_projections
from radiant_lens.tiny import model_folder

EMBEDDED = ("tiny",)


def load_model(
    model: str | Path | PreTrainedModel | TransformerBridge = "tiny",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
) -> TransformerBridge:
    """Load a model so that its heads can be read and edited at `hook_z`.

    Args:
        model: "tiny" (the embedded model), a Hub id, a local folder in Hugging Face format, a
            `PreTrainedModel` (used as it is, its attention set to "eager"), or a bridge (checked, returned).
        tokenizer: needed with a `PreTrainedModel` that does not know where it came from; one that was saved.
        device: where to put it; default CUDA where there is one (each rank of a launch its own), else the CPU.
        dtype: default float32 on the CPU, elsewhere and with a device map the checkpoint's own.
        device_map: in place of a device, for a model too large for one: "auto", or a device ("cpu", "disk", 0, ...)
            for each module by name, as transformers takes it. GPUs and offloading cannot be mixed. A PreTrainedModel
            that was loaded with a map keeps it.
        offload_folder: where weights go that the map puts on "disk".

    Returns:
        The bridge, in evaluation mode; `bridge.original_model` is the Hugging Face model.

    Raises:
        UnknownNameError: a name that is neither embedded, nor a folder, nor like a Hub id.
        InvalidArgumentError: no model, a tokenizer that is missing or was never saved, or a device map together with
            a device or with a model that is loaded already.
        ModelLoadError: it cannot be loaded, is not supported, or the Hub cannot be reached.
    """
    if device_map is not None and (device is not None or not isinstance(model, (str, Path))):
        raise InvalidArgumentError(
            "`device_map` goes with a name or a folder, and in place of `device`: a model that is loaded already stays "
            "where it is."
        )
    _check_map(device_map)
    if isinstance(model, TransformerBridge):
        return _checked(model)
    there = _device(device)
    if isinstance(model, PreTrainedModel):
        name = model.config.name_or_path or type(model).__name__
        extra: dict[str, Any] = {"hf_model": model, "tokenizer": _reloadable(tokenizer or _tokenizer_of(model))}
        return _boot(name, dtype or model.dtype, {**extra, "device": there})
    if not isinstance(model, (str, Path)):
        raise InvalidArgumentError(
            f"`model` must be a name, a folder, a PreTrainedModel or a TransformerBridge; got {type(model).__name__}."
        )
    name = _resolved(str(model))
    extra = {} if tokenizer is None else {"tokenizer": _reloadable(tokenizer)}
    if device_map is None:
        place: dict[str, Any] = {"device": there}
    else:
        place = {"device_map": device_map, "offload_folder": None if offload_folder is None else str(offload_folder)}
    return _boot(name, dtype or _default_dtype(name, place.get("device")), {**extra, **place})


def _check_map(device_map: str | dict[str, str | int] | None) -> None:
    if isinstance(device_map, str):
        _checks.choice("device_map", device_map, ("auto", "balanced", "balanced_low_0", "sequential"))
        return
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", "disk", *(f"cuda:{i}" for i in range(n_gpus)), *range(n_gpus)]
    for module, place in (device_map or {}).items():
        if place not in allowed:
            raise InvalidArgumentError(
                f"`device_map` must put modules on {', '.join(map(repr, allowed))}; got {place!r} for {module!r}."
            )


def _device(wanted: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(wanted or _default_device())
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"`device` must be such as 'cpu' or 'cuda:0'; got {wanted!r}.") from error
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise InvalidArgumentError(f"`device` {wanted!r} is not there: torch sees {n_gpus} CUDA devices; 'cpu' works.")
    return device


def _default_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    local = os.environ.get("LOCAL_RANK")
    return "cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}"


def _resolved(name: str) -> str:
    if name in EMBEDDED:
        return str(model_folder())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelLoadError(f"Folder {name!r} holds no model: it has no config.json.")
        return name
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"There is no folder {name!r}.")
    return name


def _default_dtype(name: str, device: torch.device | None) -> torch.dtype:
    if device is not None and device.type == "cpu":
        return torch.float32
    with _load_errors(name):
        return getattr(AutoConfig.from_pretrained(name), "dtype", None) or torch.float32


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    name = model.config.name_or_path
    if not name:
        raise InvalidArgumentError("`tokenizer` must be given with a PreTrainedModel that was not loaded by name.")
    with _load_errors(name):
        return AutoTokenizer.from_pretrained(name)


def _reloadable(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer; TransformerLens reads one that has a BOS token anew from where it came."""
    if tokenizer.bos_token is not None and not tokenizer.init_kwargs.get("name_or_path"):
        raise InvalidArgumentError(
            "`tokenizer` must be loaded by name or from a folder; got one made in memory: save it with "
            "`tokenizer.save_pretrained(folder)` and load it with `AutoTokenizer.from_pretrained(folder)`."
        )
    return tokenizer


def _boot(name: str, dtype: torch.dtype, extra: dict[str, Any]) -> TransformerBridge:
    with _load_errors(name), _quiet():
        bridge = TransformerBridge.boot_transformers(name, dtype=dtype, **extra)
    bridge.eval()
    if str(bridge.cfg.device) == "meta":
        # The embedding stands on disk; what is offloaded computes on the CPU.
        bridge.cfg.device = "cpu"
    if bridge.tokenizer is not None and bridge.tokenizer.pad_token_id is None:
        bridge.tokenizer.pad_token = bridge.tokenizer.eos_token
    return _checked(bridge)


@contextmanager
def _quiet() -> Generator[None]:
    """No progress bar of the weights; the setting is put back."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _load_errors(name: str) -> Generator[None]:
    """Whatever transformers says of a name becomes one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        if Path(name).is_dir():
            raise ModelLoadError(f"The model in {name!r} cannot be read: {_first_line(error)}") from error
        if "/" not in name:
            _suggest(name)
        raise ModelLoadError(
            f"Model {name!r} is no local folder and could not be had from the Hugging Face Hub ({_first_line(error)}); "
            f"check the id and the network, or download it elsewhere and pass its folder; 'tiny' works offline."
        ) from error
    except HTTPError as error:
        raise ModelLoadError(
            f"The download of model {name!r} was interrupted ({_first_line(error)}): load it again; what is "
            "complete is kept."
        ) from error
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelLoadError(f"Model {name!r} is not supported by TransformerLens: {_first_line(error)}") from error


def _suggest(name: str) -> None:
    """Raise with near names where the name looks like one mistyped."""
    from transformer_lens.supported_models import MODEL_ALIASES

    known = [*EMBEDDED, *(hub for hub in MODEL_ALIASES if "/" not in hub)]
    if name not in known:
        _checks.known("model", name, known, hint="Other models: a Hub id or a local folder.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _checked(bridge: TransformerBridge) -> TransformerBridge:
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


def load_plain(model: str | Path, like: TransformerBridge) -> PreTrainedModel:
    """Load the transformers model that a bridge was made of, in the bridge's precision and on its device.

    Args:
        model: the name that the bridge was loaded by.
        like: the bridge.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    name = _resolved(str(model))
    with _load_errors(name), _quiet():
        plain = type(_plain(like)).from_pretrained(name, dtype=like.cfg.dtype, attn_implementation="eager")
    torch.nn.Module.to(plain, like.cfg.device)
    return plain.eval()


def projection_paths(bridge: TransformerBridge) -> list[str]:
    """Where the plain model has the module whose input is `hook_z`, by layer, whatever its architecture."""
    names = {id(module): name for name, module in bridge.original_model.named_modules()}
    paths = [f"{names[id(block.attn)]}.{block.attn.o.name}" for block in bridge.blocks]
    return [path.replace("_original_component.", "") for path in paths]


AnyModel = TransformerBridge | PreTrainedModel

# What of a configuration decides what a model computes; a list of its own, since transformers adds keys with time.
_CONFIG_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "layer_norm_eps", "rms_norm_eps"),
    *("rope_parameters", "sliding_window", "tie_word_embeddings"),
)
_COMPARED = ("architecture", "n_layers", "n_heads", "d_head", "config", "weights")


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of a model's language part."""
    return model.config.get_text_config()


def signature(model: AnyModel) -> dict[str, Any]:
    """What tells this model from others: name, revision, shape, configuration, and a hash of a sample of its weights.

    A plain model and its bridge have the same. Weights in another precision are the same, up to `dtype`.
    """
    return {**_description(model), "weights": _weight_hashes(_plain(model))}


def _plain(model: AnyModel) -> PreTrainedModel:
    # The bridge declares its model as any module.
    return cast(PreTrainedModel, model.original_model) if isinstance(model, TransformerBridge) else model


def _description(model: AnyModel) -> dict[str, Any]:
    """`signature` without looking at the weights."""
    plain = _plain(model)
    if isinstance(model, TransformerBridge):
        name, architecture = str(model.cfg.model_name), str(model.cfg.architecture)
        shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    elif isinstance(model, PreTrainedModel):
        name, architecture, projections = model.config.name_or_path, type(model).__name__, output_projections(model)
        n_heads = text_config(model).num_attention_heads
        shape = (len(projections), n_heads, input_width(projections[0]) // n_heads)
    else:
        raise InvalidArgumentError(
            f"`model` must be a TransformerBridge or a PreTrainedModel; got {type(model).__name__}: "
            "use `load_model(model)`, and of a compiled model what was compiled."
        )
    config = getattr(plain, "config", None)
    return {
        "name": "tiny" if name == str(model_folder()) else name or architecture,
        "revision": getattr(config, "_commit_hash", None),
        "architecture": architecture,
        **dict(zip(("n_layers", "n_heads", "d_head"), map(int, shape))),
        "config": {} if config is None else _config_values(config.get_text_config()),
        "dtype": str(next(plain.parameters()).dtype).removeprefix("torch."),
    }


def _config_values(config: Any) -> dict[str, Any]:
    values = {key: getattr(config, key, None) for key in _CONFIG_KEYS}
    return {key: json.loads(json.dumps(value, default=str)) for key, value in values.items() if value is not None}


def _weight_hashes(model: torch.nn.Module) -> list[str]:
    """Hashes of a sample of the weights, rounded so that the same checkpoint in another precision shares one.

    Single precision has the one of bfloat16 (the first) and, rounded twice, the one of float16 (the second).
    """
    samples = [p.detach().flatten()[:64].to("cpu", torch.float32) for p in _parameters(model)]
    return [_hash([s.bfloat16() for s in samples]), _hash([s.half().bfloat16() for s in samples])]


def _hash(samples: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    # Sorted: a bridge may hold the parts of an attention in another order.
    for sample in sorted(sample.float().numpy().tobytes() for sample in samples):
        digest.update(sample)
    return digest.hexdigest()[:16]


def _parameters(model: torch.nn.Module) -> Iterator[Tensor]:
    """The parameters of the plain model; those that are offloaded are fetched."""
    copies = {f"{name}.{part}" for name, module in model.named_modules() for part in _copied_parts(module)}
    seen: set[int] = set()
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, module in model.named_modules():
        if any(name == copy or name.startswith(f"{copy}.") for copy in copies):
            continue
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        if any(p.is_meta for p in own):
            from accelerate.utils import align_module_device

            # Offloaded, tied parameters are no longer one object.
            plain = name.removesuffix("._original_component")
            with align_module_device(module, torch.device("cpu")):
                yield from [p for key, p in module.named_parameters(recurse=False) if f"{plain}.{key}" not in tied]
        else:
            yield from own


def _copied_parts(module: torch.nn.Module) -> tuple[str, ...]:
    """Where one matrix serves several purposes, a bridge holds copies of its parts beside it."""
    if isinstance(module, JointQKVAttentionBridge):
        return ("q", "k", "v")
    return ("gate", "in") if isinstance(module, JointGateUpMLPBridge) else ()


def require_same(expected: dict[str, Any], model: AnyModel) -> None:
    """Raise where an artefact made for one model meets another.

    Raises:
        ModelMismatchError: names the first difference that matters; names of the same weights may differ.
    """
    actual = signature(model) if "weights" in expected else _description(model)
    for key in _COMPARED:
        if key in expected:
            _compare(key, expected[key], actual[key], expected.get("name"), actual["name"])


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


def _compare(key: str, expected: Any, actual: Any, made_for: str | None, name: str) -> None:
    if isinstance(expected, dict):
        for part in expected.keys() & actual.keys():
            _compare(f"{key}.{part}", expected[part], actual[part], made_for, name)
    elif expected == actual or (key == "weights" and set(expected) & set(actual)):
        return
    elif key == "weights" and isinstance(expected, str):
        raise ModelMismatchError(
            f"This was made for model {made_for!r} by an earlier version, whose hash of weights cannot be compared: "
            "make it anew, or pass `allow_mismatch=True` to `steer` if you are sure."
        )
    else:
        raise ModelMismatchError(
            f"This was made for model {made_for!r} with {key} = {expected!r}; {name!r} has {actual!r}."
        )
