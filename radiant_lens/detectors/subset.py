"""Some examples of a cache, read a few at a time, so that nothing as large as the cache is ever held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens.caches import HeadCache
from radiant_lens.detectors.scores import Sample
from radiant_lens.linalg import parts
from radiant_lens.splits import split_groups

# What the caches of a processor hold: every step passes over the activations twice.
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
        texts = self.cache.text_index[self.index].unique().tolist()
        return tuple(sorted({self.cache.group_names[i] for i in texts}))

    def split(self, fractions: Sequence[float], *, seed: int) -> tuple[Part, ...]:
        """Parts that share no group; just those of `HeadCache.split`."""
        wanted = split_groups(self.group_names, fractions, seed=seed)
        inside = torch.tensor([[name in part for name in self.cache.group_names] for part in wanted])
        return tuple(Part(self.cache, self.index[texts[self.cache.text_index[self.index]]]) for texts in inside)

    def scores(
        self, weights: Float[Tensor, "layer head d_head"], biases: Float[Tensor, "layer head"]
    ) -> Iterator[Float[Tensor, "some layer head"]]:
        """`bias + weight . a` of every head, a few examples at a time."""
        for part in parts((len(self.index), *self.cache.z.shape[1:])):
            z = self.cache.z[self.index[part]].to(weights)
            yield torch.einsum("nlhd,lhd->nlh", z, weights) + biases

    def flags(
        self, weights: Float[Tensor, "layer head d_head"], biases: Float[Tensor, "layer head"]
    ) -> Bool[Tensor, "example layer head"]:
        """Where scores are at or above 0."""
        return torch.cat([scores >= 0 for scores in self.scores(weights, biases)])

    def sample(self, heads: slice) -> Sample:
        """A copy of some heads' activations, heads first, counted through all layers."""
        n, d = len(self.index), self.cache.z.shape[-1]
        # Examples next to each other in memory: products with weights and with slopes are fastest that way.
        x = torch.empty((heads.stop - heads.start, d, n)).mT
        wanted = self.cache.z.flatten(1, 2)[:, heads]
        for part in parts((n, *wanted.shape[1:])):
            x[:, part] = wanted[self.index[part]].transpose(0, 1)
        return Sample(x, self.labels)


def head_chunks(n_heads: int, n_examples: int, d_head: int) -> list[slice]:
    """Slices over the heads whose activations in single precision take at most `HEADS_BYTES`; one head at least."""
    n = max(1, HEADS_BYTES // max(4 * n_examples * d_head, 1))
    return [slice(first, min(first + n, n_heads)) for first in range(0, n_heads, n)]
