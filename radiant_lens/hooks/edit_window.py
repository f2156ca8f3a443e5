"""Which columns of each forward pass may be edited: from the last prompt token on, whatever runs the model."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.hooks.trace import TraceRecord
from radiant_lens.steering.editor import LayerEdit


class Calls:
    """Numbers prompts from 0, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.n = 0

    def next(self) -> int:
        """The number of a new prompt."""
        with self._lock:
            self.n += 1
            return self.n - 1


class Passes(threading.local):
    """Keeps track of the passes of one model, as a forward pre-hook of it; every thread has prompts of its own.

    A pass without a cache starts a new prompt, unless it repeats the last one with one token more. A pass with a
    cache continues; where it has other rows than the last prompt, it is itself taken for the end of a prompt.
    Where a new prompt asks for several logits (`logits_to_keep`), the first of them is that of the last prompt token.

    Args:
        start: where edits begin in each row, in place of the last prompt token.
        pad_id: what stands for padding where several rows come without a mask; None: nothing does.
        calls: shared by all threads.
        recorded: every edit is, with its column.
    """

    def __init__(
        self, start: int | Sequence[int] | Tensor | None, pad_id: int | None, calls: Calls, *, recorded: bool = False
    ) -> None:
        # Else it does not matter which column the newest one is.
        self._counting = recorded or start is not None
        self._given = None if start is None else _checks.columns("start", start).cpu()
        self._pad_id = pad_id
        self._calls = calls
        self._previous: Tensor | None = None
        self._cache_id = 0
        self._call = -1
        self._offset = self._last = 0
        self._first = self._padding = torch.zeros(0, dtype=torch.long)
        self._earliest = self._latest = 0
        self._fresh = True
        self._newest_only = True

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model: see what this pass is."""
        given = _named(module, args, kwargs)
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given["inputs_embeds"][..., 0]
        n_rows, n = tokens.shape[:2]
        # The KV cache, by its new name in transformers and its old one: who runs a model may use either.
        cache = given.get("cache")
        if cache is None:
            cache = given.get("past_key_values")
        if n == 1 and id(cache) == self._cache_id and not self._counting:
            self._previous, self._newest_only = None, True
            return
        self._offset = self._length(cache, n)
        self._last = self._offset + n - 1
        if self._offset > 0:
            self._previous, self._fresh = None, True
            if n_rows != self._first.shape[0]:
                self._begin_rows(torch.full((n_rows,), self._last), torch.zeros(n_rows, dtype=torch.long))
        else:
            tokens = tokens.detach().cpu()
            self._fresh = not self._continues(tokens)
            if self._fresh:
                self._new_prompt(tokens, given.get("attention_mask"), given.get("logits_to_keep"))
            self._previous = tokens
        last = self._last
        self._newest_only = (n == 1 and self._latest <= last) or self._earliest == self._latest == last

    def _length(self, cache: Any, n: int) -> int:
        """Tokens in the cache. A static cache counts them on its device, which is asked once a prompt."""
        if cache is None:
            self._cache_id = 0
            return 0
        same, self._cache_id = id(cache) == self._cache_id, id(cache)
        length = cache.get_seq_length()
        if isinstance(length, Tensor):
            length = self._last + 1 if same and n == 1 else int(length)
        return length

    def _continues(self, tokens: Tensor) -> bool:
        before = self._previous
        if before is None or tokens.shape != (before.shape[0], before.shape[1] + 1):
            return False
        return torch.equal(tokens[:, :-1], before)

    def _new_prompt(self, tokens: Tensor, mask: Any, n_logits: Any) -> None:
        n_rows, n = tokens.shape
        real = _real(mask, n_rows, n)
        if real is None and n_rows > 1 and self._pad_id is not None:
            # A bridge passes no mask with right padding: trailing pad tokens are no prompt.
            real = tokens.ne(self._pad_id).flip(1).long().cumsum(1).flip(1) > 0
        elif real is None:
            real = torch.ones(n_rows, n, dtype=torch.bool)
        columns = torch.arange(n)
        last = torch.where(real, columns, -1).amax(1)
        if isinstance(n_logits, int) and n_logits > 1:
            # Assisted generation sends guesses with the prompt and asks for logits from the prompt's last token on.
            last = (last - (n_logits - 1)).clamp_min(0)
        if self._given is not None and self._given.ndim == 1 and len(self._given) != n_rows:
            raise InvalidArgumentError(
                f"`start` needs one position for each of the {n_rows} rows; got {len(self._given)}."
            )
        first = last if self._given is None else self._given.expand(n_rows)
        self._begin_rows(first, torch.where(real, columns, n).amin(1))

    def _begin_rows(self, first: Int[Tensor, " batch"], padding: Int[Tensor, " batch"]) -> None:
        self._call = self._calls.next()
        self._first, self._padding = first, padding
        self._earliest, self._latest = int(first.min()), int(first.max())

    def window(self, z: Tensor) -> Bool[Tensor, "batch pos"] | None:
        """Which columns may be edited; None for the newest alone."""
        if self._newest_only:
            return None
        columns = self._offset + torch.arange(z.shape[1])
        return (columns >= self._first[:, None]).to(z.device)

    def record(self, edit: LayerEdit, mask: Tensor | None) -> TraceRecord:
        """The edit with its place; columns that an earlier pass of the same sequence showed are left out."""
        n_rows, n = edit.gated.shape[:2]
        columns = torch.arange(self._last + 1 - n, self._last + 1)
        shown = torch.ones(n_rows, n, dtype=torch.bool) if mask is None else mask.cpu().clone()
        if not self._fresh:
            shown[:, :-1] = False
        on_cpu = edit._replace(**{k: v.detach().cpu() for k, v in edit._asdict().items() if isinstance(v, Tensor)})
        return TraceRecord(self._call, on_cpu, columns, shown, self._padding)


def _named(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a pass by their names."""
    if len(args) < 2:
        return {"input_ids": args[0], **kwargs} if args else kwargs
    return {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}


def _real(mask: Any, n_rows: int, n: int) -> Bool[Tensor, "batch pos"] | None:
    """Which columns of a prompt are no padding, from any mask that transformers passes; None without one."""
    if isinstance(mask, dict):
        # One for each kind of layer; a sliding window hides what is no padding.
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[:, :n].detach().cpu().bool()
    seen = mask[:, 0, -1, :n].detach().cpu()
    return (seen if seen.dtype == torch.bool else seen == 0).expand(n_rows, n)
