"""The edits of one process: an editor for each of its layers, the rows that they read, and what they edited.

A layer calls `radiant_lens::edit_heads`, an operator of torch, with the activations and its number alone. A compiler
sees one call and no Python, so compiled models and CUDA graphs keep working; everything else is looked up here.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.serving.batched_editor import BatchedEditor
from radiant_lens.serving.request_traces import RequestTraces
from radiant_lens.serving.rows import Rows, SteeredRows


@dataclass
class LayerEdits:
    """Edits of all layers of one process.

    Attributes:
        editors: by layer, for layers that a steering edits, or reads for the layers above.
        rows: of the current pass.
        traces: of the requests that want one, or None.
        running: joint scores of the last layer that ran, by steering; None where no layer depends on the one below.
        n_edited: number of edited activations of each head, by layer, in all passes so far.
    """

    editors: Mapping[int, BatchedEditor]
    rows: Rows
    traces: RequestTraces | None = None
    running: Float[Tensor, "row steering"] | None = None
    n_edited: dict[int, Int[Tensor, " site"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, editor in self.editors.items():
            self.n_edited[layer] = torch.zeros_like(editor.owner)

    def edit(self, z: Float[Tensor, "... row d_in"], layer: int) -> Float[Tensor, "... row d_in"]:
        """The activations of a layer after the edits of the current rows, computed in the same shape for any rows."""
        # Models that vLLM runs with the code of transformers have an axis of length 1 in front.
        flat = z.flatten(0, -2)
        rows, n = self.rows, len(flat)
        return self._apply(flat, SteeredRows(None, rows.steering[:n], rows.strength[:n]), layer).view_as(z)

    def edit_steered(self, z: Float[Tensor, "... row d_in"], layer: int) -> Float[Tensor, "... row d_in"]:
        """The same, computed for the steered rows alone: of a prompt, these are the last one or none."""
        rows = self.rows.steered
        if rows is None:
            return z
        if rows.places is None:
            return self.edit(z, layer)
        flat = z.flatten(0, -2)
        edited = self._apply(flat.index_select(0, rows.places), rows, layer)
        return flat.index_copy(0, rows.places, edited).view_as(z)

    def _apply(self, z: Float[Tensor, "row d_in"], rows: SteeredRows, layer: int) -> Float[Tensor, "row d_in"]:
        running = None if self.running is None else self.running[: len(z)]
        edited = self.editors[layer].apply(z, rows.steering, rows.strength, running)
        self.n_edited[layer] += edited.is_open.sum(0)
        if self.traces is not None:
            self.traces.record(self.editors[layer], edited, rows.places)
        return edited.z

    def counts(self) -> tuple[list[int], list[int]]:
        """Activations of edited heads that were edited, and those that could have been, of each steering."""
        n_steerings = len(self.rows.n_steered)
        edited, sites = torch.zeros(n_steerings, dtype=torch.long), torch.zeros(n_steerings, dtype=torch.long)
        for layer, editor in self.editors.items():
            owner = editor.owner.cpu()
            edited.index_add_(0, owner, self.n_edited[layer].cpu())
            sites.index_add_(0, owner, torch.ones_like(owner))
        return edited.tolist(), (sites * torch.from_numpy(self.rows.n_steered)).tolist()


_CURRENT: list[weakref.ref[LayerEdits]] = []
"""The edits of the compiled model of this process. Weak, so that they end with their engine."""


def _edit_heads(z: Tensor, layer: int) -> Tensor:
    edits = _CURRENT[0]()
    assert edits is not None, "the model that calls this holds its edits"
    return edits.edit(z, layer)


_OPERATOR = torch.library.custom_op(
    "radiant_lens::edit_heads", _edit_heads, mutates_args=(), schema="(Tensor z, int layer) -> Tensor"
)
_OPERATOR.register_fake(lambda z, layer: torch.empty_like(z))


def install(edits: LayerEdits, projections: Mapping[int, nn.Module], *, eager: bool) -> None:
    """Put the edits in front of the output projections.

    Args:
        edits: of this process.
        projections: by layer.
        eager: call the edits directly, and not at all in passes without a steered row. A compiled model must make the
            same calls in every pass.

    Raises:
        InvalidArgumentError: a second compiled engine in this process: the operator knows layers by their numbers.
    """
    if not eager:
        if any(reference() is not None for reference in _CURRENT):
            raise InvalidArgumentError(
                "One process can hold one compiled engine with steerings, and it has one: shut that down, start this "
                "one with `enforce_eager=True`, or leave VLLM_ENABLE_V1_MULTIPROCESSING at 1."
            )
        _CURRENT[:] = [weakref.ref(edits)]
    for layer in edits.editors:
        projection = projections[layer]
        projection.register_forward_pre_hook(_eager_hook(edits, layer) if eager else _compiled_hook(layer))


def _eager_hook(edits: LayerEdits, layer: int) -> Any:
    def edit(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if edits.rows.steered is None else (edits.edit_steered(args[0], layer), *args[1:])

    return edit


def _compiled_hook(layer: int) -> Any:
    def edit(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.ops.radiant_lens.edit_heads(args[0], layer), *args[1:])

    return edit
