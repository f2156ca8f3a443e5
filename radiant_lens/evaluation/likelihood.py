"""Effect of a steering on given text: KL to the unsteered model, cross entropy, share of tokens edited."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens._typing import HookFunction
from radiant_lens.datasets.records import Statement
from radiant_lens.distributed import shared
from radiant_lens.evaluation.generation import are_numbers, require_numbers
from radiant_lens.hooks._steer import steer
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.tokens import AnswerRow, answer_batches, answer_rows, pad_token, pass_tokens
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class ScoredText(NamedTuple):
    """Sums over the answer's tokens of each statement. KL and log-probability in nats.

    `n_edited` counts tokens at which some head is edited, `n_edits` every edited head at every token; `displacement`
    is the sum, over the latter, of the Euclidean length of the vector that is added to the head's activation.
    """

    log_prob: Float[Tensor, " statement"]
    kl: Float[Tensor, " statement"]
    n_edited: Float[Tensor, " statement"]
    n_tokens: Float[Tensor, " statement"]
    displacement: Float[Tensor, " statement"]
    n_edits: Float[Tensor, " statement"]


def score_statements(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering | None = None,
    *,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
    compare: bool = True,
    max_tokens: int | None = None,
) -> ScoredText:
    """Teacher-force statements; edits begin at the token before the answer, as in generation.

    Ranks share the statements.

    Args:
        model: from `load_model`.
        statements: texts with the index at which their answer starts.
        steering: None for the unsteered model.
        fwd_hooks: your own hooks, active together with the steering, and not in the unsteered model.
        compare: also run the unsteered model, for the KL (unsteered || steered), and count edits; else both are 0.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.

    Raises:
        RadiantError: logits that are not numbers.
    """
    budget = pass_tokens(model, max_tokens)
    rows = list(answer_rows(model, statements))
    sums = shared(rows, lambda mine: _sums(model, mine, steering, fwd_hooks, compare, budget).T.tolist())
    return ScoredText(*torch.tensor(sums, dtype=torch.float64).reshape(-1, len(ScoredText._fields)).T)


def _sums(
    model: TransformerBridge,
    rows: Sequence[AnswerRow],
    steering: Steering | None,
    fwd_hooks: Sequence[tuple[str, HookFunction]],
    compare: bool,
    max_tokens: int,
) -> Float[Tensor, "field statement"]:
    """The fields of `ScoredText`."""
    sums = torch.zeros((len(ScoredText._fields), len(rows)), dtype=torch.float64)
    for batch in answer_batches(rows, pad_token(model), max_tokens=max_tokens):
        starts = batch.starts
        with model.hooks(fwd_hooks=list(fwd_hooks)):
            steered, trace = _log_probs(model, batch.tokens, batch.mask, starts, steering)
        target = batch.tokens[:, 1:]
        # A position predicts the next token, so the last one of a row scores nothing.
        answer = batch.edited[:, :-1] & batch.mask[:, 1:]
        # `where`, not `* answer`: a padding token may have log-probability -inf, and -inf * 0 is NaN.
        scored = steered.gather(2, target[:, :, None])[..., 0].where(answer, 0)
        sums[0, batch.rows] = scored.sum(1).double()
        if (steering is not None or fwd_hooks) and compare:
            plain, _ = _log_probs(model, batch.tokens, batch.mask, starts, None)
            # A token of probability 0 adds 0 to the KL, but -inf - -inf is NaN.
            kl = (plain.exp() * (plain - steered)).masked_fill(plain.isneginf(), 0).sum(-1)
            sums[1, batch.rows] = kl.where(answer, 0).sum(1).double()
            n_edits, lengths = _edits(trace, answer)
            sums[2, batch.rows] = (n_edits > 0).sum(1).double()
            sums[4, batch.rows], sums[5, batch.rows] = lengths.sum(1), n_edits.sum(1)
        sums[3, batch.rows] = answer.sum(1).double()
    return sums


def _log_probs(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], mask: Tensor, starts: Tensor, steering: Steering | None
) -> tuple[Float[Tensor, "batch pos-1 vocab"], Trace | None]:
    """Log-probabilities of each next token (the last position has none), and the trace of the edits."""
    device = model.cfg.device
    # The public calls have checked the steering against the model; hashing the weights in every batch would be slow.
    context = (
        nullcontext() if steering is None else steer(model, steering, start=starts, trace=True, allow_mismatch=True)
    )
    with torch.no_grad(), context as trace:
        logits = model(tokens.to(device), attention_mask=mask.long().to(device))
    # Padded positions may be NaN: with a mask that hides everything, eager attention averages over nothing.
    require_numbers(are_numbers(logits) | ~mask.to(logits.device))
    return logits[:, :-1].float().log_softmax(-1).cpu(), trace


def _edits(
    trace: Trace | None, answer: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """Number of heads edited at each answer token, and the sum of their displacements' lengths."""
    n_edits, lengths = torch.zeros((2, *answer.shape), dtype=torch.float64)
    for record in trace.records if trace is not None else ():
        # The last position predicts no token of the text: its edits change nothing that is scored.
        inside = record.columns < answer.shape[1]
        # Padding is shown to the gates too; `shown` is false there.
        added = (record.edit.displacement * record.shown[..., None, None])[:, inside].double()
        n_edits[:, record.columns[inside]] += added.any(-1).sum(-1)
        lengths[:, record.columns[inside]] += added.norm(dim=-1).sum(-1)
    return n_edits * answer, lengths * answer
