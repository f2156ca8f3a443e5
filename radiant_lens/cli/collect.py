"""`radiant-lens collect`: activations of every head, in one piece or shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.launch import require_one_process
from radiant_lens.cli.output import emit, shows
from radiant_lens.errors import InvalidArgumentError


def collect(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write at the end; one of the same kind is replaced.")
    ] = None,
    store: o.Store = None,
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    positions: o.Positions = "answer",
    layers: o.Layers = None,
    max_tokens: o.MaxTokens = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    part: o.Part,
    loading: o.Loading,
) -> None:
    """Save the activation of every head on labelled text.

    Example: radiant-lens collect --data my.jsonl --part test --out my-cache

    Several processes: torchrun --nproc-per-node 4 --no-python radiant-lens collect --data my.jsonl --store my-store
    """
    import radiant_lens as rl
    from radiant_lens._files import check_target

    path = store or out
    if path is None or (store and out):
        raise InvalidArgumentError("Give either --out or --store, the folder to write.")
    part.check()
    if store is None:
        require_one_process("`collect --out`", "`--store` is shared.")
        check_target(path, "head cache")
    chosen = part.of(reading.load(data, model=model), seed)
    cache = rl.collect(
        loading.load(model),
        chosen,
        positions=positions,
        layers=None if layers is None else o.numbers("layers", layers),
        max_tokens=max_tokens,
        progress=shows(as_json),
        store=store,
    )
    if store is None:
        cache.save(path)
    result = {"path": str(path), "examples": len(cache), "texts": len(cache.texts), "shape": list(cache.z.shape)}
    emit(result, as_json=as_json, shown=[cache, f"written to {path}"])
