"""Activations of one head before and after its edit, with their scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import HeadSite
from radiant_lens.steering.cached import cached_edits
from radiant_lens.steering.steering import Steering


@dataclass(frozen=True)
class HeadMoves:
    """Activations of one head before and after its edit.

    Attributes:
        site: the head.
        before, after: activations; equal where the gate is shut.
        weight, bias: of the head's detector, which flags activations with a score of at least 0.
        gated: true where the head is edited.
        labels: 1 for undesirable examples, 0 for desirable ones.
    """

    site: HeadSite
    before: Float[Tensor, "example d_head"]
    after: Float[Tensor, "example d_head"]
    weight: Float[Tensor, " d_head"]
    bias: float
    gated: Bool[Tensor, " example"]
    labels: Int[Tensor, " example"]

    def scores(self, z: Float[Tensor, "example d_head"]) -> Float[Tensor, " example"]:
        """The detector's score `bias + weight . z`."""
        return z @ self.weight + self.bias

    def plane(self) -> tuple[Float[Tensor, "example 2"], Float[Tensor, "example 2"]]:
        """Project the activations before and after the edit on two dimensions.

        The first is the signed distance to the detector's boundary, along its direction. The second is the first
        principal component of the activations before the edit, after the detector's direction is projected out.
        """
        unit = self.weight / self.weight.norm()
        rest = self.before - (self.before @ unit)[:, None] * unit
        centre = rest.mean(0)
        second = torch.linalg.svd(rest - centre, full_matrices=False).Vh[0]
        # Projected once more: rounding leaves a little of the direction in, and where `d_head` is 1 the singular vector
        # is arbitrary and becomes 0 here.
        second = second - (second @ unit) * unit
        return self._in_plane(self.before, centre, second), self._in_plane(self.after, centre, second)

    def _in_plane(self, z: Tensor, centre: Tensor, second: Tensor) -> Float[Tensor, "example 2"]:
        return torch.stack([self.scores(z) / self.weight.norm(), (z - centre) @ second], dim=1)


def head_moves(steering: Steering, cache: HeadCache, site: tuple[int, int]) -> HeadMoves:
    """Apply a steering to the activations of one head.

    Args:
        steering: fitted or loaded.
        cache: activations of any texts.
        site: one of the edited heads.

    Raises:
        InvalidArgumentError: the head is not edited, its detector's weight is zero, or the cache has another shape.
        DataError: there are no examples, or activations that are not finite.
    """
    site = HeadSite(*site)
    if site not in steering.sites:
        raise InvalidArgumentError(f"`site` must be an edited head, such as {steering.sites[0]}; got {site}.")
    _checks.some("`cache`", len(cache))
    _checks.finite("cache.z", cache.z)
    weight = steering.scores.weights[site].double()
    if not bool(weight.any()):
        raise InvalidArgumentError(f"The detector's weight is zero at {site}: there is no direction to show.")
    # The whole layer: a gate may count the votes of all its heads.
    ((z, edit),) = cached_edits(steering, cache, [site.layer])
    column = edit.heads.tolist().index(site.head)
    before = z[:, site.head]
    after = before + edit.displacement[:, column]
    bias = float(steering.scores.biases[site])
    return HeadMoves(site, before, after, weight, bias, edit.gated[:, column], cache.labels)
