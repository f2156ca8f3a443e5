"""Texts to tokens, with the characters each token came from; batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens import _checks
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.identity import require_bridge


class Encoded(NamedTuple):
    """One text as the model reads it: token ids (with BOS where the model expects one) and character ends."""

    ids: list[int]
    ends: list[int]


class TokenBatch(NamedTuple):
    """Padded rows. `texts` says which text each row is."""

    texts: list[int]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]


def encode(model: TransformerBridge, texts: Sequence[str], *, n_new: int = 0) -> list[Encoded]:
    """Tokenize texts just as `model.to_tokens` and `model.generate` do, keeping character offsets.

    Args:
        model: from `load_model`.
        texts: any number of them.
        n_new: tokens that are to be generated after each, for which the context must have room.

    Raises:
        InvalidArgumentError: no bridge, or no list of texts.
        DataError: a text that has no tokens, is no Unicode, or is longer than the model's context.
    """
    return list(encode_each(model, texts, n_new=n_new))


def encode_each(model: TransformerBridge, texts: Sequence[str], *, n_new: int = 0) -> Iterator[Encoded]:
    """`encode`, a text at a time: the offsets of many texts take more memory than the texts."""
    require_bridge(model)
    _check_texts(texts)
    limit = model.cfg.n_ctx
    for i, text in enumerate(texts):
        row = _with_bos(model, text)
        if not row.ids:
            raise DataError(f"Text {i} has no tokens: {text!r}.")
        if limit and len(row.ids) > limit:
            raise DataError(f"Text {i} has {len(row.ids)} tokens; the model's context holds {limit}: {text[:60]!r}...")
        # The last new token is never read.
        if limit and len(row.ids) + n_new - 1 > limit:
            raise DataError(
                f"Text {i} has {len(row.ids)} tokens; with {n_new} new ones that is more than the {limit} that the "
                f"model's context holds: shorten it, or lower `max_new_tokens`: {text[:60]!r}..."
            )
        yield row


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InvalidArgumentError(f"Texts must be given as a list; got the one text {texts[:60]!r}.")
    for i, text in enumerate(texts):
        _checks.instance(f"text {i}", text, str)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"Text {i} is no Unicode: {error.reason} at character {error.start}: {text[:60]!r}."
            ) from error


def _with_bos(model: TransformerBridge, text: str) -> Encoded:
    tokenizer: Any = model.tokenizer
    config = model.cfg
    ids, ends = _plain(tokenizer, text)
    if getattr(config, "tokenizer_appends_eos", False) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids, ends = ids[:-1], ends[:-1]
    bos = tokenizer.bos_token_id
    wanted = getattr(config, "default_prepend_bos", True)
    given = bool(ids) and ids[0] == bos and ends[0] == 0
    if bos is not None and wanted and not given:
        return Encoded([bos, *ids], [0, *ends])
    return Encoded(ids[1:], ends[1:]) if given and not wanted else Encoded(ids, ends)


def _plain(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    if tokenizer.is_fast:
        found = tokenizer(text, return_offsets_mapping=True)
        return list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
    ids = list(tokenizer(text)["input_ids"])
    # Slow tokenizers know no offsets: a token ends where the decoded text up to it does.
    return ids, [len(tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))]


def answer_positions(encoded: Encoded, answer_start: int) -> range:
    """Positions from the token that predicts the answer's first token to the answer's last token."""
    first = next((i for i, end in enumerate(encoded.ends) if end > answer_start), len(encoded.ids) - 1)
    return range(max(first - 1, 0), len(encoded.ids))


def batch_rows(lengths: Int[Tensor, " row"], *, max_tokens: int) -> list[Int[Tensor, " _"]]:
    """Which rows of these lengths go through the model together.

    At most `max_tokens` tokens, padding included, but one row at least; longest first, and rows of like length stand
    together, so that little is padded.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes: list[int] = []
    first = 0
    while first < len(order):
        sizes.append(min(max(1, max_tokens // int(lengths[order[first]])), len(order) - first))
        first += sizes[-1]
    return list(order.split(sizes))


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Tokens and mask of rows, padded on the right to the longest of them."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.full(mask.shape, pad_id)
    tokens[mask] = torch.tensor(list(chain.from_iterable(rows)))
    return tokens, mask


def batched(rows: Sequence[Sequence[int]], pad_id: int, *, max_tokens: int) -> Iterator[TokenBatch]:
    """The padded batches of `batch_rows`."""
    for batch in batch_rows(torch.tensor([len(row) for row in rows], dtype=torch.int64), max_tokens=max_tokens):
        index = batch.tolist()
        yield TokenBatch(index, *padded([rows[i] for i in index], pad_id))


def pass_tokens(model: TransformerBridge, wanted: int | None) -> int:
    """How many tokens go through the model at once: as many as are wanted, or (None) as run fastest.

    On a CPU what a pass of more makes no longer fits the caches, and is taken from the system anew in every layer.

    Raises:
        InvalidArgumentError: no whole number of at least 1.
    """
    require_bridge(model)
    if wanted is None:
        return 1024 if torch.device(model.cfg.device or "cpu").type == "cpu" else 4096
    _checks.whole("max_tokens", wanted, 1)
    return wanted


def pad_id(model: TransformerBridge) -> int:
    """Token with which to pad; what it is does not matter where it is masked."""
    given = model.tokenizer.pad_token_id
    return 0 if given is None else given
