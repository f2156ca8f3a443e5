"""Heads, their hook names and their module paths; no other module knows these names."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, UnknownNameError

# A bridge calls hooks with the name of the hook point for which `hook_z` is an alias.
_HOOK_Z = re.compile(r"blocks\.(\d+)\.attn\.(?:hook_z|o\.hook_in)")

_SITE = re.compile(r"L(\d+)H(\d+)")

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
    """The hook point at `hook_z` of a layer."""
    # By its path: a bridge's own `hooks` searches all names of all hook points, which takes a while.
    return bridge.blocks[layer].attn.hook_z


def pattern_hook_name(layer: int) -> str:
    """Name of the hook point at a layer's attention pattern, `batch head dest src`."""
    return f"blocks.{layer}.attn.hook_pattern"


FINAL_RESIDUAL = "ln_final.hook_in"
"""Name of the hook point at the residual stream before the final norm."""


def layer_of(name: str) -> int:
    """Layer in the name of a `hook_z`.

    Raises:
        UnknownNameError: `name` is not the name of a `hook_z`.
    """
    match = _HOOK_Z.fullmatch(name)
    if match is None:
        raise UnknownNameError(f"{name!r} is not the name of a head hook; these read {hook_name(0)!r}.")
    return int(match[1])


Heads = str | Iterable[str | tuple[int, int]]
"""Heads as users write them: pairs (layer, head), names such as "L1H5", or a text of names."""


def checked_sites(heads: Heads, n_layers: int, n_heads: int) -> tuple[HeadSite, ...]:
    """The heads, sorted and without repetition.

    Raises:
        InvalidArgumentError: no heads, neither pairs nor names, or a layer or head outside the model.
    """
    sites = as_sites(heads)
    for site in sites:
        _checks.whole("layer", site.layer, 0, n_layers - 1)
        _checks.whole("head", site.head, 0, n_heads - 1)
    return tuple(sorted(sites))


def as_sites(heads: Heads) -> set[HeadSite]:
    """Heads as a set of sites: pairs, rows of an array or a tensor, names, or names in one text.

    Example:
        >>> sorted(as_sites("L2H7 L0H3"))
        [HeadSite(layer=0, head=3), HeadSite(layer=2, head=7)]

    Raises:
        InvalidArgumentError: no heads, or neither pairs nor names.
    """
    try:
        sites = {_as_site(head) for head in (_words(heads) if isinstance(heads, str) else heads)}
    except TypeError as error:
        raise InvalidArgumentError(
            f"`heads` must be pairs (layer, head) or names such as 'L0H3 L2H7'; got {heads!r}."
        ) from error
    if not sites:
        raise InvalidArgumentError("`heads` must name at least one head; got none.")
    return sites


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _as_site(head: Any) -> HeadSite:
    """One head from a name, a pair, or a row of an array; a TypeError for anything else."""
    if not isinstance(head, str):
        return HeadSite(*(head.tolist() if hasattr(head, "tolist") else head))
    match = _SITE.fullmatch(head)
    if match is None:
        raise TypeError(head)
    return HeadSite(int(match[1]), int(match[2]))


def layers_read(layers: Iterable[int], carrying: Container[int]) -> tuple[int, ...]:
    """The layers, and those below them that joint scores take up: each of the `carrying` ones takes up the one below.

    Example:
        >>> layers_read([1, 5], carrying={4, 5})
        (1, 3, 4, 5)
    """
    read: set[int] = set()
    for number in layers:
        layer = number
        read.add(layer)
        while layer in carrying:
            layer -= 1
            read.add(layer)
    return tuple(sorted(read))


def output_projections(model: nn.Module) -> list[nn.Module]:
    """The attention output projection of every layer of a plain transformers model, in order.

    Raises:
        UnknownNameError: an architecture whose module paths are not known.
        InvalidArgumentError: a bridge, or modules that are not at these paths.
    """
    config: Any = model.config
    _checks.known("model type", config.model_type, PROJECTION_PATHS, hint="Others: `load_model(model)`, then steer it.")
    path, n_layers = PROJECTION_PATHS[config.model_type], config.get_text_config().num_hidden_layers
    blocks, inside = path.split(".{}.")
    steps = inside.split(".")
    # A model may have several lists of this name (such as a vision tower); only one has these modules inside.
    projections: dict[int, list[nn.Module]] = {layer: [] for layer in range(n_layers)}
    for name, module in walk(model, closed=blocks):
        if name == "_original_component":
            raise InvalidArgumentError(
                "A TransformerBridge has taken this model over (`load_model`): steer the bridge."
            )
        if name == blocks:
            for layer, modules in projections.items():
                with suppress(KeyError):
                    modules.append(_inside(module, [str(layer), *steps]))
    wrong = [layer for layer, modules in projections.items() if len(modules) != 1]
    if wrong:
        raise InvalidArgumentError(
            f"{type(model).__name__} must have one module {path.format(wrong[0])!r}; it has "
            f"{len(projections[wrong[0]])}. Such a model can be steered as a bridge: `load_model(model)`."
        )
    return [modules[0] for modules in projections.values()]


def walk(model: nn.Module, *, closed: str | None = None) -> list[tuple[str, nn.Module]]:
    """Every module once, after its parent, with its name in the parent.

    Args:
        model: the module to begin with.
        closed: name of modules that are not entered.
    """
    # `steer` waits for this, so it does without the paths of `named_modules` and reads `_modules` itself, which is five
    # times as fast as `named_children`.
    modules, seen = [("", model)], {model}
    # The list grows while the loop goes through it: a breadth-first search.
    for name, module in modules:
        children: dict[str, nn.Module | None] = vars(module)["_modules"]
        if children and name != closed:
            for key, child in children.items():
                if child is not None and child not in seen:
                    seen.add(child)
                    modules.append((key, child))
    return modules


def _inside(module: nn.Module, steps: list[str]) -> nn.Module:
    """The module at a path below another one; a KeyError where there is none."""
    for step in steps:
        # `getattr` looks here last.
        module = vars(module)["_modules"][step]
    return module


def has_rows_for_inputs(projection: nn.Module) -> bool:
    """True if the weight of a projection is `d_in d_model` (the `Conv1D` of GPT-2), not `d_model d_in`."""
    return type(projection).__name__ == "Conv1D"


def input_width(projection: nn.Module) -> int:
    """Length of the input of a projection: number of heads times `d_head`."""
    return int(projection.nx if has_rows_for_inputs(projection) else projection.in_features)  # pyright: ignore[reportArgumentType] (modules have attributes of any type)
