"""Part of a cache, read a few examples at a time, so that no copy as large as the cache is ever held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.caches import HeadCache, group_classes
from radiant_lens.detectors.scores import Sample
from radiant_lens.linalg import row_slices
from radiant_lens.splits import split_groups
from radiant_lens.statistics.significance import Design

# About what a processor's cache holds: every step passes over the activations twice, and from main memory each pass
# would cost several times as much.
HEADS_BYTES = 2**23


@dataclass(frozen=True)
class Part:
    """The examples `index` of a cache."""

    cache: HeadCache
    index: Int[Tensor, " example"]

    @classmethod
    def whole(cls, cache: HeadCache) -> Part:
        """Every example."""
        return cls(cache, torch.arange(len(cache)))

    @property
    def labels(self) -> Int[Tensor, " example"]:
        """1 undesirable, 0 desirable."""
        return self.cache.labels[self.index]

    @property
    def groups(self) -> Int[Tensor, " example"]:
        """Codes of the examples' groups."""
        return self.cache.groups[self.index]

    @property
    def group_names(self) -> tuple[str, ...]:
        """The distinct groups, sorted."""
        return tuple(sorted({self.cache.group_names[i] for i in self.texts.unique().tolist()}))

    @property
    def texts(self) -> Int[Tensor, " example"]:
        """Codes of the examples' texts."""
        return self.cache.text_index[self.index]

    @property
    def design(self) -> Design:
        """Labels with the groups and texts that share them."""
        return Design(self.labels, self.groups, self.texts)

    def split(self, fractions: Sequence[float], *, seed: int) -> tuple[Part, ...]:
        """Split into parts that share no group; the same as those of `HeadCache.split`."""
        # Over the groups of this part alone, so that the split is the same as that of the selected cache.
        names = self.cache.group_names
        strata = group_classes(names, self.texts, self.labels)
        parts = split_groups(self.group_names, fractions, seed=seed, strata=strata)
        in_part = torch.tensor([[name in part for name in names] for part in parts])
        return tuple(Part(self.cache, self.index[texts[self.texts]]) for texts in in_part)

    def scores(
        self, weights: Float[Tensor, "layer head d_head"], biases: Float[Tensor, "layer head"]
    ) -> Iterator[Float[Tensor, "some layer head"]]:
        """Yield `bias + weight . a` of every head, a few examples at a time."""
        # Slices of all examples are read where they lie; those of a part are copied together.
        every = len(self.index) == len(self.cache.z) and torch.equal(self.index, torch.arange(len(self.index)))
        for rows in row_slices((len(self.index), *self.cache.z.shape[1:])):
            z = self.cache.z[rows if every else self.index[rows]].to(weights)
            yield torch.einsum("nlhd,lhd->nlh", z, weights) + biases

    def flags(
        self, weights: Float[Tensor, "layer head d_head"], biases: Float[Tensor, "layer head"]
    ) -> Bool[Tensor, "example layer head"]:
        """Flag scores at or above 0."""
        return torch.cat([scores >= 0 for scores in self.scores(weights, biases)])

    def sample(self, heads: slice) -> Sample:
        """Copy the activations of some heads, heads first, counted through all layers."""
        n, d = len(self.index), self.cache.z.shape[-1]
        # Examples adjacent in memory: products with weights and with slopes are fastest with this layout.
        x = torch.empty((heads.stop - heads.start, d, n)).mT
        z = self.cache.z.flatten(1, 2)[:, heads]
        for rows in row_slices((n, *z.shape[1:])):
            x[:, rows] = z[self.index[rows]].transpose(0, 1)
        return Sample(x, self.labels)


def head_chunks(n_heads: int, n_examples: int, d_head: int) -> list[slice]:
    """Slice the heads so that activations in single precision take at most `HEADS_BYTES`; one head at least."""
    n = max(1, HEADS_BYTES // max(4 * n_examples * d_head, 1))
    return [slice(first, min(first + n, n_heads)) for first in range(0, n_heads, n)]
