"""The shards of one collection, spread over Ray actors, each of which has an engine of vLLM.

A worker that dies loses the shard that it was at, which another worker takes over. Where all of them die, the store
keeps the shards that are done, and the same call continues it. A shard that kills every worker ends the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from radiant_lens.capture.engine_run import EngineRun
from radiant_lens.capture.store import CacheStore
from radiant_lens.distributed import progress_bar
from radiant_lens.errors import InvalidArgumentError, MissingPackageError, RankError


class ShardWorker:
    """The work of one actor: an engine, started at the first shard.

    Args:
        run: the collection.
        store: in a folder that all machines share.
    """

    def __init__(self, run: EngineRun, store: CacheStore) -> None:
        self._run, self._store = run, store

    def write(self, shard: int) -> None:
        """Collect one shard and write it."""
        self._run.write(self._store, shard)


def require_ray() -> None:
    """Check that Ray is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if find_spec("ray") is None:
        raise MissingPackageError("The engine 'ray' needs the package ray: pip install 'radiant-lens[ray]'.")


def spread(run: EngineRun, store: CacheStore, n_workers: int, *, progress: bool) -> None:
    """Write the shards that a store lacks, in several workers.

    Args:
        run: the collection.
        store: in a folder that all machines share.
        n_workers: number of engines; no more than there are shards to write.
        progress: show a progress bar.

    Raises:
        InvalidArgumentError: the cluster has too few processors or GPUs.
        RankError: all workers have died.
        RadiantError: whatever a worker raises.
    """
    missing = deque(run.missing(store))
    n_workers = min(n_workers, len(missing))
    if not missing:
        return
    with _cluster() as ray, progress_bar(shown=progress) as bar:
        shared = ray.put(run)
        actor_class = ray.remote(**_resources(ray, run.options, n_workers))(ShardWorker)
        idle = [actor_class.remote(shared, store) for _ in range(n_workers)]
        running: dict[Any, tuple[Any, int]] = {}
        task = bar.add_task("collecting activations", total=len(missing))
        while running or (missing and idle):
            while missing and idle:
                worker, shard = idle.pop(), missing.popleft()
                running[worker.write.remote(shard)] = (worker, shard)
            (ended,), _ = ray.wait(list(running))
            worker, shard = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayActorError:
                # It may have died after the mark was made.
                if shard not in store.done:
                    missing.append(shard)
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            idle.append(worker)
            bar.advance(task)
    if missing:
        raise RankError(
            f"All {n_workers} workers of Ray have died, with {len(missing)} shards left; Ray's logs say why. The same "
            f"call, given again, continues from the finished shards in {str(store.path)!r}."
        )


@contextmanager
def _cluster() -> Generator[Any]:
    """Ray itself, connected to the cluster of RAY_ADDRESS, or to one of this machine that ends with the block."""
    import ray  # pyright: ignore[reportMissingImports]  # not in .venv

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _resources(ray: Any, options: Mapping[str, Any], n_workers: int) -> dict[str, int]:
    """Processors and GPUs of each worker."""
    available = ray.cluster_resources()
    n_gpus = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    needed = {"num_cpus": 1, "num_gpus": n_gpus if available.get("GPU", 0) else 0}
    # Without this, the workers that find no place would be waited for, for ever.
    for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        total = int(available.get(resource, 0))
        if n_workers * needed[name] > total:
            raise InvalidArgumentError(
                f"`workers` must be at most {total // needed[name]}: each needs {needed[name]} {resource}, and the "
                f"cluster of Ray has {total}; got {n_workers}."
            )
    return needed
