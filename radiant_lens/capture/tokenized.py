"""Tokenized texts of one collection: their tokens, the starts of their answers, and the positions to keep."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from radiant_lens._files import sha256
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.tokens import answer_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Tokens of many texts in four bytes each, with the positions of which activations are kept.

    Attributes:
        lengths: number of tokens of each text.
        starts: position of the token that predicts the answer's first token: edits begin there.
        positions: positions to keep, as `collect` takes them.
    """

    lengths: Int[Tensor, " text"]
    starts: Int[Tensor, " text"]
    positions: str | Sequence[int]
    _tokens: array[int] = field(repr=False)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    @cached_property
    def digest(self) -> str:
        """Hash of all tokens: two tokenizers, or two rules for special tokens, may read one text differently."""
        return sha256([self.lengths.numpy().data, self._tokens.tobytes()])[:16]

    def tokens(self, text: int) -> Sequence[int]:
        """Tokens of one text, by its number."""
        first = self._firsts[text]
        return self._tokens[first : first + int(self.lengths[text])]

    def kept(self, text: int) -> Sequence[int]:
        """Positions to keep of one text, ascending."""
        n, start = int(self.lengths[text]), int(self.starts[text])
        if self.positions == "answer":
            return range(start, n)
        if self.positions == "all":
            return range(n)
        return sorted({p % n for p in _indices(self.positions)})

    @cached_property
    def counts(self) -> Int[Tensor, " text"]:
        """Number of positions to keep of each text."""
        return torch.frombuffer(array("i", (len(self.kept(text)) for text in range(len(self)))), dtype=torch.int32)

    def by_prompt(self) -> list[list[int]]:
        """Numbers of the texts that share their tokens up to the one that predicts the answer."""
        # Bytes, not tuples: of many texts they are the smaller part of the memory.
        texts: dict[bytes, list[int]] = {}
        for text, start in enumerate(self.starts.tolist()):
            first = self._firsts[text]
            texts.setdefault(self._tokens[first : first + start + 1].tobytes(), []).append(text)
        return list(texts.values())

    @cached_property
    def _firsts(self) -> Sequence[int]:
        """Index of each text's first token among all tokens."""
        return array("q", accumulate(self.lengths.tolist(), initial=0))


def tokenize(
    model: TransformerBridge, statements: Sequence[Statement], positions: str | Sequence[int]
) -> TokenizedTexts:
    """Tokenize statements.

    Args:
        model: from `load_model`.
        statements: at least one.
        positions: positions to keep, as `collect` takes them.

    Raises:
        InvalidArgumentError: a position outside a text.
        DataError: a text that has no tokens, is not valid Unicode, or is longer than the model's context.
    """
    lengths, starts, tokens = array("i"), array("i"), array("i")
    for ids, start in answer_rows(model, statements):
        n = len(ids)
        if not isinstance(positions, str) and any(not -n <= p < n for p in positions):
            raise InvalidArgumentError(
                f"`positions` must lie in [-{n}, {n}) for text {len(lengths)}; got {list(positions)}."
            )
        lengths.append(n)
        starts.append(start)
        tokens.extend(ids)
    return TokenizedTexts(
        torch.frombuffer(lengths, dtype=torch.int32), torch.frombuffer(starts, dtype=torch.int32), positions, tokens
    )


def _indices(positions: str | Sequence[int]) -> Sequence[int]:
    return [-1] if positions == "last" else [int(p) for p in positions]
