"""`collect`: from labelled texts to the activations of every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.capture.examples import POSITIONS as POSITIONS
from radiant_lens.capture.examples import Examples, check_arguments, read_examples
from radiant_lens.capture.run import Run
from radiant_lens.capture.store import CacheStore, rows_of
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.distributed import Rank, this_rank
from radiant_lens.errors import InvalidArgumentError, RankError
from radiant_lens.models.identity import require_bridge, require_fitting
from radiant_lens.models.tokens import pass_tokens
from radiant_lens.models.user_hooks import UserHooks
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
    check_arguments(data, positions)
    max_tokens = pass_tokens(model, max_tokens)
    if store is not None and fwd_hooks:
        raise InvalidArgumentError(
            "`store` cannot be used with `fwd_hooks`: functions cannot be compared when resuming."
        )
    hooks = UserHooks(model, fwd_hooks)
    if steering is not None:
        require_fitting(steering, model)
    examples = read_examples(model, data, positions, layers, on_long)
    run = Run(model, examples.texts, examples.layers, max_tokens, steering, tuple(hooks.pairs))
    if store is None:
        z = run.in_memory(progress)
        hooks.require_runs()
        columns = {name: torch.cat(list(chunks())) for name, chunks in examples.columns.items()}
        return HeadCache(z=z, **columns, **examples.fields)
    return _collect_to_store(store, replace(run, rows=rows_of(store)), examples, progress)


def _collect_to_store(store: str | Path, run: Run, examples: Examples, progress: bool) -> HeadCache:
    open_store = _open_store(store, run, examples)
    complete = open_store.complete
    run.into(open_store, examples.fields, progress, this_rank())
    return stored_cache(open_store, examples, complete=complete)


def stored_cache(store: CacheStore, examples: Examples, *, complete: bool) -> HeadCache:
    """The head cache of a complete store; `complete` if it was complete before this run, which read `examples`."""
    fields = dict(examples.fields)
    if complete:
        # Another run completed it, perhaps with other versions of packages: its provenance counts.
        fields["meta"] = HeadCache.load(store.path).meta
    # Texts are the caller's own, not read from the store: a second copy of all of them would stay in memory.
    return HeadCache(**store.tensors(), **fields)


def _open_store(store: str | Path, run: Run, examples: Examples) -> CacheStore:
    rank, plan = this_rank(), examples.plan(run.settings)
    # The first rank lays the store out, and the others open it after that: two ranks that lay it out at once would
    # each replace the other's folder.
    if rank.number > 0:
        rank.wait()
        _require_shared(store, rank)
    open_store = CacheStore(store, plan, run.shape, run.dtype, examples.columns)
    if rank.number == 0:
        rank.wait()
    return open_store


def _require_shared(store: str | Path, rank: Rank) -> None:
    if not Path(store).exists():
        raise RankError(
            f"Rank {rank.number} of {rank.n} does not see the store {str(store)!r} that rank 0 has begun: it must be "
            "in a folder that all machines share."
        )
