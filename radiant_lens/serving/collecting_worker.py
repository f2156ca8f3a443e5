"""Methods that vLLM adds to its workers (`worker_extension_cls`) so that they keep activations of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from radiant_lens.serving.kept_rows import KeptRows, read_keep
from radiant_lens.serving.projections import local_heads, refuse_unserved
from radiant_lens.serving.runner import extra_args, follow


class KeptHeads(NamedTuple):
    """Kept rows of one process: activations of some layers, and of each of them some heads, from `first` on."""

    layers: tuple[int, ...]
    first: int
    z: Float[Tensor, "kept layer head d_head"]


class _LastLayerDone(Exception):  # noqa: N818 - not an error: it ends a pass early
    """Raised from the hook of the last kept layer: everything that is kept of the pass has been copied.

    It saves the layers above, as in `radiant_lens.capture.run`. It cannot hide an error: the model's `forward` catches
    this class alone, and no one else raises it.
    """


class CollectingWorker:
    """Its methods become methods of the workers of an engine; their names must be new there."""

    def follow_heads(self: Any, layers: Sequence[int]) -> None:
        """Have the model of this process keep the heads of these layers, as far as it has them.

        Raises:
            InvalidArgumentError, UnknownNameError: a model or a setting whose heads cannot be read.
        """
        config = self.vllm_config
        refuse_unserved(config)
        heads = local_heads(self)
        layers = [layer for layer in layers if layer in heads.projections]
        like = torch.zeros((), dtype=config.model_config.dtype, device=self.device)
        rows = KeptRows((len(layers), heads.shard.n, config.model_config.get_head_size()), like)
        # With pipeline parallelism, the processes behind wait for what this one hands on.
        stops = config.parallel_config.pipeline_parallel_size == 1
        for place, layer in enumerate(layers):
            ends = stops and place == len(layers) - 1
            heads.projections[layer].register_forward_pre_hook(_keeper(rows, place, ends=ends))
        if stops:
            _end_early(self.model_runner.get_model(), config.model_config.get_hidden_size(), like)
        follow(self.model_runner, rows, lambda new: read_keep(extra_args(new)))
        self.kept_rows, self.kept_of = rows, (tuple(layers), heads.shard.first)

    def begin_keeping(self: Any, n: int) -> None:
        """Make room for the activations of the requests that follow."""
        self.kept_rows.begin(n)

    def kept_heads(self: Any) -> KeptHeads:
        """The activations of the requests since `begin_keeping`."""
        layers, first = self.kept_of
        return KeptHeads(layers, first, self.kept_rows.z.cpu())


def _keeper(rows: KeptRows, place: int, *, ends: bool) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows.keep(place, args[0])
        if ends:
            raise _LastLayerDone

    return keep


def _end_early(model: nn.Module, hidden_size: int, like: Tensor) -> None:
    """Have a model of vLLM return zeros as its hidden states where the last kept layer ended the pass.

    The token that vLLM samples from them is never read.
    """
    forward = model.forward

    def forward_to_last_layer(input_ids: Tensor | None, positions: Tensor, *args: Any, **options: Any) -> Any:
        try:
            return forward(input_ids, positions, *args, **options)
        except _LastLayerDone:
            return like.new_zeros(positions.shape[-1], hidden_size)

    model.forward = forward_to_last_layer
