"""Passes over texts with answers, in which answers to the same prompt share the prompt's tokens.

A question has several answers to compare. One row holds its prompt once, then all answers one after the other:

    Q: ... A:   answer 1   answer 2   answer 3

Each answer sees the prompt and itself, by an attention mask of its own, and its positions go on from the prompt's. So
the model computes what it computes for each text alone, at a third of the tokens where prompts are longer than answers.
Edits begin at the last prompt token, which all answers share, and go on through the row. Attention compares each token
of a row with each other, so a row ends where more answers would cost more than they save (`RowLimit`).

The mask and positions could fail in a model that makes its own. `shares_prompts` compares a shared row with separate
ones, once for each model, and models that differ get a row for each text. So do texts while hooks of others act: a hook
that reads positions, such as one at `z[:, -1]`, means those of a text.

Logits are computed at the positions that predict an answer alone: over a vocabulary of 262,144 they cost more than all
layers. `selects_places` tries that once for each model, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from radiant_lens.models.identity import plain_model
from radiant_lens.models.predictions import Predictions, token_kl
from radiant_lens.models.tokens import AnswerRow, batch_rows, ordinary_tokens, pad_rows, pad_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class AnswerPass(NamedTuple):
    """One batch of rows, with the place of every prediction of an answer's token.

    Attributes:
        tokens: right-padded.
        mask: False at padding.
        starts: column at which edits begin in each row: that of the last prompt token.
        position_ids: None where columns are positions.
        attention: True where a query (first) sees a key; None for the usual mask.
        texts: number of the text that each prediction belongs to.
        rows, columns: position that makes each prediction.
        targets: token to be predicted.
        selects: whether logits are computed only where a prediction is made; else everywhere.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    starts: Int[Tensor, " batch"]
    position_ids: Int[Tensor, "batch pos"] | None
    attention: Bool[Tensor, "batch pos pos"] | None
    texts: Int[Tensor, " predicted"]
    rows: Int[Tensor, " predicted"]
    columns: Int[Tensor, " predicted"]
    targets: Int[Tensor, " predicted"]
    selects: bool = False

    @property
    def places(self) -> tuple[Int[Tensor, "place axis"], Int[Tensor, " predicted"]]:
        """Row and column of every place that makes predictions, once each, and each prediction's number of its own."""
        return torch.stack((self.rows, self.columns), dim=1).unique(dim=0, return_inverse=True)

    @property
    def edited(self) -> Bool[Tensor, "batch pos"]:
        """Positions from `starts` to the last token."""
        return (torch.arange(self.tokens.shape[1]) >= self.starts[:, None]) & self.mask


class PackedRow(NamedTuple):
    """A prompt's tokens with the answers that follow it: number of each text, and its tokens after the prompt."""

    prompt: list[int]
    texts: list[int]
    answers: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.prompt) + sum(map(len, self.answers))


def answer_passes(
    model: TransformerBridge,
    rows: Sequence[AnswerRow],
    *,
    max_tokens: int,
    together: Sequence[int] | None = None,
    share: bool = True,
) -> Iterator[AnswerPass]:
    """Yield passes of at most `max_tokens` tokens, padding included, or of what cannot be divided.

    That is a row, and all rows of one number in `together`.

    Args:
        model: from `load_model`.
        rows: tokenized texts.
        max_tokens: in one pass.
        together: a number for each text; texts of one number share a pass. None: any text may go anywhere.
        share: let answers share their prompt, and leave out logits that predict no answer, where the model and the
            hooks that act on it allow.
    """
    selects = share and not _is_hooked(model) and selects_places(model)
    packed = pack_rows(model, rows, max_tokens=max_tokens, together=together, share=share)
    clusters = _clusters(packed, together)
    # A cluster takes as many rows as it has, each of the length of its longest.
    lengths = torch.tensor([len(cluster) * max(row.length for row in cluster) for cluster in clusters])
    for batch in batch_rows(lengths, max_tokens=max_tokens):
        whole = make_pass([row for i in batch.tolist() for row in clusters[i]], pad_token(model))
        yield whole._replace(selects=selects)


def pack_rows(
    model: TransformerBridge,
    rows: Sequence[AnswerRow],
    *,
    max_tokens: int,
    together: Sequence[int] | None = None,
    share: bool = True,
) -> list[PackedRow]:
    """Join texts with the same prompt into rows; the arguments are those of `answer_passes`.

    A row is as long as `row_limit` allows. Texts of different numbers in `together` share no row, even if their prompts
    are the same.
    """
    prompts = {tuple(row.ids[: row.start + 1]) for row in rows}
    if not share or len(prompts) == len(rows) or not may_share(model, max(len(row.ids) for row in rows)):
        return separate_rows(rows)
    return join_rows(rows, row_limit(model, max_tokens), together)


class RowLimit(NamedTuple):
    """Limit for the length of a row of several answers.

    A row of L tokens costs about L + L^2 / width: all but attention grows with the tokens, attention with their pairs.
    Of rows with a prompt of n tokens and m answers of a tokens each, an answer costs least where
    m a = sqrt(n (n + width)). Texts that have but a first token in common are best left alone.

    Attributes:
        most: tokens that fit a pass and the context.
        width: tokens of a row at which attention costs as much as all else; None: only `most` counts.
    """

    most: int
    width: int | None

    def tokens(self, n_prompt: int) -> int:
        """Tokens that a row with a prompt of this length has at most."""
        if self.width is None:
            return self.most
        return min(self.most, n_prompt + math.isqrt(n_prompt * (n_prompt + self.width)))


def row_limit(model: TransformerBridge, max_tokens: int) -> RowLimit:
    """Return the limit for rows of passes of at most `max_tokens` tokens.

    The width is `d_model`, a rule of thumb: the cost of attention grows with `d_model`, that of the rest with its
    square. Measured on one core with TransformerLens' attention, SmolLM2 (`d_model` 576) has 340 in bfloat16 and 630 in
    float32, the embedded model (192) has 1,000. Near the best length the cost hardly depends on it.
    """
    return RowLimit(min(max_tokens, model.cfg.n_ctx or max_tokens), model.cfg.d_model)


def separate_rows(rows: Sequence[AnswerRow]) -> list[PackedRow]:
    """A row for each text."""
    return [joined_row(rows, [i]) for i in range(len(rows))]


def joined_row(rows: Sequence[AnswerRow], members: list[int]) -> PackedRow:
    """The row of some texts with the same prompt, by their numbers."""
    first = rows[members[0]]
    prompt = first.ids[: first.start + 1]
    return PackedRow(prompt, members, [rows[i].ids[len(prompt) :] for i in members])


def join_rows(rows: Sequence[AnswerRow], limit: RowLimit, together: Sequence[int] | None = None) -> list[PackedRow]:
    """Texts with the same prompt (and number in `together`) in rows within the limit, or of one text."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        number = () if together is None else (together[i],)
        by_prompt.setdefault((*number, *row.ids[: row.start + 1]), []).append(i)
    packed: list[PackedRow] = []
    for members in by_prompt.values():
        n_prompt = rows[members[0]].start + 1
        for part in fill_rows(n_prompt, [len(rows[i].ids) - n_prompt for i in members], limit):
            packed.append(joined_row(rows, [members[j] for j in part]))
    return packed


def fill_rows(n_prompt: int, lengths: Sequence[int], limit: RowLimit) -> list[list[int]]:
    """Divide answers of these lengths, in their order, into rows within the limit, each with their prompt."""
    room = limit.tokens(n_prompt) - n_prompt
    parts = _fill(lengths, room)
    if limit.width is None or len(parts) == 1:
        return parts
    # As many rows of one length: a short last one would be padded. A row is closed when the next answer does not fit,
    # so each of them has at least the mean, and no more rows are needed.
    return _fill(lengths, min(room, -(-sum(lengths) // len(parts)) + max(lengths) - 1))


def _fill(lengths: Sequence[int], room: int) -> list[list[int]]:
    parts: list[list[int]] = []
    free = 0
    for i, length in enumerate(lengths):
        if not parts or length > free:
            parts.append([])
            free = room
        parts[-1].append(i)
        free -= length
    return parts


def make_pass(packed: Sequence[PackedRow], pad_id: int) -> AnswerPass:
    """Pad rows to one length, and list their predictions."""
    tokens, mask = pad_rows([row.prompt + [t for a in row.answers for t in a] for row in packed], pad_id)
    texts, rows, columns, targets = [], [], [], []
    shared = any(len(row.answers) > 1 for row in packed)
    segments, positions = torch.zeros((2, *tokens.shape), dtype=torch.long)
    positions[:] = torch.arange(tokens.shape[1])
    for r, row in enumerate(packed):
        n, column = len(row.prompt), len(row.prompt)
        for s, (text, answer) in enumerate(zip(row.texts, row.answers), start=1):
            end = column + len(answer)
            segments[r, column:end] = s
            positions[r, column:end] = torch.arange(n, n + len(answer))
            # The last prompt token predicts the first token of every answer.
            columns += [n - 1, *range(column, end - 1)][: len(answer)]
            targets += answer
            texts += [text] * len(answer)
            rows += [r] * len(answer)
            column = end
        # Padding reads the prompt and is read by nobody: a query that sees no key would be NaN.
        segments[r, column:] = -1
    attention = None
    if shared:
        own = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        attention = own.tril() & (segments != -1)[:, None, :]
    return AnswerPass(
        tokens,
        mask,
        torch.tensor([len(row.prompt) - 1 for row in packed]),
        positions if shared else None,
        attention,
        torch.tensor(texts, dtype=torch.long),
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(columns, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
    )


def forward(model: TransformerBridge, batch: AnswerPass) -> Float[Tensor, "batch pos vocab"]:
    """Run a pass; returns the logits of all positions. `predict` computes those that predict answers alone."""
    device = model.cfg.device
    if batch.attention is None:
        return model(batch.tokens.to(device), attention_mask=batch.mask.long().to(device))
    assert batch.position_ids is not None
    # Added to the scores, since eager attention knows no other mask of this shape.
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    hidden = torch.zeros(batch.attention.shape, dtype=dtype).masked_fill(~batch.attention, torch.finfo(dtype).min)
    return model(
        batch.tokens.to(device),
        attention_mask=hidden[:, None].to(device),
        position_ids=batch.position_ids.to(device),
    )


def predict(model: TransformerBridge, batch: AnswerPass) -> Predictions:
    """Run a pass; returns what it predicts at the positions that predict the answers' tokens."""
    places, place_of = batch.places
    if batch.selects:
        with _logits_at(model, places):
            (logits,) = forward(model, batch)
    else:
        logits = forward(model, batch)[tuple(places.T)]
    return Predictions(logits, place_of)


@contextmanager
def _logits_at(model: TransformerBridge, places: Int[Tensor, "place axis"]) -> Generator[None]:
    """Let the model compute logits at some rows and columns alone, as one row of them, in the passes of this thread."""
    unembedding = plain_model(model).get_output_embeddings()
    assert unembedding is not None
    thread = threading.get_ident()

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if threading.get_ident() != thread:
            return None
        hidden, *others = inputs
        return hidden[tuple(places.T)][None], *others

    handle = unembedding.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


_SHARES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_SELECTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def shares_prompts(model: TransformerBridge) -> bool:
    """True if a row with a shared prompt gives what separate rows give; tried once for each model."""
    if model not in _SHARES:
        _SHARES[model] = _compare_rows(model)
    return _SHARES[model]


def _compare_rows(model: TransformerBridge) -> bool:
    tokens = ordinary_tokens(model, 14)
    rows = [AnswerRow(tokens[:5] + answer, 4) for answer in (tokens[5:8], tokens[8:10], tokens[10:])]
    passes = [make_pass(packed, pad_token(model)) for packed in ([joined_row(rows, [0, 1, 2])], separate_rows(rows))]
    try:
        with torch.no_grad():
            shared, alone = (predict(model, p) for p in passes)
    # Any error means the same here: this model takes no mask or no positions of this kind.
    except Exception:
        return False
    # In nats; rounding in bfloat16 gives some 1e-4, an answer that sees another one or sits elsewhere far more.
    kl = token_kl(alone.log_probs(), shared.log_probs()).nan_to_num(nan=torch.inf)
    return bool(kl.abs().max() < 0.01)


def selects_places(model: TransformerBridge) -> bool:
    """True if the model can leave logits out; tried once for each model."""
    if model not in _SELECTS:
        _SELECTS[model] = _compare_places(model)
    return _SELECTS[model]


def _compare_places(model: TransformerBridge) -> bool:
    if plain_model(model).get_output_embeddings() is None:
        return False
    tokens = torch.tensor(ordinary_tokens(model, 12), device=model.cfg.device).view(2, 6)
    places = torch.tensor([[0, 1], [0, 4], [1, 2]])
    try:
        with torch.no_grad():
            every = model(tokens)[tuple(places.T)]
            with _logits_at(model, places):
                (some,) = model(tokens)
    # As above: whatever the error, logits of all columns are right.
    except Exception:
        return False
    return some.shape == every.shape and torch.allclose(every.float(), some.float(), rtol=1e-2, atol=1e-2)


def may_share(model: TransformerBridge, longest: int) -> bool:
    """True if texts of at most `longest` tokens may share rows in this model as it is now."""
    return not _is_hooked(model) and _fits_window(model, longest) and shares_prompts(model)


def _is_hooked(model: TransformerBridge) -> bool:
    return any(point.fwd_hooks for point in model.hook_dict.values())


def _fits_window(model: TransformerBridge, longest: int) -> bool:
    """False where a text is longer than the model's sliding window, which a mask given by us would replace."""
    config = getattr(model.original_model, "config", None)
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_window")]
    limit = min((w for w in windows if isinstance(w, int) and w > 0), default=None)
    return limit is None or longest <= limit


def _clusters(packed: Sequence[PackedRow], together: Sequence[int] | None) -> list[list[PackedRow]]:
    """Rows that must share a pass."""
    if together is None:
        return [[row] for row in packed]
    clusters: dict[int, list[PackedRow]] = {}
    for row in packed:
        clusters.setdefault(together[row.texts[0]], []).append(row)
    return list(clusters.values())
