"""Joint scores of several steerings, handed from layer to layer of a pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class HandedScores(NamedTuple):
    """Joint scores of a layer, each with a share of that of the layer below.

    Attributes:
        ballots: their places among the ballots of the layer.
        steerings: numbers of their steerings.
        carry: factors of the scores of the layer below.
        depends: whether a factor is not 0, known without a look at the device.
    """

    ballots: Int[Tensor, " handed"]
    steerings: Int[Tensor, " handed"]
    carry: Float[Tensor, " handed"]
    depends: bool

    def over(
        self, votes: Float[Tensor, "row ballot"], running: Float[Tensor, "row steering"]
    ) -> Float[Tensor, "row ballot"]:
        """Add those of the layer below, and put the sums in their place."""
        below = self.carry * running.index_select(1, self.steerings)
        # What an earlier pass has left may be NaN.
        score = votes.index_select(1, self.ballots) + torch.where(self.carry != 0, below, 0)
        running.index_copy_(1, self.steerings, score)
        return votes.index_copy(1, self.ballots, score)
