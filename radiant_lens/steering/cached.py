"""The edits of cached activations, layer by layer in double precision, so that a cache is never copied whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.editor import LayerEdit
from radiant_lens.steering.gates import HeadScores


class _Edits(Protocol):
    @property
    def scores(self) -> HeadScores: ...
    @property
    def needs_joint(self) -> bool: ...
    def displacing(self) -> Callable[[Tensor, int], LayerEdit]: ...


class CachedEdit(NamedTuple):
    """Activations of a layer, and their edit."""

    z: Float[Tensor, "example head d_head"]
    edit: LayerEdit


def cached_edits(steering: _Edits, cache: HeadCache, layers: Sequence[int]) -> Iterator[CachedEdit]:
    """Yield the edit of each of `layers`, which have edited heads.

    Raises:
        InvalidArgumentError: a cache of another shape, or without a layer that the edits depend on.
    """
    _checks.shape("cache.z", cache.z, (None, *steering.scores.weights.shape), "example layer head d_head")
    read = steering.scores.hooked(layers, joint=steering.needs_joint)
    missing = sorted(set(read) - set(cache.collected_layers))
    if missing:
        raise InvalidArgumentError(
            f"The edits depend on layer {missing[0]}, and `cache` holds layers {list(cache.collected_layers)}: collect "
            "`layers=steering.hooked_layers`."
        )
    displace = steering.displacing()
    for layer in read:
        z = cache.z[:, layer].to(torch.float64)
        edit = displace(z, layer)
        if layer in layers:
            yield CachedEdit(z, edit)
