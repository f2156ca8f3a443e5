"""Checks of the parts that a detector is fitted on, and layers that were not collected."""

from __future__ import annotations

from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.subset import Part
from radiant_lens.errors import InvalidArgumentError


def check_part(part: Part, where: str) -> None:
    """Check that a part holds both classes and finite activations."""
    _checks.both_classes(part.labels, where)
    _checks.finite(f"activations of {where}", part.cache.z)


def check_parts(train: Part, validation: Part) -> None:
    """Check that both parts hold both classes, finite activations, and no group in common."""
    check_part(train, "the training data")
    check_part(validation, "the validation data")
    _checks.disjoint_groups(train.group_names, validation.group_names, ("training", "validation"))


def common_layers(one: HeadCache, other: HeadCache) -> tuple[int, ...]:
    """Layers that both caches hold."""
    layers = tuple(layer for layer in one.collected_layers if layer in other.collected_layers)
    if not layers:
        raise InvalidArgumentError(
            f"`cache` and `validation` must hold at least one layer in common; they hold {one.collected_layers} and "
            f"{other.collected_layers}."
        )
    return layers


def require_collected(name: str, layer: int, layers: tuple[int, ...]) -> None:
    """Raise `InvalidArgumentError` for a layer that is not among `layers`."""
    if layer not in layers:
        raise InvalidArgumentError(f"`{name}` must be a layer whose activations were collected: {layers}; got {layer}.")


def without(values: Tensor, layers: list[int], filler: float) -> Tensor:
    """Values with `filler` at layers that were not collected, whose activations are zeros without meaning."""
    values = values.clone()
    values[layers] = filler
    return values
