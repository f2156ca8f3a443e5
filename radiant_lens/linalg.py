"""Batched linear algebra: roots, forms, moments, shrinkage.

Everything works over leading batch axes, without a Python loop over heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PART_BYTES = 2**24


def quadratic_form(vector: Float[Tensor, "*batch d"], matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """`vector' matrix vector`."""
    return torch.einsum("...i,...ij,...j->...", vector, matrix, vector)


class Root(NamedTuple):
    """Symmetric square root of a covariance, with its eigenvalues (ascending) and eigenvectors."""

    matrix: Float[Tensor, "*batch d d"]
    values: Float[Tensor, "*batch d"]
    vectors: Float[Tensor, "*batch d d"]


def square_root(covariance: Float[Tensor, "*batch d d"]) -> tuple[Root, Float[Tensor, "*batch"]]:
    """Root of a positive semidefinite matrix, and its least eigenvalue; those within rounding of zero are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    kept = torch.where(values > rounding.clamp_min(0), values, 0.0).sqrt()
    return Root((vectors * kept[..., None, :]) @ vectors.mT, kept, vectors), values[..., 0]


def gaussian_transport(root: Root, new_root: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Optimal transport `G` from covariance `H H` to `S S`: `G = S U V' H^+`, with `S H = U D V'`.

    For nonsingular `H` this is `H^{-1} (H S S H)^{1/2} H^{-1}`, but needs one inverse instead of two and no root
    of a product. `U V'` is the partial isometry over nonzero `D`, so `G H H G' <= S S` also when `H` is singular;
    directions without mass are left as they are.
    """
    matrix, values, vectors = root
    left, stretch, right = torch.linalg.svd(new_root @ matrix)
    kept = stretch > stretch.shape[-1] * torch.finfo(stretch.dtype).eps * stretch[..., :1]
    image_root = new_root @ ((left * kept[..., None, :]) @ right)
    inverse = torch.where(values > 0, 1 / torch.where(values > 0, values, 1.0), 0.0)
    without_mass = (vectors * (values == 0)[..., None, :]) @ vectors.mT
    return image_root @ (vectors * inverse[..., None, :]) @ vectors.mT + without_mass


def monotone_root(
    function: Callable[[Float[Tensor, "*batch"]], Float[Tensor, "*batch"]],
    low: Float[Tensor, "*batch"],
    high: Float[Tensor, "*batch"],
    *,
    n_iterations: int = 200,
) -> Float[Tensor, "*batch"]:
    """Root of a decreasing function between `low` and `high` by bisection, to the last bit of a float64.

    Where the function has no sign change the nearer end is returned.
    """
    for _ in range(n_iterations):
        middle = 0.5 * (low + high)
        above = function(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        if bool(((high - low) <= 4e-16 * (low.abs() + high.abs())).all()):
            break
    return 0.5 * (low + high)


@dataclass(frozen=True)
class Moments:
    """Counts, means and covariances of the rows that a mask lets through, one set for each batch entry."""

    count: Float[Tensor, "*batch"]
    mean: Float[Tensor, "*batch d"]
    covariance: Float[Tensor, "*batch d d"]

    def ridged(self, relative: float = 1e-6) -> Moments:
        """The same with `relative * trace / d` added to the diagonal."""
        d = self.mean.shape[-1]
        trace = self.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        ridge = (relative * trace / d)[..., None, None] * torch.eye(
            d, dtype=self.covariance.dtype, device=self.mean.device
        )
        return Moments(self.count, self.mean, self.covariance + ridge)


def gaussian_distance(one: Moments, other: Moments) -> Float[Tensor, "*batch"]:
    """2-Wasserstein distance of the Gaussians with these moments (means and covariances; counts are not read)."""
    first, second = (square_root(m.covariance)[0].matrix for m in (one, other))
    traces = (first.square() + second.square()).sum((-2, -1))
    overlap = torch.linalg.matrix_norm(first @ second, ord="nuc")
    return ((one.mean - other.mean).square().sum(-1) + traces - 2 * overlap).clamp_min(0).sqrt()


class Rows(Protocol):
    """Rows that are read a slice at a time, for instance from a memory-mapped cache; every tensor is one."""

    @property
    def shape(self) -> Sequence[int]:
        """Axes `example *batch d`."""
        ...

    def __getitem__(self, index: slice, /) -> Tensor:
        """Some of them."""
        ...


class Workers(Protocol):
    """Processes that share the rows of a sum: each adds up a part, then the parts are added up."""

    def part(self, items: Sequence[slice], /) -> Sequence[slice]:
        """The items of this process."""
        ...

    def sum(self, mine: Tensor, /) -> Tensor:
        """The sum over all processes."""
        ...


class OneProcess:
    """A process that reads all rows itself."""

    def part(self, items: Sequence[slice], /) -> Sequence[slice]:
        """All items."""
        return items

    def sum(self, mine: Tensor, /) -> Tensor:
        """`mine`, which is the whole sum."""
        return mine


ONE_PROCESS = OneProcess()


def parts(shape: Sequence[int]) -> Iterator[slice]:
    """Slices over the first axis that are small enough to be computed with in float64."""
    n = max(1, PART_BYTES // max(8 * math.prod(shape[1:]), 1))
    return (slice(first, min(first + n, shape[0])) for first in range(0, shape[0], n))


def masked_mean(
    x: Rows, mask: Bool[Tensor, " example *batch"], *, workers: Workers = ONE_PROCESS
) -> Float[Tensor, "*batch d"]:
    """Mean of the masked rows in float64; zeros where there are none."""
    total = torch.zeros(tuple(x.shape[1:]), dtype=torch.float64, device=mask.device)
    for part in workers.part(list(parts(x.shape))):
        total += torch.einsum("n...,n...d->...d", mask[part].double(), x[part].double())
    return workers.sum(total) / mask.sum(0).clamp_min(1)[..., None]


def masked_moments(
    x: Rows, mask: Bool[Tensor, " example *batch"], *, shrink_below: float = 0.0, workers: Workers = ONE_PROCESS
) -> Moments:
    """Moments of the masked rows in float64, covariances divided by the count.

    Rows are read twice, a part at a time: for the means, then around them. So nothing as large as `x` is ever held,
    a single row has no spread at all, and rows far from the origin lose no digits.

    Args:
        x: rows, axes `example *batch d`.
        mask: which rows count, for each batch entry; an entry with none gets zeros.
        shrink_below: entries with fewer than this many rows per dimension are shrunk with the
            coefficient of Ledoit and Wolf (2004), as in `sklearn.covariance.ledoit_wolf`.
        workers: processes that share the rows; every one of them makes the call and gets all moments.
    """
    count, mean = mask.sum(0).double(), masked_mean(x, mask, workers=workers)
    safe = count.clamp_min(1)
    covariance = torch.zeros((*mean.shape, mean.shape[-1]), dtype=torch.float64, device=mean.device)
    fourth = torch.zeros_like(count)
    for part in workers.part(list(parts(x.shape))):
        centred = (x[part].double() - mean) * mask[part].double()[..., None]
        covariance += torch.einsum("n...i,n...j->...ij", centred, centred)
        fourth += centred.square().sum(-1).square().sum(0)
    covariance = workers.sum(covariance) / safe[..., None, None]
    if shrink_below > 0:
        shrunk = _ledoit_wolf(workers.sum(fourth) / safe, covariance, safe)
        few = count < shrink_below * x.shape[-1]
        covariance = torch.where(few[..., None, None], shrunk, covariance)
    return Moments(count, mean, covariance)


def _ledoit_wolf(fourth: Tensor, covariance: Tensor, count: Tensor) -> Tensor:
    """Shrunk covariances, from the mean fourth power of the rows' distances from their mean."""
    d = covariance.shape[-1]
    scale = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / d
    squared = covariance.square().sum((-2, -1))
    spread = ((fourth - squared) / (count * d)).clamp_min(0)
    distance = (squared - d * scale.square()) / d
    shrinkage = torch.where(
        distance > 0, torch.minimum(spread, distance) / distance.clamp_min(1e-300), torch.zeros_like(scale)
    )
    target = scale[..., None, None] * torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    return (1 - shrinkage)[..., None, None] * covariance + shrinkage[..., None, None] * target
