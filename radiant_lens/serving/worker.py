"""Steerings in a worker of vLLM: attached to its model, and told of every pass by its model runner."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from radiant_lens.serving.batched_editor import HeadShard, make_batched_editor
from radiant_lens.serving.catalog import CONFIG_KEY, LAYERS_KEY, Catalog, read_catalog, require_model
from radiant_lens.serving.layer_edits import LayerEdits, install
from radiant_lens.serving.metrics import Counters
from radiant_lens.serving.projections import find_projections, refuse_unserved
from radiant_lens.serving.requests import as_row
from radiant_lens.serving.rows import Rows

_LOG = logging.getLogger("vllm.radiant_lens")


def attach(worker: Any) -> None:
    """Attach the steerings of the engine's configuration to the model that a worker has just loaded.

    Args:
        worker: of vLLM; without steerings in its configuration it is left alone.
    """
    config = worker.vllm_config
    catalog = read_catalog(config.additional_config)
    if catalog is None:
        return
    refuse_unserved(config)
    require_model(catalog, config.model_config.hf_text_config, config.model_config.get_head_size())
    edits = _make_edits(worker, catalog)
    eager = _is_eager(config)
    install(edits, _projections(worker, catalog), eager=eager)
    # A compiled graph holds the calls of the edited layers: another choice of layers must not take it from a cache.
    config.additional_config[CONFIG_KEY][LAYERS_KEY] = sorted(edits.editors)
    _follow(worker.model_runner, catalog, edits)
    _LOG.info(
        "Steerings %s edit layers %s of this process, %s.",
        ", ".join(catalog.steerings),
        sorted(edits.editors),
        "eagerly" if eager else "as a compiled operator",
    )


def _is_eager(config: Any) -> bool:
    compilation = config.compilation_config
    return int(compilation.mode or 0) == 0 and not compilation.cudagraph_mode.value


def _shard(catalog: Catalog) -> HeadShard:
    from vllm.distributed import (  # pyright: ignore[reportMissingImports]
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    n_heads = next(iter(catalog.steerings.values())).scores.weights.shape[1]
    n = n_heads // get_tensor_model_parallel_world_size()
    return HeadShard(n * get_tensor_model_parallel_rank(), n)


def _projections(worker: Any, catalog: Catalog) -> dict[int, Any]:
    model, config = worker.model_runner.get_model(), worker.vllm_config.model_config
    return find_projections(model, config.hf_text_config.model_type, _shard(catalog).n * config.get_head_size())


def _make_edits(worker: Any, catalog: Catalog) -> LayerEdits:
    from vllm.distributed import (  # pyright: ignore[reportMissingImports]
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_reduce,
    )

    config, steerings = worker.vllm_config, list(catalog.steerings.values())
    device = worker.device
    like = torch.zeros((), dtype=config.model_config.dtype, device=device)
    parallel = get_tensor_model_parallel_world_size() > 1
    options = {"reduce": tensor_model_parallel_all_reduce} if parallel else {}
    editors = {
        layer: editor
        for layer in _projections(worker, catalog)
        if (editor := make_batched_editor(steerings, layer, like=like, shard=_shard(catalog), **options)) is not None
    }
    # A CUDA graph may be padded to more tokens than a pass can have.
    n_max = max(
        config.scheduler_config.max_num_batched_tokens, config.compilation_config.max_cudagraph_capture_size or 0
    )
    return LayerEdits(editors, Rows(n_max, len(steerings), device))


def _follow(runner: Any, catalog: Catalog, edits: LayerEdits) -> None:
    """Have a model runner of vLLM, of either version, tell of every pass."""
    rows, counters = edits.rows, Counters(list(catalog.steerings))
    execute = runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **options: Any) -> Any:
        rows.remove(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            params = new.sampling_params
            rows.add(new.req_id, as_row(params and params.extra_args, new.prompt_len, catalog))
        result = execute(scheduler_output, *args, **options)
        counters.update(edits, now=scheduler_output.total_num_scheduled_tokens == 0)
        return result

    runner.execute_model = execute_model
    if hasattr(runner, "prepare_inputs"):
        prepare = runner.prepare_inputs

        def prepare_inputs(*args: Any, **options: Any) -> Any:
            batch = prepare(*args, **options)
            rows.fill(batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np)
            return batch

        runner.prepare_inputs = prepare_inputs
        return
    prepare_v1 = runner._prepare_inputs

    def prepare_inputs_v1(scheduler_output: Any, n_scheduled: np.ndarray[Any, Any]) -> Any:
        result, batch = prepare_v1(scheduler_output, n_scheduled), runner.input_batch
        rows.fill(batch.req_ids, n_scheduled, batch.num_computed_tokens_cpu[: len(n_scheduled)])
        return result

    runner._prepare_inputs = prepare_inputs_v1
