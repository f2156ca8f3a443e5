"""The steering and the strength of every token of a pass, written once a step and read by every layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

UNSTEERED = -1
"""In place of the number of a steering, for tokens that are not edited."""


class SteeredRequest(NamedTuple):
    """A request whose tokens are edited.

    Attributes:
        steering: number of the steering among those of the server.
        strength: factor of its displacements.
        first: position of the first token that is edited, the last one of the prompt.
    """

    steering: int
    strength: float
    first: int


class SteeredRows(NamedTuple):
    """The rows of a pass that are edited.

    Attributes:
        places: in the pass, ascending; None if all rows of the pass are edited.
        steering: number of the steering of each.
        strength: of each.
    """

    places: Int[Tensor, " steered"] | None
    steering: Int[Tensor, " steered"]
    strength: Float[Tensor, " steered"]


_NONE = SteeredRequest(UNSTEERED, 0.0, 0)


class Rows:
    """Steering and strength of the tokens of the current pass, one row each.

    The tensors stay where they are, so that a CUDA graph can read them; rows beyond the current pass are unsteered.

    Positions decide which tokens are edited, and neither the number of passes nor their length does. A prompt in
    chunks, a prefix from the cache, and a request that was preempted and is computed again are edited at the same
    tokens.

    Args:
        n_max: most tokens of a pass.
        n_steerings: number of steerings of the server.
        device: of the model.

    Attributes:
        steering: number of each row's steering, or `UNSTEERED`.
        strength: of each row; 0 where it is unsteered.
        n_steered: number of rows of each steering in all passes so far.
        steered: rows of the current pass that are steered; None without any.
    """

    def __init__(self, n_max: int, n_steerings: int, device: torch.device | str = "cpu") -> None:
        self.steering: Int[Tensor, " row"] = torch.full((n_max,), UNSTEERED, device=device)
        self.strength: Float[Tensor, " row"] = torch.zeros(n_max, device=device)
        self.n_steered: NDArray[np.int64] = np.zeros(n_steerings, dtype=np.int64)
        self.steered: SteeredRows | None = None
        self._requests: dict[str, SteeredRequest] = {}
        self._n = 0

    def add(self, request_id: str, request: SteeredRequest | None) -> None:
        """Remember a request that begins, or begins again after preemption; None for one without a steering."""
        if request is None:
            self._requests.pop(request_id, None)
        else:
            self._requests[request_id] = request

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def __len__(self) -> int:
        """Number of steered requests that have not ended."""
        return len(self._requests)

    def fill(self, request_ids: Sequence[str], n_scheduled: NDArray[np.int_], n_computed: NDArray[np.int_]) -> None:
        """Write the rows of a pass.

        Args:
            request_ids: in the order of the rows.
            n_scheduled: number of rows of each request.
            n_computed: number of tokens of each request that were computed before this pass.
        """
        n, self.steered = 0, None
        if self._requests:
            requests = [self._requests.get(request_id, _NONE) for request_id in request_ids]
            steering, strength = _rows(requests, n_scheduled, n_computed)
            (index,) = np.nonzero(steering != UNSTEERED)
            if len(index):
                n = len(steering)
                self.n_steered += np.bincount(steering[index], minlength=len(self.n_steered))
                self.steering[:n].copy_(torch.from_numpy(steering))
                self.strength[:n].copy_(torch.from_numpy(strength))
                self.steered = self._select(index, n)
        self._clear(n)

    def _select(self, index: NDArray[np.int64], n: int) -> SteeredRows:
        """The rows of this index, of the first `n`."""
        if len(index) == n:
            return SteeredRows(None, self.steering[:n], self.strength[:n])
        places = torch.from_numpy(index).to(self.steering.device)
        return SteeredRows(places, self.steering[places], self.strength[places])

    def _clear(self, n: int) -> None:
        """Make the rows after the first `n` unsteered, as far as an earlier pass wrote them."""
        if n < self._n:
            self.steering[n : self._n] = UNSTEERED
            self.strength[n : self._n] = 0
        self._n = n


def _rows(
    requests: Sequence[SteeredRequest], n_scheduled: NDArray[np.int_], n_computed: NDArray[np.int_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Steering and strength of each row."""
    steering, strength, first = zip(*requests)
    ends = np.cumsum(n_scheduled)
    # The first row of a request is the token after those that were computed before.
    offsets = np.asarray(n_computed) - (ends - n_scheduled)
    positions = np.arange(ends[-1]) + np.repeat(offsets, n_scheduled)
    is_edited = positions >= np.repeat(first, n_scheduled)
    return (
        np.where(is_edited, np.repeat(np.asarray(steering, dtype=np.int64), n_scheduled), UNSTEERED),
        np.where(is_edited, np.repeat(np.asarray(strength, dtype=np.float32), n_scheduled), np.float32(0)),
    )
