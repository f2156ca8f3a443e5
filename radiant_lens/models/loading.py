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

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, ModelLoadError
from radiant_lens.models.identity import plain_model
from radiant_lens.models.precision import default_dtype, parse_dtype
from radiant_lens.models.quiet import quiet
from radiant_lens.models.sources import EMBEDDED, PACKAGED, Source, find_source
from radiant_lens.sites import hook_name, input_width


def load_model(
    model: str | Path | PreTrainedModel | TransformerBridge = "tiny",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    prepend_bos: bool | None = None,
    device_map: str | dict[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
) -> TransformerBridge:
    """Load a model so that its heads can be read and edited at `hook_z`.

    Args:
        model: "tiny" (the embedded model); "smollm2-135m-instruct" or "gemma-3-270m" (pretrained, from a package that
            pip brings, else from the Hub); a Hub id; a local folder in Hugging Face format; a .gguf file (dequantised
            once and kept); a `PreTrainedModel` (used as it is, its attention set to "eager"); or a bridge (checked,
            returned).
        tokenizer: needed with a `PreTrainedModel` that does not know where it came from; one that was saved.
        device: where to put it; default CUDA where there is one (each rank of a launch its own), else the CPU.
        dtype: a torch dtype or its name, such as "bfloat16". None or "auto": the checkpoint's own; on a CPU bfloat16
            only where the processor computes in it, else float32.
        prepend_bos: whether texts begin with the tokenizer's BOS token; default as the tokenizer itself does. Rendered
            chats have the special tokens of their template either way.
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
        own = _reloadable(tokenizer or _tokenizer_of(model))
        source = Source(name, name)
        return _boot(source, parse_dtype(dtype) or model.dtype, own, prepend_bos, hf_model=model, device=there)
    if not isinstance(model, (str, Path)):
        raise InvalidArgumentError(
            f"`model` must be a name, a folder, a PreTrainedModel or a TransformerBridge; got {type(model).__name__}."
        )
    precision, source = parse_dtype(dtype), find_source(str(model))
    own = None if tokenizer is None else _reloadable(tokenizer)
    if device_map is None:
        place: dict[str, Any] = {"device": there}
    else:
        place = {"device_map": device_map, "offload_folder": None if offload_folder is None else str(offload_folder)}
    precision = precision or default_dtype(_checkpoint_dtype(source), place.get("device"))
    return _boot(source, precision, own, prepend_bos, **place)


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


def _checkpoint_dtype(source: Source) -> torch.dtype:
    with _load_errors(source):
        return getattr(AutoConfig.from_pretrained(source.path), "dtype", None) or torch.float32


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    name = model.config.name_or_path
    if not name:
        raise InvalidArgumentError("`tokenizer` must be given with a PreTrainedModel that was not loaded by name.")
    with _load_errors(Source(name, name)):
        return AutoTokenizer.from_pretrained(name)


def _reloadable(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer; TransformerLens reads one that has a BOS token anew from where it came."""
    if tokenizer.bos_token is not None and not tokenizer.init_kwargs.get("name_or_path"):
        raise InvalidArgumentError(
            "`tokenizer` must be loaded by name or from a folder; got one made in memory: save it with "
            "`tokenizer.save_pretrained(folder)` and load it with `AutoTokenizer.from_pretrained(folder)`."
        )
    return tokenizer


def _boot(
    source: Source,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase | None,
    prepend_bos: bool | None,
    **options: Any,
) -> TransformerBridge:
    with _load_errors(source), quiet():
        bridge = TransformerBridge.boot_transformers(source.path, dtype=dtype, tokenizer=tokenizer, **options)
        if bridge.tokenizer is not None:
            own = AutoTokenizer.from_pretrained(source.path) if tokenizer is None else tokenizer
            _set_tokenizer(bridge, own, prepend_bos)
    bridge.eval()
    # Results and artefacts name the model as the user does, not by the folder of a cache.
    bridge.cfg.model_name = source.name
    if str(bridge.cfg.device) == "meta":
        # The embedding is on disk; offloaded modules compute on the CPU.
        bridge.cfg.device = "cpu"
    return _checked(bridge)


def _set_tokenizer(bridge: TransformerBridge, own: PreTrainedTokenizerBase, prepend_bos: bool | None) -> None:
    """Give a bridge the model's own tokenizer, and the rule for BOS that `to_tokens`, `generate` and we follow.

    TransformerLens replaces a tokenizer by one that prepends BOS to every text, whether or not the model was trained
    so. SmolLM2's BOS, for instance, opens a chat turn.
    """
    if own.pad_token_id is None:
        own.pad_token = own.eos_token
    bridge.tokenizer = own
    ids = list(own("a")["input_ids"])
    config: Any = bridge.cfg
    config.tokenizer_prepends_bos = own.bos_token_id is not None and ids[:1] == [own.bos_token_id]
    config.tokenizer_appends_eos = own.eos_token_id is not None and len(ids) > 1 and ids[-1] == own.eos_token_id
    config.default_prepend_bos = config.tokenizer_prepends_bos if prepend_bos is None else prepend_bos


@contextmanager
def _load_errors(source: Source) -> Generator[None]:
    """Turn the errors of transformers into one sentence with the remedy."""
    name = source.name
    try:
        yield
    except OSError as error:
        if Path(source.path).is_dir():
            raise ModelLoadError(f"The model in {source.path!r} cannot be read: {_first_line(error)}") from error
        if name in PACKAGED:
            raise ModelLoadError(
                f"Model {name!r} is not installed and could not be had from the Hugging Face Hub "
                f"({_first_line(error)}): {PACKAGED[name].pip}"
            ) from error
        if "/" not in name:
            _suggest(name)
        raise ModelLoadError(
            f"Model {name!r} is no local folder and could not be had from the Hugging Face Hub ({_first_line(error)}); "
            f"check the id and the network, or download it elsewhere and pass its folder; 'tiny' works offline."
        ) from error
    except HTTPError as error:
        raise ModelLoadError(
            f"The download of model {name!r} was interrupted ({_first_line(error)}): load it again; finished files are "
            "kept."
        ) from error
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelLoadError(f"Model {name!r} is not supported by TransformerLens: {_first_line(error)}") from error


def _suggest(name: str) -> None:
    """Raise with near names where the name looks like one mistyped."""
    from transformer_lens.supported_models import MODEL_ALIASES

    known = [*EMBEDDED, *PACKAGED, *(hub for hub in MODEL_ALIASES if "/" not in hub)]
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
    source = find_source(str(model))
    with _load_errors(source), quiet():
        plain = type(plain_model(like)).from_pretrained(source.path, dtype=like.cfg.dtype, attn_implementation="eager")
    torch.nn.Module.to(plain, like.cfg.device)
    return plain.eval()


def projection_paths(bridge: TransformerBridge) -> list[str]:
    """Where the plain model has the module whose input is `hook_z`, by layer, whatever its architecture."""
    names = {id(module): name for name, module in bridge.original_model.named_modules()}
    paths = [f"{names[id(block.attn)]}.{block.attn.o.name}" for block in bridge.blocks]
    return [path.replace("_original_component.", "") for path in paths]
