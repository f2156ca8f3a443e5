"""Steerings in a worker of vLLM: attached to its model, and told of every pass by its model runner."""

from __future__ import annotations

import logging
from typing import Any

import torch

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.serving.batched_editor import make_batched_editor
from radiant_lens.serving.catalog import CONFIG_KEY, LAYERS_KEY, Catalog, read_catalog, require_model
from radiant_lens.serving.layer_edits import LayerEdits, install
from radiant_lens.serving.metrics import Counters
from radiant_lens.serving.projections import LocalHeads, local_heads, refuse_unserved
from radiant_lens.serving.request_traces import RequestTraces
from radiant_lens.serving.requests import as_row, as_traced
from radiant_lens.serving.rows import Rows
from radiant_lens.serving.runner import extra_args, follow

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
    eager = _is_eager(config)
    if catalog.trace_file is not None and not eager:
        raise InvalidArgumentError(
            "Traces are read by Python in every pass, which a compiled model does not do: start the server with "
            "`--enforce-eager` (`enforce_eager=True`), or without `--trace-file`."
        )
    heads = local_heads(worker)
    edits = _make_edits(worker, catalog, heads)
    install(edits, heads.projections, eager=eager)
    # A compiled graph holds the calls of the edited layers: another choice of layers must not take it from a cache.
    config.additional_config[CONFIG_KEY][LAYERS_KEY] = sorted(edits.editors)
    if edits.traces is not None:
        follow(worker.model_runner, edits.traces, lambda new: as_traced(extra_args(new), new.prompt_len, catalog))
    counters = Counters(list(catalog.steerings))
    follow(
        worker.model_runner,
        edits.rows,
        lambda new: as_row(extra_args(new), new.prompt_len, catalog),
        lambda output: counters.update(edits, now=output.total_num_scheduled_tokens == 0),
    )
    _LOG.info(
        "Steerings %s read layers %s of this process, %s.",
        ", ".join(catalog.steerings),
        sorted(edits.editors),
        "eagerly" if eager else "as a compiled operator",
    )


def _is_eager(config: Any) -> bool:
    compilation = config.compilation_config
    return int(compilation.mode or 0) == 0 and not compilation.cudagraph_mode.value


def _make_edits(worker: Any, catalog: Catalog, heads: LocalHeads) -> LayerEdits:
    from vllm.distributed import (  # pyright: ignore[reportMissingImports]  # not in .venv
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
        for layer in heads.projections
        if (editor := make_batched_editor(steerings, layer, like=like, shard=heads.shard, **options)) is not None
    }
    # A CUDA graph may be padded to more tokens than a pass can have.
    n_max = max(
        config.scheduler_config.max_num_batched_tokens, config.compilation_config.max_cudagraph_capture_size or 0
    )
    traces = None if catalog.trace_file is None else RequestTraces(catalog.trace_file, worker.rank)
    running = None
    if any(steering.running_score() is not None for steering in steerings):
        if (stages := config.parallel_config.pipeline_parallel_size) > 1:
            raise InvalidArgumentError(
                "Gates by joint scores, and edits by evidence, hand a score from every layer to the next, which is not "
                f"built between stages of a pipeline; got pipeline_parallel_size={stages}: use tensor parallelism."
            )
        running = torch.zeros(n_max, len(steerings), device=device)
    return LayerEdits(editors, Rows(n_max, len(steerings), device), traces, running)
