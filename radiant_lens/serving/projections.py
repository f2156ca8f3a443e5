"""The output projections of a model in vLLM, where edits act, and what cannot be served."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.serving.batched_editor import HeadShard
from radiant_lens.sites import PROJECTION_PATHS

_UNSERVED = "Steerings cannot be served {}: {}."


def refuse_unserved(config: Any) -> None:
    """Refuse what would not be edited, or not at the right tokens.

    Args:
        config: the `VllmConfig` of an engine.

    Raises:
        InvalidArgumentError: names the setting, and the remedy.
        UnknownNameError: an architecture whose output projection is not known to read heads.
    """
    model, parallel, passes = config.model_config, config.parallel_config, config.compilation_config.pass_config
    if model.runner_type == "pooling":
        raise InvalidArgumentError(
            _UNSERVED.format("with a pooling model", "it generates no answer to edit; serve a generative model")
        )
    _checks.known(
        "architecture whose output projection reads attention heads",
        model.hf_text_config.model_type,
        PROJECTION_PATHS,
        hint="Use `radiant_lens.steer` with `load_model`.",
    )
    fused = getattr(passes, "fuse_attn_quant", False)
    for refused, where, remedy in (
        (fused, "with `fuse_attn_quant`, which quantises the heads before they can be edited", "switch it off"),
        (
            parallel.prefill_context_parallel_size * parallel.decode_context_parallel_size > 1,
            "with context parallelism, which divides the tokens of a request",
            "use tensor or pipeline parallelism",
        ),
        (parallel.enable_elastic_ep, "with elastic expert parallelism, which loads models otherwise", "switch it off"),
        (parallel.use_ubatching, "with microbatches (dual batch overlap), which divide a pass", "switch it off"),
        (
            config.kv_transfer_config is not None,
            "with a KV connector, which does not tell edited keys and values apart",
            "remove `kv_transfer_config`",
        ),
    ):
        if refused:
            raise InvalidArgumentError(_UNSERVED.format(where, remedy))


def find_projections(model: nn.Module, model_type: str, width: int) -> dict[int, nn.Module]:
    """Find the output projection of each layer that this process has.

    Args:
        model: of vLLM; layers of other pipeline stages are missing.
        model_type: of the configuration.
        width: length of the projection's input in this process.

    Raises:
        InvalidArgumentError: no layer, two modules for one layer, or an input that is not the heads side by side.
    """
    path = PROJECTION_PATHS[model_type]
    before, after = map(re.escape, path.split("{}"))
    pattern = re.compile(rf"(?:.*\.)?{before}(\d+){after}")
    projections: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        layer = int(match[1])
        # With LoRA, the module at this path wraps the projection.
        inner = getattr(module, "base_layer", module)
        actual = getattr(inner, "input_size_per_partition", getattr(inner, "input_size", None))
        if layer in projections or actual != width:
            raise InvalidArgumentError(
                _UNSERVED.format(
                    f"with {type(model).__name__}",
                    f"module {name!r} must be the only one of its layer and read {width} numbers, the heads side by "
                    f"side; it reads {actual}",
                )
            )
        projections[layer] = module
    if not projections:
        raise InvalidArgumentError(
            _UNSERVED.format(f"with {type(model).__name__}", f"it has no module {path.format(0)!r}")
        )
    return projections


class LocalHeads(NamedTuple):
    """The heads that one process has of every layer, and the output projections that read them, by layer."""

    shard: HeadShard
    projections: dict[int, nn.Module]


def local_heads(worker: Any) -> LocalHeads:
    """The heads of a worker of vLLM, whose model is loaded.

    Raises:
        InvalidArgumentError: as `find_projections`.
    """
    from vllm.distributed import (  # pyright: ignore[reportMissingImports]  # not in .venv
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    config = worker.vllm_config.model_config
    n = int(config.hf_text_config.num_attention_heads) // get_tensor_model_parallel_world_size()
    width = n * config.get_head_size()
    projections = find_projections(worker.model_runner.get_model(), config.hf_text_config.model_type, width)
    return LocalHeads(HeadShard(n * get_tensor_model_parallel_rank(), n), projections)
