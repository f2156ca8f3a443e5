"""`radiant-lens collect`: activations of every head, in one piece or shard by shard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.launch import require_one_process
from radiant_lens.cli.output import emit
from radiant_lens.errors import InvalidArgumentError

TRANSFORMERS = "transformers"


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
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the model: 'transformers', 'vllm' (in an environment of its own), or 'ray' (vLLM in "
            "several workers)."
        ),
    ] = TRANSFORMERS,
    workers: Annotated[int, typer.Option(help="Engines of '--engine ray'.")] = 1,
    engine_options: Annotated[
        str | None, typer.Option(metavar="JSON", help="""Arguments of vllm.LLM: '{"tensor_parallel_size": 2}'.""")
    ] = None,
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

    With vLLM: radiant-lens collect --data my.jsonl --store my-store --engine vllm
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
    kept_layers = None if layers is None else o.numbers("layers", layers)
    options = _read_engine_options(engine, workers, engine_options, store, max_tokens, loading)
    chosen = part.of(reading.load(data, model=model), seed)
    if store is not None and engine != TRANSFORMERS:
        from radiant_lens.capture import collect_with_engine

        cache = collect_with_engine(
            model,
            chosen,
            store,
            engine=engine,
            workers=workers,
            positions=positions,
            layers=kept_layers,
            dtype=loading.dtype,
            prepend_bos=loading.prepend_bos,
            options=options,
            progress=True,
        )
    else:
        cache = rl.collect(
            loading.load(model),
            chosen,
            positions=positions,
            layers=kept_layers,
            max_tokens=max_tokens,
            progress=True,
            store=store,
        )
    if store is None:
        cache.save(path)
    result = {"path": str(path), "examples": len(cache), "texts": len(cache.texts), "shape": list(cache.z.shape)}
    emit(result, as_json=as_json, shown=[cache, f"written to {path}"])


def _read_engine_options(
    engine: str, workers: int, options: str | None, store: Path | None, max_tokens: int | None, loading: o.Loading
) -> dict[str, Any]:
    """Options of an engine; refuses those that it, or the engine of the others, does not have."""
    from radiant_lens import _checks

    _checks.choice("engine", engine, (TRANSFORMERS, "vllm", "ray"))
    if workers != 1 and engine != "ray":
        raise InvalidArgumentError(f"`--workers` needs `--engine ray`; got {workers} with {engine!r}.")
    if engine == TRANSFORMERS:
        if options is not None:
            raise InvalidArgumentError(f"`--engine-options` needs `--engine vllm`; got {options!r} without it.")
        return {}
    if store is None:
        raise InvalidArgumentError(f"`--engine {engine}` writes a store: give `--store` in place of `--out`.")
    for option, value, remedy in (
        ("--max-tokens", max_tokens, "`--engine-options '{\"max_num_batched_tokens\": ...}'` limits a pass"),
        ("--device", loading.device, "vLLM takes the accelerator that it was built for"),
        ("--device-map", loading.device_map, "`--engine-options '{\"tensor_parallel_size\": ...}'` divides a model"),
    ):
        if value is not None:
            raise InvalidArgumentError(f"`{option}` does not go with `--engine {engine}`; got {value!r}: {remedy}.")
    # vLLM writes its log to the standard output, which is for the result.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    return _read_json(options)


def _read_json(options: str | None) -> dict[str, Any]:
    try:
        values = json.loads(options or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InvalidArgumentError(
            f"`--engine-options` must be a JSON object, such as '{{\"tensor_parallel_size\": 2}}'; got {options!r}."
        )
    return cast("dict[str, Any]", values)
