"""Loading any model as a `TransformerBridge`."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.first_pass import check_bridge
from radiant_lens.models.identity import inner_model_advice, plain_model
from radiant_lens.models.load_errors import load_errors
from radiant_lens.models.precision import default_dtype, parse_dtype
from radiant_lens.models.quiet import quiet
from radiant_lens.models.sources import Source, find_source


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
        model: "tiny" (the embedded model); "smollm2-135m-instruct" or "gemma-3-270m" (pretrained, from an installed
            package, else from the Hub); a Hub id; a local folder in Hugging Face format; a .gguf file (dequantised
            once and kept); a `PreTrainedModel` (used as it is, its attention set to "eager"); or a bridge (checked
            and returned).
        tokenizer: in place of the model's own; required with a `PreTrainedModel` that was not loaded by name. It is
            copied.
        device: default CUDA if there is one (each rank of a launch takes its own), else the CPU.
        dtype: a torch dtype or its name, such as "bfloat16". None or "auto": the checkpoint's own; on a CPU bfloat16
            only if the processor computes in it, else float32.
        prepend_bos: True if texts begin with the tokenizer's BOS token, False if not; default as the tokenizer itself
            does. Rendered chats always have the special tokens of their template.
        device_map: in place of a device, for a model too large for one: "auto", or a device ("cpu", "disk", 0, ...)
            for each module by name, as transformers takes it. GPUs and offloading cannot be mixed. A PreTrainedModel
            that was loaded with a map keeps it.
        offload_folder: folder for weights that the map puts on "disk".

    Returns:
        The bridge, in evaluation mode; `bridge.original_model` is the Hugging Face model.

    Raises:
        UnknownNameError: a mistyped name.
        InvalidArgumentError: not a model; a missing tokenizer; `prepend_bos=True` with a tokenizer that has no BOS
            token; or options that do not go together.
        ModelLoadError: it cannot be loaded, is not supported, fails in a first pass, or is on a Hub that cannot be
            reached.
    """
    _check_options(model, tokenizer, prepend_bos, device, device_map)
    if isinstance(model, TransformerBridge):
        return check_bridge(model)
    precision, target = parse_dtype(dtype), _device(device)
    if isinstance(model, PreTrainedModel):
        name = model.config.name_or_path or type(model).__name__
        own = _tokenizer_of(model) if tokenizer is None else deepcopy(tokenizer)
        return _boot(
            Source(name, name), own, prepend_bos, hf_model=model, device=target, dtype=precision or model.dtype
        )
    source = find_source(str(model))
    if device_map is None:
        place: dict[str, Any] = {"device": target}
    else:
        place = {"device_map": device_map, "offload_folder": None if offload_folder is None else str(offload_folder)}
    with load_errors(source), quiet():
        checkpoint = getattr(AutoConfig.from_pretrained(source.path), "dtype", None) or torch.float32
        own = AutoTokenizer.from_pretrained(source.path) if tokenizer is None else deepcopy(tokenizer)
    precision = precision or default_dtype(checkpoint, place.get("device"))
    return _boot(source, own, prepend_bos, dtype=precision, **place)


def _check_options(
    model: object,
    tokenizer: object,
    prepend_bos: bool | None,
    device: object,
    device_map: str | dict[str, str | int] | None,
) -> None:
    if not isinstance(model, (str, Path, PreTrainedModel, TransformerBridge)):
        advice = inner_model_advice(model)
        raise InvalidArgumentError(
            f"`model` must be a name, a folder, a PreTrainedModel or a TransformerBridge; got {type(model).__name__}"
            f"{advice and ': ' + advice}."
        )
    if isinstance(model, TransformerBridge) and (tokenizer is not None or prepend_bos is not None):
        raise InvalidArgumentError(
            "`tokenizer` and `prepend_bos` go with a name, a folder or a PreTrainedModel: a bridge keeps those that it "
            "was made with. Load the model again by its name."
        )
    if device_map is not None and (device is not None or not isinstance(model, (str, Path))):
        raise InvalidArgumentError(
            "`device_map` goes with a name or a folder, and in place of `device`: a model that is loaded already stays "
            "where it is."
        )
    _check_map(device_map)


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


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or _default_device())
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"`device` must be such as 'cpu' or 'cuda:0'; got {name!r}.") from error
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise InvalidArgumentError(f"`device` {name!r} does not exist: torch sees {n_gpus} CUDA devices; 'cpu' works.")
    return device


def _default_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    local = os.environ.get("LOCAL_RANK")
    return "cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}"


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    name = model.config.name_or_path
    if not name:
        raise InvalidArgumentError("`tokenizer` must be given with a PreTrainedModel that was not loaded by name.")
    source = find_source(name)
    with load_errors(source):
        return AutoTokenizer.from_pretrained(source.path)


def _boot(
    source: Source, tokenizer: PreTrainedTokenizerBase, prepend_bos: bool | None, **options: Any
) -> TransformerBridge:
    if prepend_bos and tokenizer.bos_token is None:
        raise InvalidArgumentError(
            f"`prepend_bos=True` needs a BOS token, and the tokenizer of model {source.name!r} has none: pass a "
            "`tokenizer` whose `bos_token` is set, or leave `prepend_bos` out."
        )
    with load_errors(source), quiet(), _unchanged_rule(tokenizer):
        bridge = TransformerBridge.boot_transformers(source.path, tokenizer=tokenizer, **options)
    _set_token_rule(bridge, prepend_bos)
    bridge.eval()
    # Results and artefacts name the model as the user does, not by the folder of a cache.
    bridge.cfg.model_name = source.name
    if str(bridge.cfg.device) == "meta":
        # The embedding is on disk; offloaded modules compute on the CPU.
        bridge.cfg.device = "cpu"
    return check_bridge(bridge)


@contextmanager
def _unchanged_rule(tokenizer: PreTrainedTokenizerBase) -> Generator[None]:
    """Keep TransformerLens from replacing a tokenizer by one that prepends BOS to every text.

    It reads the tokenizer again with `add_bos_token=True`, whether or not the model was trained so: SmolLM2's BOS, for
    instance, opens a chat turn. A tokenizer that seems to have that option is taken as it is, which also saves two
    readings (6 s each for Gemma's 262,144 tokens) and allows for tokenizers that were never saved. And where there is
    no BOS token, it makes one of EOS. If a later version looks elsewhere, `to_tokens` and the tokenizer differ, and a
    test of them fails.
    """
    options: dict[str, Any] = tokenizer.init_kwargs
    before, has_bos = dict(options), tokenizer.bos_token is not None
    options["add_bos_token"] = True
    options.setdefault("name_or_path", "")
    try:
        yield
    finally:
        options.clear()
        options.update(before)
        if not has_bos:
            tokenizer.bos_token = None


def _set_token_rule(bridge: TransformerBridge, prepend_bos: bool | None) -> None:
    """Set the rule for BOS that `to_tokens`, `generate` and `models.tokens` follow: by default the tokenizer's own."""
    tokenizer: Any = bridge.tokenizer
    if tokenizer is None:
        return
    ids = list(tokenizer("a")["input_ids"])
    config: Any = bridge.cfg
    config.tokenizer_prepends_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    config.tokenizer_appends_eos = (
        tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    )
    config.default_prepend_bos = config.tokenizer_prepends_bos if prepend_bos is None else prepend_bos


def load_plain(model: str | Path, like: TransformerBridge) -> PreTrainedModel:
    """Load the transformers model inside a bridge once more, in the bridge's precision and on its device.

    Args:
        model: the name that the bridge was loaded by.
        like: the bridge.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    source = find_source(str(model))
    with load_errors(source), quiet():
        plain = type(plain_model(like)).from_pretrained(source.path, dtype=like.cfg.dtype, attn_implementation="eager")
    torch.nn.Module.to(plain, like.cfg.device)
    return plain.eval()


def projection_paths(bridge: TransformerBridge) -> list[str]:
    """Paths in the plain model of the modules whose input is `hook_z`, by layer, for any architecture."""
    names = {id(module): name for name, module in bridge.original_model.named_modules()}
    paths = [f"{names[id(block.attn)]}.{block.attn.o.name}" for block in bridge.blocks]
    return [path.replace("_original_component.", "") for path in paths]
