"""`collect`: from labelled texts to the activations of every head."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.capture import run as runs
from radiant_lens.capture.run import Run
from radiant_lens.capture.store import CacheStore, Column, may_share_rows
from radiant_lens.capture.tokenized import TokenizedTexts, tokenize
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.distributed import Rank, this_rank
from radiant_lens.errors import DataError, InvalidArgumentError, RankError
from radiant_lens.models.identity import require_bridge, require_fitting, signature
from radiant_lens.models.lengths import fit_context, long_rule
from radiant_lens.models.tokens import pass_tokens
from radiant_lens.models.user_hooks import UserHooks
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

POSITIONS = ("answer", "last", "all")
# Columns are made for so many texts at once, so that their memory does not grow with the data.
_TEXTS_AT_ONCE = 4096


def collect(
    model: TransformerBridge,
    data: Dataset | Sequence[Statement],
    *,
    positions: str | Sequence[int] = "answer",
    layers: Sequence[int] | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
    steering: Steering | None = None,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
    store: str | Path | None = None,
    on_long: str | None = None,
) -> HeadCache:
    """Run the model over labelled statements and keep every head's activation at the chosen positions.

    Answers to one prompt share its tokens, where the model allows it and no hook or steering acts.

    Args:
        model: from `load_model`.
        data: a data set, or statements.
        positions: "answer" (one example for each token from the one that predicts the answer's first token to
            the answer's last token: the positions that are edited), "last" (the last token, as in the paper), "all", or
            indices into each text's tokens (negative ones count from the end).
        layers: layers to keep; layers after the last of them are not run. The axis `layer` keeps the length of the
            model: activations of other layers are zero, and `meta["layers"]` lists those that were collected.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        progress: show a progress bar.
        steering: applied during the passes, from each answer's first edited position on. Activations of a layer are
            kept before the steering edits that layer.
        fwd_hooks: further hooks, which run before activations are kept; with them the model is run to its end.
        store: folder to which activations are written during the run, shard by shard, so that memory does not grow
            with the data. The same call continues an interrupted run, and loads a finished one. Processes that
            `torchrun` or `accelerate launch` started share the shards (in a folder that all of them see); without a
            store each process collects everything.
        on_long: for texts beyond the model's context: "skip" leaves them out, "cut" ends them where the context ends
            (and leaves out those whose answer begins after it), "error" raises; None for the rule of the data set.
            `meta["too_long"]` has the counts.

    Returns:
        One example for each text and position, in the order of the texts; memory-mapped with a `store`.

    Warns (UserWarning) if texts are skipped or cut.

    Raises:
        InvalidArgumentError: not a bridge, positions of another kind, an index outside a text, an unknown layer, or a
            store together with hooks, which a later run could not compare, or a hook that never runs.
        UnknownNameError: a hook that the model does not have.
        ModelMismatchError: a steering for another model.
        DataError: no statements, all of them (or, with `on_long="error"`, one) longer than the context, activations
            that are not finite.
        ArtefactError: the store was begun with other settings, is damaged, or is something else.
        OutputError: the store cannot be written; its shards that are done stay.
        RankError: another rank has died, or does not see the store.
    """
    require_bridge(model)
    _checks.instance("data", data, (Dataset, list, tuple), hint="`load_dataset` makes a Dataset of a name or a table")
    name, statements = (data.name, data.statements) if isinstance(data, Dataset) else ("statements", tuple(data))
    _check_arguments(statements, positions)
    max_tokens = pass_tokens(model, max_tokens)
    if store is not None and fwd_hooks:
        raise InvalidArgumentError(
            "`store` cannot be used with `fwd_hooks`: functions cannot be compared when resuming."
        )
    hooks = UserHooks(model, fwd_hooks)
    kept_layers = _kept_layers(layers, model.cfg.n_layers)
    if steering is not None:
        require_fitting(steering, model)
    fitting = fit_context(model, statements, long_rule(data, on_long))
    statements = fitting.records
    fields: dict[str, Any] = {
        "texts": tuple(s.text for s in statements),
        "group_names": tuple(s.group for s in statements),
        "meta": {
            **_provenance(model, name, positions, layers),
            "too_long": {"skipped": fitting.n_skipped, "cut": fitting.n_cut},
        },
    }
    texts = tokenize(model, statements, positions)
    run = Run(model, texts, kept_layers, max_tokens, steering, tuple(hooks.pairs))
    columns = _columns(statements, texts)
    if store is None:
        z = run.in_memory(progress)
        hooks.require_runs()
        return HeadCache(z=z, **{name: torch.cat(list(chunks())) for name, chunks in columns.items()}, **fields)
    return _collect_to_store(store, run, columns, fields, progress)


def _collect_to_store(
    store: str | Path, run: Run, columns: Mapping[str, Column], fields: dict[str, Any], progress: bool
) -> HeadCache:
    run = replace(run, share=may_share_rows(store))
    open_store = _open_store(store, run, columns, fields)
    complete = open_store.complete
    run.into(open_store, fields, progress, this_rank())
    if complete:
        # Another run completed it, perhaps with other versions of packages: its provenance counts.
        fields["meta"] = HeadCache.load(store).meta
    # Texts are the caller's own, not read from the store: a second copy of all of them would stay in memory.
    return HeadCache(**open_store.tensors(), **fields)


def _columns(statements: Sequence[Statement], texts: TokenizedTexts) -> dict[str, Column]:
    """Label, text and position of every example."""

    def in_chunks(values: Callable[[Tensor], Tensor]) -> Column:
        return lambda: map(values, torch.arange(len(texts)).split(_TEXTS_AT_ONCE))

    def labels(chunk: Tensor) -> Tensor:
        # A label may also be True or 1.0.
        by_text = torch.tensor([statements[i].label for i in chunk.tolist()], dtype=torch.int64)
        return by_text.repeat_interleave(texts.counts[chunk])

    return {
        "labels": in_chunks(labels),
        "text_index": in_chunks(lambda chunk: chunk.repeat_interleave(texts.counts[chunk])),
        "positions": in_chunks(lambda chunk: torch.tensor([p for i in chunk.tolist() for p in texts.kept(i)])),
    }


def _open_store(store: str | Path, run: Run, columns: Mapping[str, Column], fields: dict[str, Any]) -> CacheStore:
    rank, plan = this_rank(), _plan(fields, columns, run)
    # The first rank lays the store out, and the others open it after that: two ranks that lay it out at once would
    # each replace the other's folder.
    if rank.number > 0:
        rank.wait()
        _require_shared(store, rank)
    open_store = CacheStore(store, plan, run.shape, run.model.cfg.dtype, columns)
    if rank.number == 0:
        rank.wait()
    return open_store


def _require_shared(store: str | Path, rank: Rank) -> None:
    if not Path(store).exists():
        raise RankError(
            f"Rank {rank.number} of {rank.n} does not see the store {str(store)!r} that rank 0 has begun: it must be "
            "in a folder that all machines share."
        )


def _kept_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise InvalidArgumentError(f"`layers` must name at least one layer, or be None for all; got {layers!r}.")
    for layer in layers:
        _checks.whole("layers", layer, 0, n_layers - 1)
    return tuple(sorted({int(layer) for layer in layers}))


def _check_arguments(statements: Sequence[Statement], positions: str | Sequence[int]) -> None:
    if not statements:
        raise DataError("There are no statements to collect activations on.")
    for statement in statements:
        _checks.instance(
            "data", statement, Statement, hint="`collect` takes a Dataset, or Statements with their labels"
        )
    if isinstance(positions, str):
        _checks.choice("positions", positions, POSITIONS)
    elif not isinstance(positions, Sequence) or not positions or any(type(p) is not int for p in positions):
        raise InvalidArgumentError(f"`positions` must be one of {POSITIONS} or whole numbers; got {positions!r}.")


def _provenance(
    model: TransformerBridge, name: str, positions: str | Sequence[int], layers: Sequence[int] | None
) -> dict[str, Any]:
    packages = ("radiant-lens", "transformer-lens", "transformers", "torch")
    return {
        "model": signature(model),
        "data": name,
        "positions": positions if isinstance(positions, str) else list(positions),
        **({} if layers is None else {"layers": [int(layer) for layer in layers]}),
        "versions": {package: version(package) for package in packages},
    }


def _plan(fields: dict[str, Any], columns: Mapping[str, Column], run: Run) -> dict[str, Any]:
    """Every setting on which the content of a store, or the examples of each shard, depend."""
    meta = fields["meta"]
    return {
        **{f"model {key}": value for key, value in meta["model"].items()},
        "positions": meta["positions"],
        "layers": list(run.layers),
        "max_tokens": run.max_tokens,
        "shard_bytes": runs.SHARD_BYTES,
        "data": _data_digest(fields["texts"], fields["group_names"], columns),
        "tokens": run.texts.digest,
        "rows": "shared" if run.shares else "separate",
        "steering": None if run.steering is None else _steering_digest(run.steering),
    }


def _data_digest(texts: Sequence[str], groups: Sequence[str], columns: Mapping[str, Column]) -> str:
    # Text by text: all of them as one string would be a second copy of the data.
    rows = (json.dumps(row).encode() for row in zip(texts, groups))
    return sha256(chain(rows, (chunk.numpy().data for chunks in columns.values() for chunk in chunks())))[:16]


def _steering_digest(steering: Steering) -> str:
    scores = steering.scores
    by_name = [steering.head_maps.tensors(), {} if steering.trust is None else steering.trust.tensors()]
    tensors = [t for group in by_name for t in group.values()] + [scores.weights, scores.biases, scores.thresholds]
    header = f"{steering.sites} {steering.gate}".encode()
    return sha256([header, *(t.detach().cpu().double().numpy().tobytes() for t in tensors)])[:16]
