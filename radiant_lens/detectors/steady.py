"""Scores of layers that edits move little: a penalty on the change of a score, as a linear map before the fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.linalg import row_slices


class Damping(NamedTuple):
    """A map of one layer's activations, its heads side by side, that shrinks what edits change.

    Let `w` be weights on activations in units of their spread, and `M` the second moment of what edits change in those
    units. A fit with the penalty `l2 / 2 (|w|^2 + ratio w' M w)` is one with `l2 / 2 |v|^2` on activations times
    `(I + ratio M)^(-1/2)`, whose weights are `v`.

    Attributes:
        spread: of each activation.
        root: `(I + ratio M)^(-1/2)`, symmetric.
    """

    spread: Float[Tensor, " d"]
    root: Float[Tensor, "d d"]

    def of(self, x: Float[Tensor, "*example d"]) -> Float[Tensor, "*example d"]:
        """Activations as the fit sees them."""
        return x / self.spread @ self.root

    def weights(self, fitted: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The weights on activations whose score is that of `fitted` on what `of` gives."""
        return self.root @ fitted / self.spread


def damping(train: HeadCache, pairs: Iterable[tuple[HeadCache, HeadCache]], ratio: float) -> dict[int, Damping]:
    """The damping of each collected layer; none of a layer that edits leave as it is.

    Args:
        train: gives the spread of each activation.
        pairs: the same tokens without and with edits.
        ratio: of the penalty on changes to that on weights, at least 0.

    Raises:
        InvalidArgumentError: a pair of different tokens.
        DataError: activations that are not finite.
    """
    spreads = {layer: _spread(train.z[:, layer].flatten(1)) for layer in train.collected_layers}
    moments = {layer: torch.zeros(len(spread), len(spread)) for layer, spread in spreads.items()}
    n_tokens = 0
    for plain, edited in pairs:
        _require_same_tokens(plain, edited)
        n_tokens += len(plain)
        for layer, spread in spreads.items():
            for rows in row_slices((len(plain), len(spread))):
                change = (edited.z[rows, layer].float() - plain.z[rows, layer].float()).flatten(1) / spread
                moments[layer] += change.T @ change
    changed = {layer: moment / n_tokens for layer, moment in moments.items() if bool(moment.any())}
    return {layer: Damping(spreads[layer], _inverse_root(ratio * moment)) for layer, moment in changed.items()}


def _inverse_root(moment: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """`(I + moment)^(-1/2)`."""
    values, vectors = torch.linalg.eigh(moment)
    # Of rounding the least ones may be below 0.
    return (vectors * (1 + values.clamp_min(0)).rsqrt()) @ vectors.T


def _spread(x: Float[Tensor, "example d"]) -> Float[Tensor, " d"]:
    spread, mean = torch.std_mean(x.float(), dim=0, correction=0)
    # That of a constant activation is of rounding errors alone.
    return torch.where(spread > 1e-8 * (mean.abs() + 1), spread, torch.ones_like(spread))


def _require_same_tokens(plain: HeadCache, edited: HeadCache) -> None:
    for name, cache in (("plain", plain), ("edited", edited)):
        _checks.instance(name, cache, HeadCache, hint="`collect` makes one")
    tokens = [([c.texts[i] for i in c.text_index.tolist()], c.positions.tolist()) for c in (plain, edited)]
    if plain.z.shape != edited.z.shape or tokens[0] != tokens[1]:
        raise InvalidArgumentError(
            f"Each pair must hold the same tokens without and with edits; got {plain!r} and {edited!r}. Collect the "
            "same statements twice, the second time with `steering=...`."
        )
    _checks.finite("activations under edits", edited.z)
