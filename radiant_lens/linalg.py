"""Batched linear algebra: roots, forms, moments, shrinkage.

All functions work over leading batch axes, without a Python loop over heads. Rows are read in chunks, so that moments
of a memory-mapped cache need memory for one chunk only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Size of a chunk of rows in float64. Larger chunks save little time; they would leave the processor's caches.
CHUNK_BYTES = 2**24


def quadratic_form(vector: Float[Tensor, "*batch d"], matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """Compute `vector' matrix vector`."""
    return torch.einsum("...i,...ij,...j->...", vector, matrix, vector)


class Root(NamedTuple):
    """Symmetric square root of a covariance, with its eigenvalues (ascending) and eigenvectors."""

    matrix: Float[Tensor, "*batch d d"]
    values: Float[Tensor, "*batch d"]
    vectors: Float[Tensor, "*batch d d"]


def square_root(covariance: Float[Tensor, "*batch d d"]) -> tuple[Root, Float[Tensor, "*batch"]]:
    """Compute the root of a positive semidefinite matrix, and its least eigenvalue."""
    values, vectors = torch.linalg.eigh(covariance)
    # `eigh` returns zeros as numbers of either sign of about this size. The root of one would be 1e-8 instead of 0:
    # a direction without mass would gain some, and `gaussian_transport` would divide by it.
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    roots = torch.where(values > rounding.clamp_min(0), values, 0.0).sqrt()
    return Root((vectors * roots[..., None, :]) @ vectors.mT, roots, vectors), values[..., 0]


def gaussian_transport(root: Root, new_root: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Compute the optimal transport `G` from covariance `H H` to `S S`: `G = S U V' H^+`, with `S H = U D V'`.

    For nonsingular `H` this is the textbook's `H^{-1} (H S S H)^{1/2} H^{-1}` (Olkin and Pukelsheim, 1982), but it
    needs one inverse instead of two and no root of a product. Directions without mass keep their activations.
    """
    matrix, values, vectors = root
    left, stretch, right = torch.linalg.svd(new_root @ matrix)
    # `U V'` over the nonzero `D` only. Over all of them it would pair the null spaces of `U` and `V` at random, and
    # the image could have mass that `S S` does not have: `G H H G' <= S S` must hold for singular `H` too.
    nonzero = stretch > stretch.shape[-1] * torch.finfo(stretch.dtype).eps * stretch[..., :1]
    image_root = new_root @ ((left * nonzero[..., None, :]) @ right)
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
    """Find the root of a decreasing function between `low` and `high` by bisection, to the last bit of a float64.

    Without a sign change the result is the nearer end.
    """
    # Bisection, not Newton: the functions of the solvers are flat or steep by many orders of magnitude, and a batch
    # takes as long as its slowest entry. 60 halvings are usual; the limit is for intervals that end at 0.
    for _ in range(n_iterations):
        middle = 0.5 * (low + high)
        above = function(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        if bool(((high - low) <= 4e-16 * (low.abs() + high.abs())).all()):
            break
    return 0.5 * (low + high)


@dataclass(frozen=True)
class Moments:
    """Counts, means and covariances of the rows that a mask selects, one set for each batch entry."""

    count: Float[Tensor, "*batch"]
    mean: Float[Tensor, "*batch d"]
    covariance: Float[Tensor, "*batch d d"]

    def ridged(self, relative: float = 1e-6) -> Moments:
        """Add `relative * trace / d` to the diagonal of the covariances."""
        d = self.mean.shape[-1]
        trace = self.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        ridge = (relative * trace / d)[..., None, None] * torch.eye(
            d, dtype=self.covariance.dtype, device=self.mean.device
        )
        return Moments(self.count, self.mean, self.covariance + ridge)


def gaussian_distance(one: Moments, other: Moments) -> Float[Tensor, "*batch"]:
    """Compute the 2-Wasserstein distance of the Gaussians with these means and covariances."""
    # Bures: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^{1/2} C2 C1^{1/2})^{1/2}; the last trace is the nuclear norm of the
    # product of the roots. Equal moments cancel to rounding of either sign, hence the clamp.
    first, second = (square_root(m.covariance)[0].matrix for m in (one, other))
    traces = (first.square() + second.square()).sum((-2, -1))
    overlap = torch.linalg.matrix_norm(first @ second, ord="nuc")
    return ((one.mean - other.mean).square().sum(-1) + traces - 2 * overlap).clamp_min(0).sqrt()


class Rows(Protocol):
    """Rows that are read in slices, for instance from a memory-mapped cache; every tensor qualifies."""

    @property
    def shape(self) -> Sequence[int]:
        """Axes `example *batch d`."""
        ...

    def __getitem__(self, index: slice, /) -> Tensor:
        """Rows of a slice."""
        ...


class Workers(Protocol):
    """Processes that share a sum over rows: each adds up its own chunks, then the sums are added."""

    def part(self, items: Sequence[slice], /) -> Sequence[slice]:
        """Items of this process."""
        ...

    def sum(self, mine: Tensor, /) -> Tensor:
        """Sum over all processes."""
        ...


class OneProcess:
    """A single process, which reads all rows."""

    def part(self, items: Sequence[slice], /) -> Sequence[slice]:
        """All items."""
        return items

    def sum(self, mine: Tensor, /) -> Tensor:
        """Return `mine`, which is the whole sum."""
        return mine


ONE_PROCESS = OneProcess()


def row_slices(shape: Sequence[int]) -> Iterator[slice]:
    """Cut the first axis into slices of at most `CHUNK_BYTES` in float64, and at least one row."""
    n = max(1, CHUNK_BYTES // max(8 * math.prod(shape[1:]), 1))
    return (slice(first, min(first + n, shape[0])) for first in range(0, shape[0], n))


def masked_mean(
    x: Rows, mask: Bool[Tensor, " example *batch"], *, workers: Workers = ONE_PROCESS
) -> Float[Tensor, "*batch d"]:
    """Compute the mean of the masked rows in float64; zeros where no row is masked."""
    total = torch.zeros(tuple(x.shape[1:]), dtype=torch.float64, device=mask.device)
    for rows in workers.part(list(row_slices(x.shape))):
        total += torch.einsum("n...,n...d->...d", mask[rows].double(), x[rows].double())
    return workers.sum(total) / mask.sum(0).clamp_min(1)[..., None]


def class_means(
    x: Rows, second: Bool[Tensor, " example"], *, workers: Workers = ONE_PROCESS
) -> Float[Tensor, "2 *batch d"]:
    """Compute the means of two classes of rows in float64, in one pass; zeros for a class without rows."""
    members = torch.stack([~second, second]).double()
    total = torch.zeros((2, math.prod(x.shape[1:])), dtype=torch.float64, device=second.device)
    for rows in workers.part(list(row_slices(x.shape))):
        total += members[:, rows] @ x[rows].double().flatten(1)
    return (workers.sum(total) / members.sum(1, keepdim=True).clamp_min(1)).view(2, *x.shape[1:])


@dataclass(frozen=True)
class Scatter:
    """Sums over some rows around their mean, one set for each batch entry.

    Attributes:
        count: of the rows.
        mean: zeros where there is no row.
        products: sum of the outer products of the centred rows.
        enough: rows from which on a covariance is not shrunk.
        fourth: sum of the fourth powers of the centred rows' lengths; None where every entry has enough rows.
    """

    count: Float[Tensor, "*batch"]
    mean: Float[Tensor, "*batch d"]
    products: Float[Tensor, "*batch d d"]
    enough: float
    fourth: Float[Tensor, "*batch"] | None

    def moments(self) -> Moments:
        """Count, mean and covariance, which is the products divided by the count.

        Covariances of fewer rows than `enough` are shrunk with the coefficient of Ledoit and Wolf (2004), as in
        `sklearn.covariance.ledoit_wolf`.
        """
        safe = self.count.clamp_min(1)
        covariance = self.products / safe[..., None, None]
        if self.fourth is not None:
            few = self.count < self.enough
            shrunk = _ledoit_wolf(self.fourth / safe, covariance, safe)
            covariance = torch.where(few[..., None, None], shrunk, covariance)
        return Moments(self.count, self.mean, covariance)

    def pooled(self, other: Scatter) -> Scatter:
        """Both sets of rows, each around its own mean; the mean, which both have not, is 0."""
        # Where one set has enough rows, both together have.
        fourth = None if self.fourth is None or other.fourth is None else self.fourth + other.fourth
        return Scatter(
            self.count + other.count,
            torch.zeros_like(self.mean),
            self.products + other.products,
            self.enough,
            fourth,
        )


def class_scatters(
    x: Rows,
    second: Bool[Tensor, " example"],
    means: Float[Tensor, "2 *batch d"],
    *,
    shrink_below: float = 0.0,
    masked: MaskedSums | None = None,
    workers: Workers = ONE_PROCESS,
) -> tuple[Scatter, Scatter]:
    """Compute the scatters of two classes of rows around their `class_means`, in one pass.

    Covariances of fewer rows per dimension than `shrink_below` are shrunk. `masked` gets all rows, too.
    """
    batch, members = x.shape[1:-1], (~second, second)
    sums = [_Sums(mask.sum().double().expand(batch), mean, shrink_below) for mask, mean in zip(members, means)]
    for rows in workers.part(list(row_slices(x.shape))):
        values = x[rows]
        for number, (mask, mean, of_class) in enumerate(zip(members, means, sums)):
            # In float64, as the mean is.
            centred = values[mask[rows]] - mean
            of_class.add(centred)
            if masked is not None:
                masked.add(number, rows, mask[rows], centred)
    one, other = (of_class.scatter(workers) for of_class in sums)
    return one, other


class MaskedSums:
    """Moments of the rows that a mask selects, added up while `class_scatters` reads the rows of two classes.

    With a class's mean `m_k`, its selected rows `m_k + c`, their number `n_k` and the sum `s_k` of their `c`:

        mean = sum_k (n_k m_k + s_k) / n,   a_k = m_k - mean,
        n covariance = sum c c' + sum_k (s_k a_k' + a_k s_k' + n_k a_k a_k')

    So no pass is needed for the mean. `c` is about as large as the spread of a class, so nothing cancels that matters,
    however far the rows lie from the origin.

    Args:
        mask: rows that count, for each batch entry; an entry with none gets zeros.
        means: of the two classes.
    """

    def __init__(self, mask: Bool[Tensor, " example *batch"], means: Float[Tensor, "2 *batch d"]) -> None:
        self._mask, self._means = mask, means
        self._counts = means.new_zeros(means.shape[:-1])
        self._sums = torch.zeros_like(means)
        self._products = means.new_zeros((*means.shape[1:], means.shape[-1]))

    def add(
        self, number: int, rows: slice, members: Bool[Tensor, " row"], centred: Float[Tensor, "member *batch d"]
    ) -> None:
        """Add the members of class `number` among some rows, around their class mean; `centred` is overwritten."""
        mask = self._mask[rows][members]
        centred.mul_(mask[..., None])
        self._counts[number] += mask.sum(0)
        self._sums[number] += centred.sum(0)
        self._products += torch.einsum("n...i,n...j->...ij", centred, centred)

    def moments(self, workers: Workers = ONE_PROCESS) -> Moments:
        """Moments of the selected rows of all processes, covariances divided by the count."""
        counts, sums, products = (workers.sum(x.clone()) for x in (self._counts, self._sums, self._products))
        count = counts.sum(0)
        n = count.clamp_min(1)[..., None]
        mean = (counts[..., None] * self._means + sums).sum(0) / n
        apart = torch.where(count[..., None] > 0, self._means - mean, 0.0)
        mixed = torch.einsum("k...i,k...j->...ij", sums + 0.5 * counts[..., None] * apart, apart)
        return Moments(count, mean, (products + mixed + mixed.mT) / n[..., None])


def masked_moments(
    x: Rows, mask: Bool[Tensor, " example *batch"], *, shrink_below: float = 0.0, workers: Workers = ONE_PROCESS
) -> Moments:
    """Compute moments of the masked rows in float64, covariances divided by the count.

    Args:
        x: rows, axes `example *batch d`.
        mask: rows that count, for each batch entry; an entry with none gets zeros.
        shrink_below: covariances of fewer rows per dimension are shrunk, as in `Scatter.moments`.
        workers: processes that share the rows; each of them must make this call, and each gets all moments.
    """
    # Two passes over the rows, one for the means and one around them, for three reasons: (1) memory holds one chunk,
    # never a centred copy of `x`; (2) the formula E[x x'] - m m' of a single pass cancels, and rows far from the
    # origin would lose their digits; (3) a single row gets a covariance of exactly 0. The order of the chunks changes
    # the last bits of a sum, so all workers take the summed moments, never their own.
    mean = masked_mean(x, mask, workers=workers)
    sums = _Sums(mask.sum(0).double(), mean, shrink_below)
    for rows in workers.part(list(row_slices(x.shape))):
        # In float64, as the mean is.
        sums.add((x[rows] - mean).mul_(mask[rows][..., None]))
    return sums.scatter(workers).moments()


class _Sums:
    """The sums of a `Scatter` while rows are read."""

    def __init__(self, count: Float[Tensor, "*batch"], mean: Float[Tensor, "*batch d"], shrink_below: float) -> None:
        d = mean.shape[-1]
        self._count, self._mean, self._enough = count, mean, shrink_below * d
        self._products = mean.new_zeros((*mean.shape, d))
        # Only shrinkage needs it.
        self._fourth = torch.zeros_like(count) if bool((count < self._enough).any()) else None

    def add(self, centred: Float[Tensor, "row *batch d"]) -> None:
        """Add some centred rows."""
        self._products += torch.einsum("n...i,n...j->...ij", centred, centred)
        if self._fourth is not None:
            self._fourth += torch.linalg.vector_norm(centred, dim=-1).pow(4).sum(0)

    def scatter(self, workers: Workers) -> Scatter:
        """The sums over the rows of all processes."""
        fourth = None if self._fourth is None else workers.sum(self._fourth)
        return Scatter(self._count, self._mean, workers.sum(self._products), self._enough, fourth)


def _ledoit_wolf(fourth: Tensor, covariance: Tensor, count: Tensor) -> Tensor:
    """Shrink covariances by the coefficient of Ledoit and Wolf.

    Their equations, for `n` centred rows `x_k`, `S = sum x_k x_k' / n`, `|A|^2 = tr(A A') / d`, `m = tr(S) / d`:

        d^2 = |S - m I|^2,   b^2 = min(d^2, sum |x_k x_k' - S|^2 / n^2),   S* = (b^2 / d^2) m I + (1 - b^2 / d^2) S.

    The sum over rows needs no second pass: `sum |x_k x_k' - S|^2 / n = (mean ||x_k||^4 - ||S||_F^2) / d`.

    Args:
        fourth: mean fourth power of the rows' lengths.
        covariance: `S`.
        count: `n`, at least 1.
    """
    d = covariance.shape[-1]
    scale = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / d
    squared = covariance.square().sum((-2, -1))
    # At least 0 in exact arithmetic; equal rows leave rounding of either sign.
    spread = ((fourth - squared) / (count * d)).clamp_min(0)
    # 0 where `S` is a multiple of the identity already, as in one dimension or for a single row. Any coefficient gives
    # the same result there, and 0 / 0 must not be one.
    distance = (squared - d * scale.square()) / d
    shrinkage = torch.where(
        distance > 0, torch.minimum(spread, distance) / distance.clamp_min(1e-300), torch.zeros_like(scale)
    )
    target = scale[..., None, None] * torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    return (1 - shrinkage)[..., None, None] * covariance + shrinkage[..., None, None] * target
