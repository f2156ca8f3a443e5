"""Labelled texts as a run reads them: how long each is, what is kept of it, and its tokens."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens._files import write_errors
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.tokens import answer_positions, encode_each

_IN_MEMORY = 2**20
"""Bytes of tokens; more go to a temporary file."""


@dataclass(frozen=True, eq=False)
class Texts:
    """A few bytes in memory for each text, however long it is; to be closed, as a file is.

    Attributes:
        lengths: tokens of each text.
        starts: position of the token that predicts the answer's first: edits start there.
        positions: which are kept, as `collect` takes them.
    """

    lengths: Int[Tensor, " text"]
    starts: Int[Tensor, " text"]
    positions: str | Sequence[int]
    _file: IO[bytes] = field(repr=False)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def tokens(self, text: int) -> Sequence[int]:
        """Of one text, by its number."""
        found = array("i")
        self._file.seek(found.itemsize * self._begins[text])
        found.frombytes(self._file.read(found.itemsize * int(self.lengths[text])))
        return found

    def kept(self, text: int) -> Sequence[int]:
        """Positions of one text that are kept, ascending."""
        n, start = int(self.lengths[text]), int(self.starts[text])
        if self.positions == "answer":
            return range(start, n)
        if self.positions == "all":
            return range(n)
        return sorted({p % n for p in _numbers(self.positions)})

    @cached_property
    def counts(self) -> Int[Tensor, " text"]:
        """How many positions of each text are kept."""
        return torch.frombuffer(array("i", (len(self.kept(text)) for text in range(len(self)))), dtype=torch.int32)

    @cached_property
    def _begins(self) -> Sequence[int]:
        return array("q", accumulate(self.lengths.tolist(), initial=0))

    def close(self) -> None:
        """Forget the tokens."""
        self._file.close()


def read(model: TransformerBridge, statements: Sequence[Statement], positions: str | Sequence[int]) -> Texts:
    """Tokenize statements.

    Args:
        model: from `load_model`.
        statements: at least one.
        positions: to keep.

    Raises:
        InvalidArgumentError: a position beyond a text.
        DataError: a text that has no tokens, is no Unicode, or is longer than the model's context.
        OutputError: many tokens, and no room for temporary files.
    """
    lengths, starts = array("i"), array("i")
    with write_errors(Path(tempfile.gettempdir()), "nothing has been run"), ExitStack() as unless_read:
        file = unless_read.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))
        for encoded, statement in zip(encode_each(model, [s.text for s in statements]), statements):
            n = len(encoded.ids)
            if not isinstance(positions, str) and any(not -n <= p < n for p in positions):
                raise InvalidArgumentError(
                    f"`positions` must lie in [-{n}, {n}) for text {len(lengths)}; got {list(positions)}."
                )
            lengths.append(n)
            starts.append(answer_positions(encoded, statement.answer_start).start)
            file.write(array("i", encoded.ids))
        file.flush()
        unless_read.pop_all()
    lengths, starts = (torch.frombuffer(values, dtype=torch.int32) for values in (lengths, starts))
    return Texts(lengths, starts, positions, file)


def _numbers(positions: str | Sequence[int]) -> Sequence[int]:
    return [-1] if positions == "last" else [int(p) for p in positions]
