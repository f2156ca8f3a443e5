"""`collect`: from labelled texts to the activations of every head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from radiant_lens import _checks
from radiant_lens._errors import DataError, InvalidArgumentError
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.datasets.examples import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.models import check_hooks, require_bridge, require_fitting, signature
from radiant_lens.policies.steering import Steering
from radiant_lens.sites import hook_name
from radiant_lens.tokens import Encoded, TokenBatch, answer_positions, batched, encode, pad_id

POSITIONS = ("answer", "last", "all")


def collect(
    model: TransformerBridge,
    data: Dataset | Sequence[Statement],
    *,
    positions: str | Sequence[int] = "answer",
    max_tokens: int = 4096,
    progress: bool = False,
    steering: Steering | None = None,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
) -> HeadCache:
    """Run the model over labelled statements and keep every head's activation at the chosen positions.

    Args:
        model: from `load_model`.
        data: a data set, or statements.
        positions: "answer" (one example for each token from the one that predicts the answer's first to
            the answer's last: where edits happen), "last" (the last token, as in the paper), "all", or
            indices into each text's tokens (negative ones count from the end).
        max_tokens: tokens in one forward pass, padding included.
        progress: show a progress bar.
        steering: on meanwhile, from each answer's first edited position on. What is kept is what its own edits of
            the same layer start from.
        fwd_hooks: further hooks that are on meanwhile, before anything is kept.

    Returns:
        One example for each text and position, in the order of the texts.

    Raises:
        InvalidArgumentError: no bridge, no statements, positions of another kind, or an index beyond a text.
        UnknownNameError: a hook that the model does not have.
        ModelMismatchError: a steering for another model.
        DataError: no statements, a text beyond the context, activations that are not finite.
    """
    require_bridge(model)
    name, statements = (data.name, data.statements) if isinstance(data, Dataset) else ("statements", tuple(data))
    _check_arguments(statements, positions, max_tokens)
    check_hooks(model, fwd_hooks)
    if steering is not None:
        require_fitting(steering, model)
    encoded = encode(model, [s.text for s in statements])
    chosen = [_chosen(e, s, positions, i) for i, (e, s) in enumerate(zip(encoded, statements))]
    starts = [answer_positions(e, s.answer_start).start for e, s in zip(encoded, statements)] if steering else []

    def hooks(texts: Sequence[int]) -> list[tuple[str, HookFunction]]:
        return steering.hooks(torch.tensor([starts[i] for i in texts])) if steering else []

    z = _capture(model, encoded, chosen, max_tokens, progress, fwd_hooks, hooks)
    _checks.finite("activations", z)
    counts = torch.tensor([len(c) for c in chosen])
    text_index = torch.arange(len(chosen)).repeat_interleave(counts)
    return HeadCache(
        z=z,
        labels=torch.tensor([s.label for s in statements])[text_index],
        text_index=text_index,
        positions=torch.tensor([p for c in chosen for p in c]),
        texts=tuple(s.text for s in statements),
        group_names=tuple(s.group for s in statements),
        meta=_provenance(model, name, positions),
    )


def _check_arguments(statements: Sequence[Statement], positions: str | Sequence[int], max_tokens: int) -> None:
    if not statements:
        raise DataError("There are no statements to collect activations on.")
    for statement in statements:
        _checks.instance(
            "data", statement, Statement, hint="`collect` takes a Dataset, or Statements with their labels"
        )
    _checks.whole("max_tokens", max_tokens, 1)
    if isinstance(positions, str):
        _checks.choice("positions", positions, POSITIONS)
    elif not isinstance(positions, Sequence) or not positions or any(type(p) is not int for p in positions):
        raise InvalidArgumentError(f"`positions` must be one of {POSITIONS} or whole numbers; got {positions!r}.")


def _chosen(encoded: Encoded, statement: Statement, positions: str | Sequence[int], text: int) -> list[int]:
    n = len(encoded.ids)
    if positions == "answer":
        return list(answer_positions(encoded, statement.answer_start))
    if positions == "all":
        return list(range(n))
    wanted = [-1] if positions == "last" else [int(p) for p in positions]
    if any(not -n <= p < n for p in wanted):
        raise InvalidArgumentError(f"`positions` must lie in [-{n}, {n}) for text {text}; got {wanted}.")
    return sorted({p % n for p in wanted})


def _capture(
    model: TransformerBridge,
    encoded: Sequence[Encoded],
    chosen: Sequence[Sequence[int]],
    max_tokens: int,
    progress: bool,
    before: Sequence[tuple[str, HookFunction]],
    after: Callable[[Sequence[int]], list[tuple[str, HookFunction]]],
) -> Float[Tensor, "example layer head d_head"]:
    starts = torch.tensor([0, *(len(c) for c in chosen)]).cumsum(0)
    config = model.cfg
    z = torch.empty((int(starts[-1]), config.n_layers, config.n_heads, config.d_head), dtype=config.dtype)
    batches = list(batched([e.ids for e in encoded], pad_id(model), max_tokens=max_tokens))
    with Progress(transient=True, disable=not progress) as bar, torch.no_grad():
        for batch in bar.track(batches, description="collecting activations"):
            rows, columns, target = _targets(batch, chosen, starts)
            keep = [(hook_name(layer), _keeper(z, layer, rows, columns, target)) for layer in range(config.n_layers)]
            with model.hooks(fwd_hooks=[*before, *keep, *after(batch.texts)]):
                model(batch.tokens.to(config.device), attention_mask=batch.mask.long().to(config.device))
    return z


def _targets(batch: TokenBatch, chosen: Sequence[Sequence[int]], starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each kept position of a batch, and which example it is."""
    rows = [row for row, i in enumerate(batch.texts) for _ in chosen[i]]
    columns = [p for i in batch.texts for p in chosen[i]]
    target = [int(starts[i]) + k for i in batch.texts for k in range(len(chosen[i]))]
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(target)


def _keeper(z: Tensor, layer: int, rows: Tensor, columns: Tensor, target: Int[Tensor, " kept"]) -> HookFunction:
    def keep(value: Tensor, hook: object) -> Tensor:
        z[target, layer] = value[rows.to(value.device), columns.to(value.device)].detach().to(z)
        return value

    return keep


def _provenance(model: TransformerBridge, name: str, positions: str | Sequence[int]) -> dict:
    packages = ("radiant-lens", "transformer-lens", "transformers", "torch")
    return {
        "model": signature(model),
        "data": name,
        "positions": positions if isinstance(positions, str) else list(positions),
        "versions": {package: version(package) for package in packages},
    }
