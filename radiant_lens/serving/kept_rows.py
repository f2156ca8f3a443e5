"""Activations of heads that an engine keeps: which rows of each pass, and where they go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

KEEP = "radiant_lens_keep"
"""Extra argument of a request whose activations are kept, a `Keep`."""


class Keep(NamedTuple):
    """Positions of a request to keep, ascending, and the row of the first of them among all kept activations."""

    row: int
    positions: NDArray[np.int64]


def read_keep(extra_args: Mapping[str, Any]) -> Keep | None:
    """Positions that a request asks to keep; None for one that keeps nothing."""
    keep = extra_args.get(KEEP)
    # What a client of a server sends under this name has come as JSON, and is none.
    return keep if isinstance(keep, Keep) else None


def keep_key(extra_args: Mapping[str, Any] | None, request_id: str, end: int) -> tuple[str, str] | None:
    """Key of a block of the prefix cache that holds a kept token, beside its tokens; None for any other block.

    A block that is reused is not computed, and what is not computed cannot be kept. So a block with a kept token has a
    key that no other request has, and the blocks before it are shared as ever.

    Args:
        extra_args: of the request.
        request_id: of the request.
        end: position after the last token of the block.
    """
    keep = read_keep(extra_args or {})
    if keep is None or not len(keep.positions) or end <= keep.positions[0]:
        return None
    return KEEP, request_id


class KeptRows:
    """Activations at the kept positions of requests, of the layers and heads of one process.

    Positions decide which rows are kept, as they decide which are edited: a prompt in chunks, and a request that was
    preempted and is computed again, give the same activations.

    Args:
        shape: layers to keep that this process has, its heads, and the length of an activation.
        like: activations; the kept ones are on their device, in their precision.

    Attributes:
        z: kept activations; NaN where nothing has been kept yet.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self.z: Float[Tensor, "kept layer head d_head"] = like.new_empty((0, *shape))
        self._requests: dict[str, Keep] = {}
        self._source = self._target = torch.zeros(0, dtype=torch.long, device=like.device)

    def begin(self, n: int) -> None:
        """Make room for `n` activations, in place of those that were kept before."""
        self.z = self.z.new_full((n, *self.z.shape[1:]), torch.nan)

    def add(self, request_id: str, request: Keep | None) -> None:
        """Remember a request that begins; None for one that keeps nothing."""
        if request is not None:
            self._requests[request_id] = request

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def fill(self, request_ids: Sequence[str], n_scheduled: NDArray[np.int_], n_computed: NDArray[np.int_]) -> None:
        """Find the rows of a pass to keep, and their places; the arguments are those of `Follower.fill`."""
        sources, targets = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        begins = np.cumsum(n_scheduled) - n_scheduled
        for request_id, begin, n, computed in zip(request_ids, begins, n_scheduled, n_computed):
            keep = self._requests.get(request_id)
            if keep is not None:
                first, end = np.searchsorted(keep.positions, [computed, computed + n])
                sources.append(keep.positions[first:end] - computed + begin)
                targets.append(np.arange(keep.row + first, keep.row + end))
        self._source, self._target = (self._index(np.concatenate(rows)) for rows in (sources, targets))

    def _index(self, rows: NDArray[np.int64]) -> Int[Tensor, " row"]:
        return torch.from_numpy(rows).to(self.z.device)

    def keep(self, place: int, z: Float[Tensor, "... row d_in"]) -> None:
        """Copy the kept rows of a pass, at the layer of this place."""
        if len(self._source):
            # Models that vLLM runs with the code of transformers have an axis of length 1 in front.
            rows = z.flatten(0, -2).index_select(0, self._source)
            self.z[:, place].index_copy_(0, self._target, rows.unflatten(1, self.z.shape[2:]))
