"""Where a head is: the only place that knows hook names and module paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, UnknownNameError

# A bridge calls hooks with the name of the point that `hook_z` is an alias of.
_HOOK_Z = re.compile(r"blocks\.(\d+)\.attn\.(?:hook_z|o\.hook_in)")

# Path of the attention's output projection, whose input is `hook_z`, by `config.model_type` of transformers.
_PROJECTIONS = {
    "layers.{}.self_attn.o_proj": (
        "cohere gemma gemma2 gemma3 gemma3_text granite llama mistral mixtral olmo olmo2 phi3 qwen2 qwen3 smollm3 "
        "stablelm starcoder2"
    ),
    "layers.{}.self_attn.dense": "phi",
    "layers.{}.self_attn.out_proj": "opt",
    "layers.{}.attention.dense": "gpt_neox",
    "h.{}.attn.c_proj": "gpt2 gpt_bigcode",
    "h.{}.attn.out_proj": "gptj",
    "h.{}.attn.attention.out_proj": "gpt_neo",
    "h.{}.self_attention.dense": "bloom falcon",
    "blocks.{}.attn.out_proj": "mpt",
}
PROJECTION_PATHS = {name: path for path, names in _PROJECTIONS.items() for name in names.split()}


class HeadSite(NamedTuple):
    """One attention head.

    Example:
        >>> str(HeadSite(2, 5))
        'L2H5'
    """

    layer: int
    head: int

    def __str__(self) -> str:
        """Short name, as TransformerLens labels heads."""
        return f"L{self.layer}H{self.head}"


def hook_name(layer: int | str) -> str:
    """Name of the hook point at the input of a layer's output projection, split into heads.

    Example:
        >>> hook_name(3)
        'blocks.3.attn.hook_z'
    """
    return f"blocks.{layer}.attn.hook_z"


def head_hook(bridge: Any, layer: int) -> Any:
    """The hook point of that name, which a bridge's own `hooks` looks for among all names of all points."""
    return bridge.blocks[layer].attn.hook_z


def pattern_hook_name(layer: int) -> str:
    """Name of the hook point at a layer's attention pattern, `batch head dest src`."""
    return f"blocks.{layer}.attn.hook_pattern"


FINAL_RESIDUAL = "ln_final.hook_in"
"""Name of the hook point at the residual stream before the final norm."""


def layer_of(name: str) -> int:
    """Layer of a `hook_z` name.

    Raises:
        UnknownNameError: `name` is not that of a `hook_z`.
    """
    match = _HOOK_Z.fullmatch(name)
    if match is None:
        raise UnknownNameError(f"{name!r} is not the name of a head hook; these read {hook_name(0)!r}.")
    return int(match[1])


def checked_sites(heads: Iterable[tuple[int, int]], n_layers: int, n_heads: int) -> tuple[HeadSite, ...]:
    """The heads, sorted and without repetition.

    Raises:
        InvalidArgumentError: no heads, no pairs, or a layer or head that lies outside the model.
    """
    sites = as_sites(heads)
    for site in sites:
        _checks.whole("layer", site.layer, 0, n_layers - 1)
        _checks.whole("head", site.head, 0, n_heads - 1)
    return tuple(sorted(sites))


def as_sites(heads: Iterable[tuple[int, int]]) -> set[HeadSite]:
    """Pairs as heads; also rows of an array or a tensor.

    Raises:
        InvalidArgumentError: no heads, or no pairs.
    """
    try:
        sites = {HeadSite(*(pair.tolist() if hasattr(pair, "tolist") else pair)) for pair in heads}  # pyright: ignore[reportAttributeAccessIssue] (arrays have it)
    except TypeError as error:
        raise InvalidArgumentError(f"`heads` must be pairs (layer, head); got {heads!r}.") from error
    if not sites:
        raise InvalidArgumentError("`heads` must name at least one head; got none.")
    return sites


def output_projections(model: nn.Module) -> list[nn.Module]:
    """The attention output projection of every layer of a plain transformers model, in order.

    Raises:
        UnknownNameError: an architecture whose module paths are not known.
        InvalidArgumentError: the modules are not where they should be.
    """
    config: Any = model.config
    _checks.known("model type", config.model_type, PROJECTION_PATHS, hint="Others: `load_model(model)`, then steer it.")
    path, n_layers = PROJECTION_PATHS[config.model_type], config.get_text_config().num_hidden_layers
    blocks, inside = path.split(".{}.")
    steps = inside.split(".")
    found: dict[int, list[nn.Module]] = {layer: [] for layer in range(n_layers)}
    for name, module in walk(model, closed=blocks):
        if name == "_original_component":
            raise InvalidArgumentError(
                "A TransformerBridge has taken this model over (`load_model`): steer the bridge."
            )
        if name == blocks:
            for layer, modules in found.items():
                with suppress(KeyError):
                    modules.append(_inside(module, [str(layer), *steps]))
    wrong = [layer for layer, modules in found.items() if len(modules) != 1]
    if wrong:
        raise InvalidArgumentError(
            f"{type(model).__name__} must have one module {path.format(wrong[0])!r}; it has {len(found[wrong[0]])}."
        )
    return [modules[0] for modules in found.values()]


def walk(model: nn.Module, *, closed: str | None = None) -> list[tuple[str, nn.Module]]:
    """Every module once, after the one that it is in, by its name there; in a fraction of the time that paths take.

    Args:
        model: where to begin.
        closed: name of modules that are not entered.
    """
    found, seen = [("", model)], {model}
    # Grows as it is gone through.
    for name, module in found:
        # As `named_children` has them, which takes five times as long.
        inside: dict[str, nn.Module | None] = vars(module)["_modules"]
        if inside and name != closed:
            for key, inner in inside.items():
                if inner is not None and inner not in seen:
                    seen.add(inner)
                    found.append((key, inner))
    return found


def _inside(module: nn.Module, steps: list[str]) -> nn.Module:
    for step in steps:
        # What `getattr` looks up last.
        module = vars(module)["_modules"][step]
    return module


def has_rows_for_inputs(projection: nn.Module) -> bool:
    """Whether a projection's weight is `d_in d_model` (the `Conv1D` of GPT-2), not `d_model d_in`."""
    return type(projection).__name__ == "Conv1D"


def input_width(projection: nn.Module) -> int:
    """Length of what a projection reads: heads times `d_head`."""
    return int(projection.nx if has_rows_for_inputs(projection) else projection.in_features)  # pyright: ignore[reportArgumentType] (modules have attributes of any type)
