"""Votes and edits of the requests that want a trace, added to a file as each of them ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from radiant_lens.serving.batched_editor import BatchedEditor, EditedRows

_LOG = logging.getLogger("vllm.radiant_lens")


class TracedRequest(NamedTuple):
    """A request with a trace.

    Attributes:
        name: of its steering.
        steering: number of that.
        strength: factor of its displacements.
        first: position of the first token that is edited, the last one of the prompt.
    """

    name: str
    steering: int
    strength: float
    first: int


@dataclass
class _Token:
    """Votes and edited heads of one token, by layer."""

    votes: dict[int, int] = field(default_factory=dict)
    edited: dict[int, list[int]] = field(default_factory=dict)


class _Row(NamedTuple):
    """A row of the current pass that is traced."""

    row: int
    steering: int
    token: _Token


class RequestTraces:
    """Traces of one process, which has its own layers and heads; each process adds a line for each request.

    A token that is computed again, after preemption, replaces what was recorded of it.

    Args:
        file: lines are added to it.
        process: number of this process.
    """

    def __init__(self, file: str | Path, process: int) -> None:
        self._file, self._process = Path(file), process
        self._requests: dict[str, TracedRequest] = {}
        self._tokens: dict[str, dict[int, _Token]] = {}
        self._rows: list[_Row] = []

    def add(self, request_id: str, request: TracedRequest | None) -> None:
        """Remember a request that begins; None for one without a trace."""
        if request is not None:
            self._requests[request_id] = request
            self._tokens[request_id] = {}

    def remove(self, request_ids: Iterable[str]) -> None:
        """Write the traces of requests that have ended."""
        lines = [self._line(request_id) for request_id in request_ids if request_id in self._requests]
        if not lines:
            return
        try:
            # One write: several processes add to the file.
            with open(self._file, "a", encoding="utf-8") as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in lines))
        except OSError as error:
            # Not raised: it would end the engine, and with it the requests of others.
            _LOG.warning("Traces of %d requests are lost: %s.", len(lines), error)

    def _line(self, request_id: str) -> dict[str, Any]:
        request, tokens = self._requests.pop(request_id), self._tokens.pop(request_id)
        return {
            "request": request_id,
            "steering": request.name,
            "strength": request.strength,
            "process": self._process,
            "tokens": [
                {"position": position, "votes": token.votes, "edited": token.edited}
                for position, token in sorted(tokens.items())
            ],
        }

    def fill(self, request_ids: Sequence[str], n_scheduled: NDArray[np.int_], n_computed: NDArray[np.int_]) -> None:
        """Find the rows of a pass that are traced; the arguments are those of `Follower.fill`."""
        self._rows = []
        begins = np.cumsum(n_scheduled) - n_scheduled
        for request_id, begin, n, computed in zip(request_ids, begins, n_scheduled, n_computed):
            request = self._requests.get(request_id)
            if request is None:
                continue
            for position in range(max(int(computed), request.first), int(computed + n)):
                token = self._tokens[request_id][position] = _Token()
                self._rows.append(_Row(int(begin + position - computed), request.steering, token))

    def record(self, editor: BatchedEditor, edited: EditedRows, places: Int[Tensor, " row"] | None = None) -> None:
        """Record the traced rows of a pass at one layer.

        `votes` are of layers whose gates count them, `edited` of layers with an edited head.

        Args:
            editor: of the layer.
            edited: rows after the edits.
            places: of these rows in the pass, ascending, with every traced one; None: they are all rows of the pass.
        """
        if not self._rows or not len(editor.owner):
            return
        index = torch.tensor([row.row for row in self._rows], device=edited.is_open.device)
        if places is not None:
            index = torch.searchsorted(places, index)
        is_open = edited.is_open[index].cpu()
        votes = None if edited.votes is None else edited.votes[index].cpu()
        owner, heads, ballot = editor.owner.cpu(), editor.heads.cpu(), editor.ballot.cpu()
        counted = editor.needs_votes.cpu()
        for i, (_, steering, token) in enumerate(self._rows):
            ballots = ballot[(owner == steering) & counted]
            if votes is not None and len(ballots):
                token.votes[editor.layer] = int(votes[i, ballots[0]])
            if is_open[i].any():
                token.edited[editor.layer] = heads[is_open[i]].tolist()
