"""The columns of each forward pass that may be edited: from the last prompt token of each row on.

A forward pass does not tell what it is a part of. `Passes.begin` infers it from the tokens, the KV cache, and the
number of logits that are asked for (`logits_to_keep`):

1. New prompt: there is no cache, or an empty one. Edits begin at the last prompt token of each row.
2. Repetition: there is no cache, and each row repeats a row of the pass before with one token more, as in
   `generate(use_cache=False)`. The pass continues that prompt.
3. Continuation: one token on a filled cache, or several tokens with as many logits asked for (assisted generation,
   whose tokens are guesses of the answer). The pass continues the prompt of that cache; all its columns are edited.
4. New turn: several tokens on a filled cache with fewer logits asked for, such as the next message of a chat. Edits
   begin at the last token of the turn. The keys and values of earlier turns stay as they are in the cache.

Two cases cannot be told apart, and `start` overrides both. A prompt that is prefilled in chunks looks like a chat of as
many turns, so the last token of every chunk is edited. A prompt without a cache that repeats the prompt before it with
one token more looks like its continuation, so both of its last tokens are edited.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError, RadiantError
from radiant_lens.hooks.trace import TraceRecord
from radiant_lens.steering.editor import LayerEdit

UNKNOWN_CACHE = (
    "`steer` cannot follow a cache of type {}, so nothing can be edited at the right tokens: use `generate` with a "
    "`transformers.Cache` (or with no cache) instead of continuous batching (`generate_batch`) or paged attention."
)


class Calls:
    """State that the threads of one `steer` block share: the numbers of turns, and a refusal for the block to raise."""

    def __init__(self) -> None:
        self._lock, self._thread = threading.Lock(), threading.get_ident()
        self._refusal: RadiantError | None = None
        self.n = 0

    def next(self) -> int:
        """Number of a new prompt or turn, from 0."""
        with self._lock:
            self.n += 1
            return self.n - 1

    def refuse(self, message: str) -> RadiantError:
        """The error to raise now; one of another thread is also raised at the end of the block."""
        error = InvalidArgumentError(message)
        if threading.get_ident() != self._thread:
            self._refusal = self._refusal or error
        return error

    def raise_refusal(self, cause: BaseException | None = None) -> None:
        """Raise what another thread was refused.

        A thread of continuous batching writes its errors to a log and returns empty answers, so the caller would not
        notice them.
        """
        if self._refusal is not None:
            raise self._refusal from cause


@dataclass(frozen=True, eq=False)
class Turn:
    """The rows of one prompt, or of one later turn on the same cache.

    Attributes:
        call: number of the turn among those of all threads.
        first: column at which the edits of each row begin.
        padding: columns of padding before the first token of each row.
    """

    call: int
    first: Int[Tensor, " batch"]
    padding: Int[Tensor, " batch"]


class Passes(threading.local):
    """Follows the forward passes of one model, as a forward pre-hook; each thread has a state of its own.

    Args:
        start: column at which edits begin in each row, in place of the last prompt token.
        pad_id: id of the padding token, for batches without a mask; None: no token is padding.
        calls: shared by all threads.
        recorded: whether a trace is recorded, which needs the column of every edit.
    """

    def __init__(
        self, start: int | Sequence[int] | Tensor | None, pad_id: int | None, calls: Calls, *, recorded: bool = False
    ) -> None:
        self._start = None if start is None else _checks.columns("start", start).cpu()
        self._needs_columns = recorded or start is not None
        self._pad_id, self._calls = pad_id, calls
        # Held weakly: a trace or a block that lives on must not keep gigabytes of keys and values.
        self._turns: WeakKeyDictionary[Cache, Turn] = WeakKeyDictionary()
        self._turn: Turn | None = None
        self._previous: Tensor | None = None
        self._offset, self._last = 0, -1
        self._newest_only, self._repeats = True, False

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled: a copy of the model would keep its edits after the block."""
        raise InvalidArgumentError(
            "A model cannot be copied or pickled inside a `steer` block, because the copy would stay edited: do it "
            "outside the block. `save_pretrained` saves its weights, which `steer` does not change."
        )

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model: find out the turn that this pass belongs to, and its columns.

        Raises:
            InvalidArgumentError: a cache of an unknown class, or a `start` for another number of rows.
        """
        arguments = _by_name(module, args, kwargs)
        tokens, cache = _tokens(arguments), self._known_cache(arguments)
        n = tokens.shape[1]
        # Shortcut for almost every token of an answer. It (1) leaves the length of a static cache on its device, where
        # asking for it would stall the pass, and (2) copies no tokens to the CPU. It would fail where the column
        # matters; that is only with a trace or a `start`, which `_needs_columns` excludes.
        if n == 1 and not self._needs_columns and cache is not None and cache in self._turns:
            self._previous, self._newest_only = None, True
            return
        n_before = self._last + 1
        self._offset = 0 if cache is None else int(cache.get_seq_length())
        self._last = self._offset + n - 1
        self._turn = turn = self._find_turn(tokens, cache, arguments, n_before)
        if cache is not None:
            self._turns[cache] = turn
        self._previous = tokens.detach().cpu() if cache is None else None
        self._newest_only = self._only_newest(turn, n)

    def _known_cache(self, arguments: dict[str, Any]) -> Cache | None:
        """The KV cache of a pass, by either of the names that transformers has for it."""
        cache = arguments.get("cache")
        if cache is None:
            cache = arguments.get("past_key_values")
        if cache is not None and not isinstance(cache, Cache):
            raise self._calls.refuse(UNKNOWN_CACHE.format(type(cache).__name__))
        return cache

    def _find_turn(self, tokens: Tensor, cache: Cache | None, arguments: dict[str, Any], n_before: int) -> Turn:
        """The turn that a pass continues, or a new one; the numbers are the cases of the module's docstring."""
        n_rows, n = tokens.shape
        n_logits, mask = _n_logits(arguments), arguments.get("attention_mask")
        self._repeats = False
        earlier = self._turn if cache is None else self._turns.get(cache)
        if self._offset == 0:
            rows = self._repeated_rows(tokens) if cache is None else None
            if earlier is None or rows is None:
                return self._begin_turn(tokens, mask, n_logits, None)  # 1
            self._repeats = True
            return Turn(earlier.call, earlier.first[rows], earlier.padding[rows])  # 2
        if earlier is None and self._offset == n_before:
            # The model made this cache itself in the pass before, which had none among its arguments.
            earlier = self._turn
        if earlier is not None and len(earlier.first) != n_rows:
            # Rows were repeated or dropped: which turn a row belongs to is lost.
            earlier = None
        if earlier is not None and n <= n_logits:
            return earlier  # 3
        return self._begin_turn(tokens, mask, n_logits, earlier)  # 4

    def _repeated_rows(self, tokens: Tensor) -> Int[Tensor, " batch"] | None:
        """For each row the row of the previous pass that it repeats with one token more; None where one does not."""
        before = self._previous
        if before is None or tokens.shape != (before.shape[0], before.shape[1] + 1):
            return None
        begun = tokens[:, :-1].detach().cpu()
        if torch.equal(begun, before):
            return torch.arange(len(before))
        # Beam search reorders its rows between passes.
        # Of equal rows any will do: they have the same tokens, and so end their prompt in the same column.
        same = (begun[:, None] == before).all(-1)
        return same.int().argmax(1) if bool(same.any(1).all()) else None

    def _begin_turn(self, tokens: Tensor, mask: Any, n_logits: int, earlier: Turn | None) -> Turn:
        """A new turn, whose edits begin at `start` or at the column of its first logit that is asked for.

        Assisted generation sends guesses with the prompt and asks for the logits from the last prompt token on, so the
        first of `n_logits` is that of the last prompt token.
        """
        real = self._real_columns(tokens, mask)
        columns = torch.arange(real.shape[1])
        first = torch.where(real, columns, -1).amax(1) - (n_logits - 1) if self._start is None else self._starts(tokens)
        # The first turn knows its padding best: the mask of a later one may cover the new tokens alone.
        padding = torch.where(real, columns, len(columns)).amin(1) if earlier is None else earlier.padding
        return Turn(self._calls.next(), first, padding)

    def _real_columns(self, tokens: Tensor, mask: Any) -> Bool[Tensor, "batch column"]:
        """False at padding, from the first column in the cache to the last of this pass."""
        n_rows, n = tokens.shape
        real = _unmasked(mask, n_rows, self._offset + n)
        if real is None and n_rows > 1 and self._pad_id is not None:
            # A bridge passes no mask with right padding. Only trailing tokens count as padding, since the padding token
            # often is the end-of-text token, which may be part of a text.
            real = tokens.detach().cpu().ne(self._pad_id).flip(1).long().cumsum(1).flip(1) > 0
        elif real is None:
            real = torch.ones(n_rows, n, dtype=torch.bool)
        # A mask of the new tokens alone says nothing of those in the cache.
        cached = real.new_ones(n_rows, self._offset + n - real.shape[1])
        return torch.cat([cached, real], dim=1)

    def _starts(self, tokens: Tensor) -> Int[Tensor, " batch"]:
        assert self._start is not None
        if self._start.ndim == 1 and len(self._start) != len(tokens):
            raise InvalidArgumentError(
                f"`start` needs one position for each of the {len(tokens)} rows; got {len(self._start)}."
            )
        return self._start.expand(len(tokens))

    def _only_newest(self, turn: Turn, n: int) -> bool:
        """True if the last column of the pass is edited in every row, and no other."""
        if n == 1 and self._start is None:
            # Also where `first` lies further on: the cache may have been cropped since.
            return True
        earliest, latest = int(turn.first.min()), int(turn.first.max())
        return (n == 1 and latest <= self._last) or earliest == latest == self._last

    def window(self, z: Tensor) -> Bool[Tensor, "batch pos"] | None:
        """Mask of the columns that may be edited; None for the newest alone."""
        if self._newest_only or self._turn is None:
            return None
        columns = self._offset + torch.arange(z.shape[1])
        return (columns >= self._turn.first[:, None]).to(z.device)

    def record(self, edit: LayerEdit, mask: Tensor | None) -> TraceRecord:
        """The edit with its place in the sequence.

        A repetition computes the earlier columns again; they are recorded already and left out.
        """
        assert self._turn is not None
        n_rows, n = edit.gated.shape[:2]
        columns = torch.arange(self._last + 1 - n, self._last + 1)
        shown = torch.ones(n_rows, n, dtype=torch.bool) if mask is None else mask.cpu().clone()
        if self._repeats:
            shown[:, :-1] = False
        on_cpu = edit._replace(**{k: v.detach().cpu() for k, v in edit._asdict().items() if isinstance(v, Tensor)})
        return TraceRecord(self._turn.call, on_cpu, columns, shown, self._turn.padding)


def _by_name(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a pass by their names."""
    # `inspect` is slow for something that runs at every token; the first positional argument is always the tokens.
    if len(args) < 2:
        return {"input_ids": args[0], **kwargs} if args else kwargs
    return {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}


def _tokens(arguments: dict[str, Any]) -> Tensor:
    """Tokens of a pass, or in their place one coordinate of the embeddings, which tells texts apart as well."""
    tokens = arguments.get("input_ids")
    return arguments["inputs_embeds"][..., 0] if tokens is None else tokens


def _n_logits(arguments: dict[str, Any]) -> int:
    """Number of last logits that a pass is asked for; 1 where all are (0), or where they are chosen one by one."""
    n_logits = arguments.get("logits_to_keep")
    return n_logits if isinstance(n_logits, int) and n_logits > 0 else 1


def _unmasked(mask: Any, n_rows: int, length: int) -> Bool[Tensor, "batch column"] | None:
    """Columns that are no padding, from any mask that transformers passes; None without a mask."""
    if isinstance(mask, dict):
        # There is one mask for each kind of layer; that of a sliding window hides more than padding.
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[:, :length].detach().cpu().bool()
    # `batch head query key`: the last query sees every key but padding. A float mask is 0 where it lets through.
    visible = mask[:, 0, -1, :length].detach().cpu()
    return (visible if visible.dtype == torch.bool else visible == 0).expand(n_rows, visible.shape[-1])
