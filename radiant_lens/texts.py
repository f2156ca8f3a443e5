"""Labelled texts as a run reads them: how long each is, what is kept of it, and its tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens.datasets.records import Statement
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.tokens import answer_positions, encode_each


@dataclass(frozen=True, eq=False)
class Texts:
    """A few bytes for each text, however long it is.

    Attributes:
        lengths: tokens of each text.
        starts: position of the token that predicts the answer's first: edits start there.
        positions: which are kept, as `collect` takes them.
        tokens: of some texts, by their numbers.
    """

    lengths: Int[Tensor, " text"]
    starts: Int[Tensor, " text"]
    positions: str | Sequence[int]
    tokens: Callable[[Sequence[int]], list[list[int]]]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

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


def read(
    model: TransformerBridge, statements: Sequence[Statement], positions: str | Sequence[int], *, remember: bool
) -> Texts:
    """Tokenize statements to see how long they are.

    Args:
        model: from `load_model`.
        statements: at least one.
        positions: to keep.
        remember: keep the tokens; else they are made anew whenever they are asked for.

    Raises:
        InvalidArgumentError: a position beyond a text.
        DataError: a text that has no tokens, is no Unicode, or is longer than the model's context.
    """

    def tokens(texts: Sequence[int]) -> list[list[int]]:
        return [encoded.ids for encoded in encode_each(model, [statements[i].text for i in texts])]

    lengths, starts, kept = array("i"), array("i"), []
    for encoded, statement in zip(encode_each(model, [s.text for s in statements]), statements):
        n = len(encoded.ids)
        if not isinstance(positions, str) and any(not -n <= p < n for p in positions):
            raise InvalidArgumentError(
                f"`positions` must lie in [-{n}, {n}) for text {len(lengths)}; got {list(positions)}."
            )
        lengths.append(n)
        starts.append(answer_positions(encoded, statement.answer_start).start)
        if remember:
            kept.append(encoded.ids)
    return Texts(
        torch.frombuffer(lengths, dtype=torch.int32),
        torch.frombuffer(starts, dtype=torch.int32),
        positions,
        (lambda texts: [kept[i] for i in texts]) if remember else tokens,
    )


def _numbers(positions: str | Sequence[int]) -> Sequence[int]:
    return [-1] if positions == "last" else [int(p) for p in positions]
