"""Scores of layers that edits move little: what edits change, and a map before the fit that makes it count less."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError


class Edited(NamedTuple):
    """Tokens of a cache under edits.

    Attributes:
        cache: their activations under the edits.
        rows: the same tokens in the cache without edits.
    """

    cache: HeadCache
    rows: Int[Tensor, " token"]

    @classmethod
    def of(cls, cache: HeadCache, plain: HeadCache) -> Edited:
        """The tokens of `cache`, found in `plain` by text, group and position.

        Raises:
            InvalidArgumentError: tokens that `plain` lacks, or caches of different shapes or layers.
            DataError: activations that are not finite.
        """
        _checks.shape("edited.z", cache.z, (None, *plain.z.shape[1:]), "example layer head d_head")
        rows = {token: row for row, token in enumerate(_tokens(plain))}
        rows_under = [rows.get(token, -1) for token in _tokens(cache)]
        if min(rows_under, default=-1) < 0 or cache.collected_layers != plain.collected_layers:
            raise InvalidArgumentError(
                f"Activations under edits must be of tokens that `train` holds, and of the same layers; got {cache!r} "
                f"for {plain!r}. Collect statements of `train` again with `steering=...`."
            )
        _checks.finite("activations under edits", cache.z)
        return cls(cache, torch.tensor(rows_under))

    def change(self, plain: HeadCache, layer: int) -> Float[Tensor, "token d"]:
        """Activations of a layer under edits of lower layers minus those without, its heads side by side."""
        return (self.cache.z[:, layer].float() - plain.z[self.rows, layer].float()).flatten(1)


class Damping(NamedTuple):
    """A map of one layer's activations, its heads side by side, that shrinks what edits change.

    Let `w` be weights on activations in units of their spread, and `M` the second moment of what edits change in those
    units. A fit with the penalty `l2 / 2 (|w|^2 + ratio w' M w)` is one with `l2 / 2 |v|^2` on activations times
    `(I + ratio M)^(-1/2)`, whose weights are `v`.

    Attributes:
        mean, spread: of each activation.
        root: `(I + ratio M)^(-1/2)`, symmetric.
    """

    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    root: Float[Tensor, "d d"]

    @classmethod
    def make(
        cls, mean: Float[Tensor, " d"], spread: Float[Tensor, " d"], change: Float[Tensor, "token d"], ratio: float
    ) -> Damping:
        """The damping of these changes, in units of the activations; `ratio` is at least 0."""
        return cls(mean, spread, damped_root(change / spread, ratio).to(spread))

    def of(self, x: Float[Tensor, "*batch example d"]) -> Float[Tensor, "*batch example d"]:
        """Activations as the fit sees them; examples are adjacent in memory, as `Part.sample` lays them out."""
        return (self.root @ ((x - self.mean) / self.spread).mT).mT

    def weights(self, fitted: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The weights on activations whose score is that of `fitted` on what `of` gives, but for a constant."""
        return self.root @ fitted / self.spread


def damped_root(change: Float[Tensor, "token d"], ratio: float) -> Float[Tensor, "d d"]:
    """`(I + ratio M)^(-1/2)` of the second moment of changes, in double precision."""
    change = change.double()
    values, vectors = torch.linalg.eigh(change.T @ change / max(len(change), 1))
    # Of rounding the least eigenvalues may be below 0.
    return (vectors * (1 + ratio * values.clamp_min(0)).rsqrt()) @ vectors.T


def _tokens(cache: HeadCache) -> list[tuple[str, str, int]]:
    """Text, group and position of each example."""
    texts, positions = cache.text_index.tolist(), cache.positions.tolist()
    return [(cache.texts[i], cache.group_names[i], position) for i, position in zip(texts, positions)]
