"""Affine maps for a set of heads, kept in the form in which they are cheap to apply.

What is stored is the displacement `a' - a`, so that a head that nothing happens to is moved by exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class HeadMaps(Protocol):
    """What a steering needs of its maps; the leading axis of every tensor is the edited head (`site`)."""

    kind: ClassVar[str]

    def displacement(self, z: Float[Tensor, "*batch site d_head"]) -> Float[Tensor, "*batch site d_head"]:
        """`a' - a` for the activations of the edited heads."""
        ...

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G` and `g` of `a' = G a + g`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All stored tensors by name, for saving."""
        ...

    def take(self, index: Int[Tensor, " chosen"]) -> HeadMaps:
        """The maps of the chosen heads."""
        ...

    def to(self, like: Tensor) -> HeadMaps:
        """The same maps in the precision and on the device of `like`."""
        ...


@dataclass(frozen=True)
class RankOneMaps:
    """`a' = a + write (read . a + shift)`: transports, and translations where `read` is 0."""

    write: Float[Tensor, "site d_head"]
    read: Float[Tensor, "site d_head"]
    shift: Float[Tensor, " site"]
    kind: ClassVar[str] = "rank_one"

    def displacement(self, z: Float[Tensor, "*batch site d_head"]) -> Float[Tensor, "*batch site d_head"]:
        """`write (read . a + shift)`."""
        return self.write * ((z * self.read).sum(-1, keepdim=True) + self.shift[:, None])

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G = I + write read'`, `g = shift write`."""
        eye = torch.eye(self.write.shape[-1], dtype=self.write.dtype, device=self.write.device)
        return eye + self.write[:, :, None] * self.read[:, None, :], self.write * self.shift[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"write": self.write, "read": self.read, "shift": self.shift}

    def take(self, index: Int[Tensor, " chosen"]) -> RankOneMaps:
        """The maps of the chosen heads."""
        return RankOneMaps(self.write[index], self.read[index], self.shift[index])

    def to(self, like: Tensor) -> RankOneMaps:
        """The same maps in the precision and on the device of `like`."""
        return RankOneMaps(self.write.to(like), self.read.to(like), self.shift.to(like))


@dataclass(frozen=True)
class DenseMaps:
    """`a' = a + change a + shift`, with `change = G - I`."""

    change: Float[Tensor, "site d_head d_head"]
    shift: Float[Tensor, "site d_head"]
    kind: ClassVar[str] = "dense"

    def displacement(self, z: Float[Tensor, "*batch site d_head"]) -> Float[Tensor, "*batch site d_head"]:
        """`change a + shift`."""
        return torch.einsum("sij,...sj->...si", self.change, z) + self.shift

    def matrices(self) -> tuple[Float[Tensor, "site d_head d_head"], Float[Tensor, "site d_head"]]:
        """`G = I + change`, `g = shift`."""
        eye = torch.eye(self.change.shape[-1], dtype=self.change.dtype, device=self.change.device)
        return eye + self.change, self.shift

    def tensors(self) -> dict[str, Tensor]:
        """Both tensors by name."""
        return {"change": self.change, "shift": self.shift}

    def take(self, index: Int[Tensor, " chosen"]) -> DenseMaps:
        """The maps of the chosen heads."""
        return DenseMaps(self.change[index], self.shift[index])

    def to(self, like: Tensor) -> DenseMaps:
        """The same maps in the precision and on the device of `like`."""
        return DenseMaps(self.change.to(like), self.shift.to(like))


MAP_KINDS: dict[str, type[RankOneMaps] | type[DenseMaps]] = {m.kind: m for m in (RankOneMaps, DenseMaps)}


@dataclass(frozen=True)
class Certificate:
    """Proof that one head's map is what it claims to be.

    Attributes:
        method: how the map was found, such as "transport" or "identity".
        margin: `kappa`.
        value: cost of the move; NaN for maps that minimise nothing.
        gap: optimality gap relative to the value.
        slack: `-(m' + kappa s')` against the fitted moments; at least 0 up to rounding.
        n_flagged: training activations that the moments were taken of.
        ridge: what was added to the diagonal of their covariance.
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
