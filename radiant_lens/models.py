"""Loading any model as a `TransformerBridge`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from httpx import HTTPError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, ModelLoadError
from radiant_lens.identity import plain_model
from radiant_lens.sites import hook_name, input_width
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
    _check_cache(bridge)
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
    """A bridge that does not fill the KV cache generates each token as if it were the first."""
    plain = plain_model(bridge)
    if "cache" not in inspect.signature(plain.forward).parameters:
        # By the name that it had before transformers 5.24, every TransformerLens fills it.
        return
    with torch.no_grad():
        made = plain(torch.zeros((1, 1), dtype=torch.long, device=bridge.cfg.device), use_cache=True).cache
    if made is None or not int(made.get_seq_length()):
        raise ModelLoadError(
            f"TransformerLens {version('transformer-lens')} leaves the KV cache of transformers "
            f"{version('transformers')} empty: generated text would be wrong. `pip install 'transformers<5.24'`."
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
        plain = type(plain_model(like)).from_pretrained(name, dtype=like.cfg.dtype, attn_implementation="eager")
    torch.nn.Module.to(plain, like.cfg.device)
    return plain.eval()


def projection_paths(bridge: TransformerBridge) -> list[str]:
    """Where the plain model has the module whose input is `hook_z`, by layer, whatever its architecture."""
    names = {id(module): name for name, module in bridge.original_model.named_modules()}
    paths = [f"{names[id(block.attn)]}.{block.attn.o.name}" for block in bridge.blocks]
    return [path.replace("_original_component.", "") for path in paths]
