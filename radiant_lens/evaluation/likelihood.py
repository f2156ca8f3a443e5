"""Effect of a steering on given text: KL to the unsteered model, cross entropy, share of tokens edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens._typing import HookFunction
from radiant_lens.datasets.records import Statement
from radiant_lens.distributed import shared
from radiant_lens.evaluation.generation import are_numbers, require_numbers
from radiant_lens.hooks._steer import steer
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.packing import AnswerPass, answer_passes, predict
from radiant_lens.models.predictions import Predictions
from radiant_lens.models.tokens import AnswerRow, answer_rows, pass_tokens
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


class KeptLogits:
    """Logits of the unsteered model on the same texts, for several steerings to be compared with.

    They are in the model's own precision, so nothing is lost, and in main memory. What does not fit is computed again.

    Args:
        max_bytes: memory for them.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self._free = max_bytes
        self._logits: dict[int, Tensor] = {}

    def get(self, number: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits of a pass by its number, computed if they are not kept."""
        if number in self._logits:
            return self._logits[number]
        logits = compute()
        if logits.nbytes <= self._free:
            self._free -= logits.nbytes
            self._logits[number] = logits.cpu()
        return logits


def score_statements(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering | None = None,
    *,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
    compare: bool = True,
    count_edits: bool = True,
    kept: KeptLogits | None = None,
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
        count_edits: count edits where texts are compared; else their fields are 0, which is faster.
        kept: logits of the unsteered model from earlier calls with the same statements and `max_tokens`.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.

    Raises:
        RadiantError: logits that are not numbers.
    """
    budget = pass_tokens(model, max_tokens)
    rows = list(answer_rows(model, statements))
    unsteered = KeptLogits(0) if kept is None else kept
    sums = shared(
        rows, lambda mine: _sums(model, mine, steering, fwd_hooks, compare, count_edits, unsteered, budget).T.tolist()
    )
    return ScoredText(*torch.tensor(sums, dtype=torch.float64).reshape(-1, len(ScoredText._fields)).T)


def _sums(
    model: TransformerBridge,
    rows: Sequence[AnswerRow],
    steering: Steering | None,
    fwd_hooks: Sequence[tuple[str, HookFunction]],
    compare: bool,
    count_edits: bool,
    kept: KeptLogits,
    max_tokens: int,
) -> Float[Tensor, "field statement"]:
    """The fields of `ScoredText`."""
    sums = torch.zeros((len(ScoredText._fields), len(rows)), dtype=torch.float64)
    changed = (steering is not None or len(fwd_hooks) > 0) and compare
    for number, batch in enumerate(answer_passes(model, rows, max_tokens=max_tokens, share=not fwd_hooks)):
        with model.hooks(fwd_hooks=list(fwd_hooks)):
            predictions, trace = _predict(model, batch, steering, trace=changed and count_edits)
        values = torch.zeros((len(sums), len(batch.targets)), dtype=torch.float64)
        values[0] = predictions.log_prob(batch.targets)
        values[3] = 1
        if changed:
            plain = kept.get(number, lambda: _predict(model, batch, None)[0].logits)  # noqa: B023 (called at once)
            values[1] = predictions.kl_from(plain)
            n_edits, lengths = _edits(trace, batch)
            values[2], values[4], values[5] = n_edits > 0, lengths, n_edits
        sums.index_add_(1, batch.texts, values)
    return sums


def _predict(
    model: TransformerBridge, batch: AnswerPass, steering: Steering | None, *, trace: bool = False
) -> tuple[Predictions, Trace | None]:
    """Run a pass; returns its predictions of the answers, and the trace of the edits."""
    context: AbstractContextManager[Trace | None] = nullcontext()
    if steering is not None:
        # The public calls have checked the steering against the model; hashing the weights in each batch would be slow.
        context = steer(model, steering, start=batch.starts, trace=trace, allow_mismatch=True)
    with torch.no_grad(), context as record:
        predictions = predict(model, batch)
    require_numbers(are_numbers(predictions.logits))
    return predictions, record


def _edits(trace: Trace | None, batch: AnswerPass) -> tuple[Float[Tensor, " predicted"], Float[Tensor, " predicted"]]:
    """Number of heads edited at each prediction, and the sum of their displacements' lengths."""
    n_edits, lengths = torch.zeros((2, *batch.tokens.shape), dtype=torch.float64)
    for record in trace.records if trace is not None else ():
        # Padding is shown to the gates too; `shown` is false there.
        added = (record.edit.displacement * record.shown[..., None, None]).double()
        n_edits[:, record.columns] += added.any(-1).sum(-1)
        lengths[:, record.columns] += added.norm(dim=-1).sum(-1)
    return n_edits[batch.rows, batch.columns], lengths[batch.rows, batch.columns]
