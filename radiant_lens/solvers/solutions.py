"""Results of the solvers: affine maps with the figures of their certificates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class TransportSolution:
    """Least moves along one direction, `a' = a + direction * ((scale - 1) * y + offset)`, `y = bias + theta . a`.

    `value`, `gap` and `slack` are computed from the stored map, not from the solver's way to it.

    Attributes:
        direction: `M theta / (theta' M theta)`, so that a unit along it raises the score by one.
        scale: factor on the score's deviation from its mean, `s' / s`.
        offset: `m' - scale * m`.
        value: cost of this map, `E ||a' - a||^2` in the metric `M^{-1}`.
        gap: difference of `value` and a dual bound, relative to `max(value, 1e-3 s^2 / theta' M theta)`; about 0
            up to rounding.
        slack: `-(m' + margin * s')`, `m'` and `s'` the moments of the moved score (`s'` the floor for a score without
            spread); at least 0 up to rounding.
        identity: marks problems whose constraint holds already; nothing moves there.
    """

    theta: Float[Tensor, "*batch d"]
    bias: Float[Tensor, "*batch"]
    direction: Float[Tensor, "*batch d"]
    scale: Float[Tensor, "*batch"]
    offset: Float[Tensor, "*batch"]
    source_mean: Float[Tensor, "*batch d"]
    source_covariance: Float[Tensor, "*batch d d"]
    value: Float[Tensor, "*batch"]
    gap: Float[Tensor, "*batch"]
    slack: Float[Tensor, "*batch"]
    identity: Bool[Tensor, "*batch"]

    @cached_property
    def G(self) -> Float[Tensor, "*batch d d"]:
        """The linear part as a matrix, `I + (scale - 1) direction theta'`; built at the first access."""
        eye = torch.eye(self.theta.shape[-1], dtype=self.theta.dtype, device=self.theta.device)
        return eye + (self.scale - 1)[..., None, None] * self.direction[..., :, None] * self.theta[..., None, :]

    @cached_property
    def g(self) -> Float[Tensor, "*batch d"]:
        """The constant part, `direction * ((scale - 1) * bias + offset)`."""
        return self.direction * ((self.scale - 1) * self.bias + self.offset)[..., None]

    @property
    def mean(self) -> Float[Tensor, "*batch d"]:
        """Mean of the image."""
        return torch.einsum("...ij,...j->...i", self.G, self.source_mean) + self.g

    @property
    def covariance(self) -> Float[Tensor, "*batch d d"]:
        """Covariance of the image."""
        return self.G @ self.source_covariance @ self.G.mT


@dataclass(frozen=True)
class ProcrustesSolution:
    """Solutions of the paper's problem: new mean and root of the covariance, and the affine map that attains them.

    `mean`, `value`, `gap` and `slack` are computed from the stored map.

    Attributes:
        G, g: the map `a -> G a + g`.
        mean, covariance: moments of the image. `covariance` is `G Sigma G'`, equal to `S S` where `Sigma`
            is not singular and never above it.
        root: `S`, the solution of the problem.
        bound: lower bound of the problem's value, from a point of its dual.
        value: primal value `||mean - mu||^2 + ||S - H||_F^2`, `H` the root of `Sigma`.
        gap: difference of `value` and a dual bound, relative to `max(value, 1e-3 tr Sigma)`; about 0 up to rounding.
        slack: `-(bias + theta . mean + margin * max(||S theta||, sqrt(theta' covariance theta)))`; at
            least 0 up to rounding.
        identity: marks problems whose constraint holds already; nothing moves there.
    """

    G: Float[Tensor, "*batch d d"]
    g: Float[Tensor, "*batch d"]
    mean: Float[Tensor, "*batch d"]
    covariance: Float[Tensor, "*batch d d"]
    root: Float[Tensor, "*batch d d"]
    bound: Float[Tensor, "*batch"]
    value: Float[Tensor, "*batch"]
    gap: Float[Tensor, "*batch"]
    slack: Float[Tensor, "*batch"]
    identity: Bool[Tensor, "*batch"]
