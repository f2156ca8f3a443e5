"""`collect_with_engine`: the activations that `collect` keeps, from passes that vLLM runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.capture._collect import stored_cache
from radiant_lens.capture.engine_run import EngineRun
from radiant_lens.capture.examples import Examples, check_arguments, read_examples
from radiant_lens.capture.ray_workers import require_ray, spread
from radiant_lens.capture.store import CacheStore
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.distributed import Rank, launched
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.loading import load_model
from radiant_lens.models.sources import find_source
from radiant_lens.serving.versions import require_vllm, vllm_version

ENGINES = ("vllm", "ray")


def collect_with_engine(
    model: str | Path,
    data: Dataset | Sequence[Statement],
    store: str | Path,
    *,
    engine: str = "vllm",
    workers: int = 1,
    positions: str | Sequence[int] = "answer",
    layers: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    prepend_bos: bool | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_long: str | None = None,
) -> HeadCache:
    """Collect what `collect` does, of the same tokens, with vLLM in place of transformers.

    The model is loaded twice, one time after the other: by `load_model` on the CPU, for its tokens and its identity,
    and by vLLM. The steering that is fitted on the activations is therefore at home on both.

    Activations differ from those of `collect` by rounding, and so a store that one engine has begun is refused by the
    other. Passes end after the last layer that is kept, but for pipeline parallelism.

    Args:
        model: as `load_model` takes it: a name, a folder, a Hub id or a .gguf file.
        data: a data set, or statements.
        store: folder to which activations are written, shard by shard. The same call continues an interrupted run, and
            loads a finished one.
        engine: "vllm", one engine in this process; or "ray", an engine in each of several workers of Ray, on the
            cluster of RAY_ADDRESS or on this machine. Model and store must be in folders that all machines share. One
            may continue a store of the other.
        workers: number of engines of "ray".
        positions: as for `collect`.
        layers: layers to keep.
        dtype: precision in which vLLM computes; None: as `load_model` chooses it on the CPU.
        prepend_bos: as for `load_model`.
        options: further arguments of `vllm.LLM`, such as `{"tensor_parallel_size": 2}`.
        progress: show a progress bar.
        on_long: as for `collect`.

    Returns:
        One example for each text and position, in the order of the texts; memory-mapped.

    Warns (UserWarning) if texts are skipped or cut.

    Raises:
        InvalidArgumentError: as `collect`; an option that the collection sets itself; processes of `torchrun`; several
            workers without Ray, or more than its cluster has room for.
        UnknownNameError: an architecture whose heads vLLM does not show.
        MissingPackageError: vLLM is not installed, or in another release; or Ray is not.
        RankError: all workers of Ray have died.
        ModelLoadError: as `load_model`.
        DataError, ArtefactError, OutputError: as `collect`.
    """
    _checks.choice("engine", engine, ENGINES)
    _checks.instance("model", model, (str, Path), hint="vLLM loads a model by its name or folder")
    check_arguments(data, positions)
    _check_options(options or {})
    _check_workers(engine, workers)
    _require_one_process()
    require_vllm()
    run, examples = _read(str(model), data, positions, layers, dtype, prepend_bos, options or {}, on_long)
    # Workers may have another working directory.
    open_store = CacheStore(Path(store).absolute(), examples.plan(run.settings), run.shape, run.dtype, examples.columns)
    complete = open_store.complete
    if engine == "ray":
        spread(run, open_store, workers, progress=progress)
    try:
        # With Ray, every shard is there, and this completes the store.
        run.into(open_store, examples.fields, progress, Rank(0, 1))
    finally:
        run.close()
    return stored_cache(open_store, examples, complete=complete)


def _read(
    model: str,
    data: Dataset | Sequence[Statement],
    positions: str | Sequence[int],
    layers: Sequence[int] | None,
    dtype: str | torch.dtype | None,
    prepend_bos: bool | None,
    options: Mapping[str, Any],
    on_long: str | None,
) -> tuple[EngineRun, Examples]:
    """Tokens and identity of the model; its weights are freed with the bridge, before vLLM loads them."""
    bridge = load_model(model, device="cpu", dtype=dtype, prepend_bos=prepend_bos)
    examples = read_examples(bridge, data, positions, layers, on_long)
    examples.fields["meta"]["versions"]["vllm"] = vllm_version()
    config = bridge.cfg
    heads = (config.n_layers, config.n_heads, config.d_head)
    path = find_source(model).path
    path = str(Path(path).absolute()) if Path(path).is_dir() else path
    return EngineRun(path, heads, config.dtype, examples.texts, examples.layers, options), examples


_FIXED = ("dtype", "enforce_eager", "model", "seed", "worker_extension_cls")


def _check_options(options: Mapping[str, Any]) -> None:
    taken = next((name for name in _FIXED if name in options), None)
    if taken is not None:
        raise InvalidArgumentError(f"`options` must not hold {taken!r}, which the collection sets: leave it out.")


def _check_workers(engine: str, workers: int) -> None:
    _checks.whole("workers", workers, 1)
    if engine == "ray":
        require_ray()
    elif workers > 1:
        raise InvalidArgumentError(f"`workers` needs `engine='ray'`; got {workers} with {engine!r}.")


def _require_one_process() -> None:
    n = launched().n
    if n > 1:
        raise InvalidArgumentError(
            f"Collection with vLLM starts its own processes; {n} were launched. Start it without torchrun, with "
            "options={'tensor_parallel_size': ...} for a model that needs several GPUs."
        )
