"""Baselines that move undesirable activations to desirable ones, or make the two indistinguishable."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import MissingPackageError
from radiant_lens.linalg import gaussian_transport, square_root
from radiant_lens.policies.head_policy import HeadPolicy
from radiant_lens.policies.head_sample import HeadSample
from radiant_lens.steering.maps import DenseMaps, HeadMaps, RankOneMaps


@dataclass(frozen=True)
class MeanShiftPolicy(HeadPolicy):
    """Add `alpha` times the difference of the class means: `a + alpha (mu_desirable - mu_undesirable)`.

    The steering vector of contrastive activation addition (arXiv 2312.06681), at heads.

    Args:
        alpha: strength, positive; 1 moves one mean onto the other.
        heads, n_layers, gate: as for `RadiantPolicy`; the default gate is "none".
    """

    alpha: float = 1.0
    label = "mean shift"

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        super().check()
        _checks.between("alpha", self.alpha, 0)

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute translations."""
        return RankOneMaps.translation(self.alpha * sample.mean_difference())


@dataclass(frozen=True)
class MomentMatchingPolicy(HeadPolicy):
    """The Gaussian optimal transport map from the undesirable to the desirable moments.

    `G = S1^{-1/2} (S1^{1/2} S0 S1^{1/2})^{1/2} S1^{-1/2}`, `g = mu0 - G mu1`: as in "Representation Surgery"
    (arXiv 2402.09631). Covariances are shrunk where there are fewer than ten examples for each dimension.

    Args:
        heads, n_layers, gate: as for `RadiantPolicy`; the default gate is "none".
    """

    label = "moment matching"

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute dense maps that give undesirable activations the desirable mean and covariance."""
        source, target = (sample.class_moments(undesirable=y) for y in (True, False))
        matrix = gaussian_transport(square_root(source.covariance)[0], square_root(target.covariance)[0].matrix)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        return DenseMaps(matrix - eye, target.mean - torch.einsum("sij,sj->si", matrix, source.mean))


@dataclass(frozen=True)
class LinearActPolicy(HeadPolicy):
    """Linear activation transport, one coordinate at a time (Linear-AcT, arXiv 2410.23054).

    For each coordinate, the sorted undesirable values are paired with the sorted desirable ones, and `w a + c` is the
    least squares line of the pairs: `w = sum x y / sum x^2` of the centred pairs, `c = mean(y) - w mean(x)`. The map
    applies everywhere, not only within the range of the training values.

    Args:
        strength: `lambda` in (0, 1]: the map is `(1 - lambda) a + lambda (w a + c)`.
        heads, n_layers, gate: as for `RadiantPolicy`; the default gate is "none".
    """

    strength: float = 1.0
    label = "linear transport"

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        super().check()
        _checks.between("strength", self.strength, 0, 1, closed="high")

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute diagonal maps."""
        lines = [_line(z, sample.undesirable) for z in sample.rows.each_head()]
        slope, shift = (torch.stack(parts) for parts in zip(*lines))
        return DenseMaps(self.strength * torch.diag_embed(slope - 1), self.strength * shift)


@dataclass(frozen=True)
class LEACEPolicy(HeadPolicy):
    """Erase the label by the least change after which no linear classifier beats a constant (arXiv 2306.03819).

    Needs the `concept-erasure` package: `pip install "radiant-lens[erasure]"`.

    Args:
        heads, n_layers, gate: as for `RadiantPolicy`; the default gate is "none".
    """

    label = "erasure"

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range, `MissingPackageError` without the package."""
        super().check()
        try:
            import_module("concept_erasure")
        except ImportError as error:
            raise MissingPackageError(
                'LEACE needs the package concept-erasure: pip install "radiant-lens[erasure]".'
            ) from error

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute rank-one maps: for one binary label the eraser is a projection along one direction."""
        from concept_erasure import LeaceEraser

        labels = sample.undesirable.double()[:, None]
        fitted = [LeaceEraser.fit(z, labels) for z in sample.rows.each_head()]
        read = torch.stack([eraser.proj_right[0] for eraser in fitted])
        centre = torch.stack([eraser.bias for eraser in fitted if eraser.bias is not None])
        write = -torch.stack([eraser.proj_left[:, 0] for eraser in fitted])
        return RankOneMaps(write, read, -(read * centre).sum(-1))


def _line(
    z: Float[Tensor, "example d_head"], undesirable: Bool[Tensor, " example"]
) -> tuple[Float[Tensor, " d_head"], Float[Tensor, " d_head"]]:
    """Slope and constant of each coordinate's least squares line from undesirable to desirable quantiles."""
    # In one dimension the optimal transport pairs sorted values; classes of unequal size are paired by quantiles.
    x, y = (z[undesirable == kind].sort(dim=0).values for kind in (True, False))
    n = min(len(x), len(y))
    x, y = quantiles(x, n), quantiles(y, n)
    centred = x - x.mean(0)
    # A coordinate that never varies is moved by the difference of means alone: its slope is 0 / tiny = 0.
    slope = (centred * y).sum(0) / centred.square().sum(0).clamp_min(torch.finfo(x.dtype).tiny)
    return slope, y.mean(0) - slope * x.mean(0)


def quantiles(values: Float[Tensor, "example d_head"], n: int) -> Float[Tensor, "quantile d_head"]:
    """Interpolate the quantiles `(i + 1/2) / n` of sorted values; with `n = len(values)` they are the values."""
    place = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(values) / n - 0.5).clamp(0, len(values) - 1)
    low = place.floor().long()
    share = (place - low)[:, None]
    return torch.lerp(values[low], values[(low + 1).clamp_max(len(values) - 1)], share)
