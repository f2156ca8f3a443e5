"""Maps for a set of heads, stored in the form in which they are cheap to apply.

They store the displacement `a' - a` instead of `a'`, so that a head with the identity is moved by exactly 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError

Stored = TypeVar("Stored", bound="PerHead")


class PerHead:
    """Base of dataclasses of tensors whose leading axis is the edited head (`site`)."""

    def tensors(self) -> dict[str, Tensor]:
        """All stored tensors by name, for saving."""
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}

    def take(self: Stored, index: Int[Tensor, " chosen"]) -> Stored:
        """The same for the chosen heads."""
        return type(self)(**{name: value[index] for name, value in self.tensors().items()})

    @classmethod
    def joined(cls: type[Stored], parts: Sequence[Stored]) -> Stored:
        """The heads of all parts, in their order."""
        all_tensors = [part.tensors() for part in parts]
        return cls(**{name: torch.cat([tensors[name] for tensors in all_tensors]) for name in all_tensors[0]})

    def to(self: Stored, like: Tensor) -> Stored:
        """The same in the precision and on the device of `like`."""
        return type(self)(**{name: value.to(like) for name, value in self.tensors().items()})


class HeadMaps(PerHead, ABC):
    """Base of the maps of a steering.

    Attributes:
        kind: name of the class in files.
        axes: of each stored tensor, for checking a file.
    """

    kind: ClassVar[str]
    axes: ClassVar[dict[str, str]]
    needs_joint: ClassVar[bool] = False
    """True where displacements depend on the joint score of the layer."""

    @abstractmethod
    def displacement(
        self, z: Float[Tensor, "*batch site d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch site d_head"]:
        """`a' - a` for the activations of the edited heads; `joint`: score of their layer, for maps that need it."""

    @abstractmethod
    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G` and `g` of `a' = G a + g`."""

    @abstractmethod
    def transformed(self, matrix: Float[Tensor, "site d_head d_head"]) -> HeadMaps:
        """Maps whose displacements are `matrix` times these."""

    @abstractmethod
    def scaled(self, factors: Float[Tensor, " site"]) -> HeadMaps:
        """Maps whose displacements are `factors` times these, one factor for each head."""


@dataclass(frozen=True)
class RankOneMaps(HeadMaps):
    """`a' = a + write (read . a + shift)`: transports, and translations where `read` is 0."""

    write: Float[Tensor, "site d_head"]
    read: Float[Tensor, "site d_head"]
    shift: Float[Tensor, " site"]
    kind: ClassVar[str] = "rank_one"
    axes: ClassVar[dict[str, str]] = {"write": "site d_head", "read": "site d_head", "shift": "site"}

    @classmethod
    def translation(cls, by: Float[Tensor, "site d_head"]) -> RankOneMaps:
        """`a' = a + by`."""
        return cls(by, torch.zeros_like(by), torch.ones_like(by[:, 0]))

    def displacement(
        self, z: Float[Tensor, "*batch site d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch site d_head"]:
        """`write (read . a + shift)`."""
        return self.write * ((z * self.read).sum(-1, keepdim=True) + self.shift[:, None])

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G = I + write read'`, `g = shift write`."""
        eye = torch.eye(self.write.shape[-1], dtype=self.write.dtype, device=self.write.device)
        return eye + self.write[:, :, None] * self.read[:, None, :], self.write * self.shift[:, None]

    def transformed(self, matrix: Float[Tensor, "site d_head d_head"]) -> RankOneMaps:
        """`write` becomes `matrix write`."""
        return replace(self, write=torch.einsum("sij,sj->si", matrix, self.write.to(matrix)))

    def scaled(self, factors: Float[Tensor, " site"]) -> RankOneMaps:
        """`write` times the factors."""
        return replace(self, write=factors.to(self.write)[:, None] * self.write)


@dataclass(frozen=True)
class DenseMaps(HeadMaps):
    """`a' = a + change a + shift`, with `change = G - I`."""

    change: Float[Tensor, "site d_head d_head"]
    shift: Float[Tensor, "site d_head"]
    kind: ClassVar[str] = "dense"
    axes: ClassVar[dict[str, str]] = {"change": "site d_head d_head", "shift": "site d_head"}

    @classmethod
    def constant(cls, value: Float[Tensor, "site d_head"]) -> DenseMaps:
        """`a' = value`."""
        return cls(-torch.eye(value.shape[-1]).to(value).repeat(len(value), 1, 1), value)

    def displacement(
        self, z: Float[Tensor, "*batch site d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch site d_head"]:
        """`change a + shift`."""
        return torch.einsum("sij,...sj->...si", self.change, z) + self.shift

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G = I + change`, `g = shift`."""
        eye = torch.eye(self.change.shape[-1], dtype=self.change.dtype, device=self.change.device)
        return eye + self.change, self.shift

    def transformed(self, matrix: Float[Tensor, "site d_head d_head"]) -> DenseMaps:
        """`change` and `shift` from the left by `matrix`."""
        return DenseMaps(matrix @ self.change.to(matrix), torch.einsum("sij,sj->si", matrix, self.shift.to(matrix)))

    def scaled(self, factors: Float[Tensor, " site"]) -> DenseMaps:
        """`change` and `shift` times the factors."""
        factors = factors.to(self.change)
        return DenseMaps(factors[:, None, None] * self.change, factors[:, None] * self.shift)


@dataclass(frozen=True)
class ResampleMaps(HeadMaps):
    """`a'` is one of a bank of activations, chosen by `a` itself.

    The choice follows from the signs of `a - centre` along random `planes`. A choice that depended on anything but the
    activation (a generator, the place in the batch) would let rows of a batch affect each other.
    """

    bank: Float[Tensor, "site draw d_head"]
    planes: Float[Tensor, "site bit d_head"]
    centre: Float[Tensor, "site d_head"]
    kind: ClassVar[str] = "resample"
    axes: ClassVar[dict[str, str]] = {"bank": "site draw d_head", "planes": "site bit d_head", "centre": "site d_head"}

    def displacement(
        self, z: Float[Tensor, "*batch site d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch site d_head"]:
        """The drawn activation minus `a`."""
        bits = torch.einsum("skd,...sd->...sk", self.planes, z - self.centre) > 0
        code = (bits.long() << torch.arange(bits.shape[-1], device=z.device)).sum(-1)
        # Fibonacci hashing spreads neighbouring codes over the bank: the factor is 2^32 divided by the golden ratio.
        # Then `hash * n >> 32` scales the 32-bit hash to the size of the bank.
        draw = ((code * 2654435761) % 2**32 * self.bank.shape[1]) >> 32
        return self.bank[torch.arange(len(self.bank), device=z.device), draw] - z

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """Refuse: a choice among activations is not an affine map."""
        raise InvalidArgumentError("Resample ablation is no affine map: it has no matrix `G`.")

    def transformed(self, matrix: Float[Tensor, "site d_head d_head"]) -> HeadMaps:
        """Refuse, as `matrices` does."""
        raise InvalidArgumentError("Resample ablation is no affine map: its displacements cannot be turned.")

    def scaled(self, factors: Float[Tensor, " site"]) -> HeadMaps:
        """Refuse: part of the way to another activation is no activation of the bank."""
        raise InvalidArgumentError("Resample ablation puts whole activations in place of others: it has no strength.")


def evidence(
    joint: Float[Tensor, "*batch 1"], start: Float[Tensor, " site"], steepness: Float[Tensor, " site"]
) -> Float[Tensor, "*batch site"]:
    """A ramp of the joint score of a layer, from 0 to 1; `start` and `steepness` are those of `EvidenceMaps`."""
    return ((joint - start) * steepness).clamp(0, 1)


@dataclass(frozen=True)
class EvidenceMaps(HeadMaps):
    """`a' = a + shift + evidence * slope`; the evidence is how surely text looks undesirable to this and lower layers.

    The evidence is a ramp of the joint score of the layer: 0 up to the score `start`, then rising by `steepness` for
    each unit of the score until it is 1, and 1 beyond, so that no text can move a head further than the whole slope.
    """

    shift: Float[Tensor, "site d_head"]
    slope: Float[Tensor, "site d_head"]
    start: Float[Tensor, " site"]
    steepness: Float[Tensor, " site"]
    kind: ClassVar[str] = "evidence"
    axes: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("shift", "slope"), "site d_head"),
        **dict.fromkeys(("start", "steepness"), "site"),
    }
    needs_joint: ClassVar[bool] = True

    def displacement(
        self, z: Float[Tensor, "*batch site d_head"], joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch site d_head"]:
        """`shift + evidence * slope`."""
        assert joint is not None
        return self.shift + evidence(joint, self.start, self.steepness)[..., None] * self.slope

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """Refuse: the evidence of a layer is no affine function of one head's activation."""
        raise InvalidArgumentError("Edits by the evidence of a layer are no affine maps: they have no matrix `G`.")

    def transformed(self, matrix: Float[Tensor, "site d_head d_head"]) -> EvidenceMaps:
        """`shift` and `slope` from the left by `matrix`."""
        shift, slope = (torch.einsum("sij,sj->si", matrix, v.to(matrix)) for v in (self.shift, self.slope))
        return replace(self, shift=shift, slope=slope)

    def scaled(self, factors: Float[Tensor, " site"]) -> EvidenceMaps:
        """`shift` and `slope` times the factors."""
        factors = factors.to(self.shift)[:, None]
        return replace(self, shift=factors * self.shift, slope=factors * self.slope)


MAP_KINDS: dict[str, type[HeadMaps]] = {m.kind: m for m in (RankOneMaps, DenseMaps, EvidenceMaps, ResampleMaps)}


@dataclass(frozen=True)
class Certificate:
    """Proof of the solver that the map of one head meets its constraint at least cost.

    Attributes:
        method: of the solver, such as "transport" or "identity".
        margin: `kappa`.
        value: cost of the move; NaN for maps that minimise nothing.
        gap: optimality gap relative to the value.
        slack: `-(m' + kappa s')` against the fitted moments; at least 0 up to rounding.
        n_flagged: number of training activations that the moments are of.
        ridge: added to the diagonal of their covariance.
        shrunk: whether the covariance was shrunk (few activations).
    """

    method: str
    margin: float = float("nan")
    value: float = float("nan")
    gap: float = float("nan")
    slack: float = float("nan")
    n_flagged: int = 0
    ridge: float = 0.0
    shrunk: bool = False


@dataclass(frozen=True)
class AffineMap:
    """`a' = G a + g` for one head, with its certificate."""

    G: Float[Tensor, "d_head d_head"]
    g: Float[Tensor, " d_head"]
    certificate: Certificate
