"""The hook function of one layer: edits the newest position of a pass, or all positions of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.editor import LayerEdit, LayerEditor, add_edit, mask_edit
from radiant_lens.steering.gates import RunningScore

Window = Callable[[Tensor], Bool[Tensor, "batch pos"] | None]
"""Gives the mask of the positions of a pass that may be edited; None: the newest alone."""

Recorder = Callable[[LayerEdit, Bool[Tensor, "batch pos"] | None], object]

_NOT_Z = (
    "The hook of a steering must be at a `hook_z`, axes `batch pos head d_head` ending in ({}, {}); got shape {}: use "
    "it with the name that `steering.hooks()` gives."
)


class LayerHook:
    """The hook function of one layer, as TransformerLens calls it.

    Args:
        shape: number of heads, and `d_head`.
        editor_for: gives the editor of the layer for the precision and device of activations.
        window: of each pass; None: the newest position.
        recorder: gets each edit and the window that it was made in.
        running: the joint scores of the pass, shared by the hooks of all layers; None where no layer depends on the one
            below.
    """

    def __init__(
        self,
        shape: Sequence[int],
        editor_for: Callable[[Tensor], LayerEditor],
        window: Window | None,
        recorder: Recorder | None,
        running: RunningScore | None = None,
    ) -> None:
        self._running = running
        self._shape, self._editor_for = tuple(shape), editor_for
        self._window, self._recorder = window, recorder
        self._like: tuple[torch.dtype, torch.device] | None = None

    @property
    def has_run(self) -> bool:
        """True once the hook was called."""
        return self._like is not None

    def __call__(self, z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Float[Tensor, "batch pos head d_head"]:
        """The activations after the edit.

        Raises:
            InvalidArgumentError: `z` is not the `hook_z` of a model of this shape.
        """
        if z.shape[2:] != self._shape:
            raise InvalidArgumentError(_NOT_Z.format(*self._shape, tuple(z.shape)))
        return self.edit(z)

    def edit(self, z: Float[Tensor, "batch pos *d_in"]) -> Float[Tensor, "batch pos *d_in"]:
        """The activations after the edit, split into heads or not (as a plain model's output projection reads them)."""
        # The editor is looked up once, and again only where the model changed its precision or device in between.
        if self._like != (z.dtype, z.device):
            self._editor, self._like = self._editor_for(z), (z.dtype, z.device)
        mask = None if self._window is None else self._window(z)
        rows = z if mask is not None or z.shape[1] == 1 else z[:, -1:]
        joint = self._joint(rows)
        if not len(self._editor.heads):
            # Read for the layers above.
            return z
        if mask is None and self._recorder is None:
            edited = self._editor.apply(rows, None if joint is None else joint.flatten(0, -2))
        else:
            edited = self._edit_and_record(rows, joint, mask)
        # A copy of the pass, never an edit in place: the model may still need the activations (for gradients).
        return edited if rows is z else torch.cat([z[:, :-1], edited], dim=1)

    def _joint(self, z: Float[Tensor, "batch pos *d_in"]) -> Float[Tensor, "batch pos 1"] | None:
        """The layer's score, for those that depend on other layers."""
        score = self._editor.joint
        if self._running is None or score is None:
            return None
        return self._running(score, z.reshape(*z.shape[:2], *self._shape).to(score.weights.dtype))

    def _edit_and_record(self, z: Tensor, joint: Tensor | None, mask: Tensor | None) -> Tensor:
        """The activations after the edit inside the mask."""
        split = z.reshape(*z.shape[:2], *self._shape)
        edit = self._editor.compute(split, joint)
        edit = edit if mask is None else mask_edit(edit, mask)
        if self._recorder is not None:
            self._recorder(edit, mask)
        return add_edit(split, edit).reshape(z.shape)
