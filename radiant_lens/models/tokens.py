"""Tokens of texts, with the character at which each token ends, and padded batches of rows of similar length.

Special tokens are decided here, once for all of the package. A text gets the ids of the model's own tokenizer,
`tokenizer(text)`, or for a rendered chat those of `apply_chat_template(tokenize=True)`, which adds no special token to
the rendered text. `load_model(..., prepend_bos=True | False)` overrides the tokenizer for texts that are not chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.models.identity import require_bridge

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Text = str | Statement | Prompt
"""A text, or a record; a record states if its text is a rendered chat."""


class Encoded(NamedTuple):
    """One tokenized text: token ids, and for each token the character at which it ends."""

    ids: list[int]
    ends: list[int]


class AnswerRow(NamedTuple):
    """Tokens of a text with an answer; `start` is the position of the token that predicts the answer's first token."""

    ids: list[int]
    start: int


class AnswerBatch(NamedTuple):
    """Padded rows with answers: `rows` are their numbers among all rows, `starts` the positions where edits begin."""

    rows: list[int]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    starts: Int[Tensor, " batch"]

    @property
    def edited(self) -> Bool[Tensor, "batch pos"]:
        """Positions from `starts` to the last token."""
        return (torch.arange(self.tokens.shape[1]) >= self.starts[:, None]) & self.mask


def encode(model: TransformerBridge, texts: Sequence[Text], *, n_new: int = 0) -> list[Encoded]:
    """Tokenize texts as the model's own tokenizer does, keeping character offsets.

    Args:
        model: from `load_model`.
        texts: any number of texts or records.
        n_new: tokens to be generated after each text; the context must have room for them.

    Raises:
        InvalidArgumentError: not a bridge, or not a list of texts.
        DataError: a text that has no tokens, is not valid Unicode, or is longer than the model's context.
    """
    return list(encode_each(model, texts, n_new=n_new))


def encode_each(model: TransformerBridge, texts: Sequence[Text], *, n_new: int = 0) -> Iterator[Encoded]:
    """Yield the results of `encode` one by one: the offsets of many texts take more memory than the texts."""
    require_bridge(model)
    check_texts(texts)
    limit = model.cfg.n_ctx
    for i, record in enumerate(texts):
        text, rendered = (record, False) if isinstance(record, str) else (record.text, record.rendered)
        row = encode_text(model, text, rendered)
        if not row.ids:
            raise DataError(f"Text {i} has no tokens: {text!r}.")
        if limit and len(row.ids) > limit:
            raise DataError(f"Text {i} has {len(row.ids)} tokens; the model's context holds {limit}: {text[:60]!r}...")
        # The model does not read the last new token.
        if limit and len(row.ids) + n_new - 1 > limit:
            raise DataError(
                f"Text {i} has {len(row.ids)} tokens; with {n_new} new ones that is more than the {limit} that the "
                f"model's context holds: shorten it, or lower `max_new_tokens`: {text[:60]!r}..."
            )
        yield row


def check_texts(texts: Sequence[Text]) -> None:
    """Check that texts are a list of texts or records, all of them valid Unicode.

    Raises:
        InvalidArgumentError: something else.
        DataError: a text that is not valid Unicode.
    """
    if isinstance(texts, str):
        raise InvalidArgumentError(f"Texts must be given as a list; got the single text {texts[:60]!r}.")
    for i, record in enumerate(texts):
        _checks.instance(f"text {i}", record, (str, Statement, Prompt))
        text = record if isinstance(record, str) else record.text
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"Text {i} is not valid Unicode: {error.reason} at character {error.start}: {text[:60]!r}."
            ) from error


def encode_text(model: TransformerBridge, text: str, rendered: bool) -> Encoded:
    """Tokenize one text, however long; `rendered` for a chat that holds its special tokens already."""
    tokenizer: Any = model.tokenizer
    bos: int | None = tokenizer.bos_token_id
    if rendered:
        return _tokenize(tokenizer, text, add_special_tokens=False)
    ids, ends = _tokenize(tokenizer, text, add_special_tokens=True)
    if getattr(model.cfg, "tokenizer_appends_eos", False) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        # The text goes on, with an answer or new tokens: an end-of-text token would separate them from it.
        ids, ends = ids[:-1], ends[:-1]
    # A BOS token that the tokenizer added ends at character 0; one that is written in the text ends later, and stays.
    has_bos = bos is not None and bool(ids) and ids[0] == bos and ends[0] == 0
    if has_bos and not model.cfg.default_prepend_bos:
        return Encoded(ids[1:], ends[1:])
    if bos is not None and model.cfg.default_prepend_bos and not has_bos:
        return Encoded([bos, *ids], [0, *ends])
    return Encoded(ids, ends)


def _tokenize(tokenizer: Any, text: str, *, add_special_tokens: bool) -> Encoded:
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        return Encoded(list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]])
    ids = list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    # Slow tokenizers have no offsets. A token ends where the text that is decoded up to it ends.
    return Encoded(ids, [len(tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))])


def answer_rows(model: TransformerBridge, statements: Sequence[Statement]) -> Iterator[AnswerRow]:
    """Tokenize statements, with the positions at which their answers are predicted.

    Raises:
        DataError: as `encode`.
    """
    for encoded, statement in zip(encode_each(model, statements), statements):
        yield AnswerRow(encoded.ids, answer_start_position(encoded, statement.answer_start))


def answer_start_position(encoded: Encoded, answer_start: int) -> int:
    """Return the position of the token that predicts the answer's first token, where edits begin."""
    first = next((i for i, end in enumerate(encoded.ends) if end > answer_start), len(encoded.ids) - 1)
    return max(first - 1, 0)


def batch_rows(lengths: Int[Tensor, " row"], *, max_tokens: int) -> list[Int[Tensor, " _"]]:
    """Group rows of these lengths into batches of at most `max_tokens` tokens, padding included, or of one row.

    Rows of similar length share a batch, so that little is padded. The longest come first: a batch that is too large
    for the memory fails at once, not after hours.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes: list[int] = []
    first = 0
    while first < len(order):
        sizes.append(min(max(1, max_tokens // int(lengths[order[first]])), len(order) - first))
        first += sizes[-1]
    return list(order.split(sizes))


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, *, side: str = "right"
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Pad rows on one side to the length of the longest; return tokens and mask."""
    lengths = torch.tensor([len(row) for row in rows])
    columns, n = torch.arange(int(lengths.max())), int(lengths.max())
    mask = columns < lengths[:, None] if side == "right" else columns >= n - lengths[:, None]
    tokens = torch.full(mask.shape, pad_id)
    tokens[mask] = torch.tensor(list(chain.from_iterable(rows)))
    return tokens, mask


def answer_batches(rows: Sequence[AnswerRow], pad_id: int, *, max_tokens: int) -> Iterator[AnswerBatch]:
    """Yield the rows in the padded batches of `batch_rows`."""
    for batch in batch_rows(torch.tensor([len(row.ids) for row in rows], dtype=torch.int64), max_tokens=max_tokens):
        index = batch.tolist()
        starts = torch.tensor([rows[i].start for i in index])
        yield AnswerBatch(index, *pad_rows([rows[i].ids for i in index], pad_id), starts)


def pass_tokens(model: TransformerBridge, max_tokens: int | None) -> int:
    """Return the number of tokens in one forward pass: `max_tokens`, or for None a number that is fast on the device.

    On a CPU the intermediate results of larger passes exceed the caches, and their memory is requested from the system
    again in every layer.

    Raises:
        InvalidArgumentError: not a whole number of at least 1.
    """
    require_bridge(model)
    if max_tokens is None:
        return 1024 if torch.device(model.cfg.device or "cpu").type == "cpu" else 4096
    _checks.whole("max_tokens", max_tokens, 1)
    return max_tokens


def ordinary_tokens(model: TransformerBridge, n: int) -> list[int]:
    """Return `n` tokens of the model's vocabulary, spread over it, none of them special; for checks of a model."""
    tokenizer: Any = model.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(min(len(tokenizer), int(model.cfg.d_vocab))) if i not in special]
    return [ordinary[len(ordinary) * i // n] for i in range(n)]


def pad_token(model: TransformerBridge) -> int:
    """Token used as padding; its value does not matter, since it is masked."""
    token = model.tokenizer.pad_token_id
    return 0 if token is None else token
