"""What one layer's hook does in a pass: an edit at the newest position, or wherever a window says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.editor import LayerEdit, LayerEditor, added, masked

Window = Callable[[Tensor], Bool[Tensor, "batch pos"] | None]
"""Which positions of a pass may be edited; None: the newest alone."""

Recorder = Callable[[LayerEdit, Bool[Tensor, "batch pos"] | None], object]

_NOT_Z = "A steering's hook must be at a `hook_z`, axes `batch pos head d_head` ending in ({}, {}); got shape {}."


class LayerHook:
    """The hook function of one layer, as TransformerLens calls it.

    Args:
        shape: number of heads, and `d_head`.
        editor_for: the layer's editor for activations of a precision on a device.
        window: of each pass; None: the newest position.
        recorder: gets each edit and the window that it was made in.
    """

    def __init__(
        self,
        shape: Sequence[int],
        editor_for: Callable[[Tensor], LayerEditor],
        window: Window | None,
        recorder: Recorder | None,
    ) -> None:
        self._shape, self._editor_for = tuple(shape), editor_for
        self._window, self._recorder = window, recorder
        self._like: tuple[torch.dtype, torch.device] | None = None

    @property
    def has_run(self) -> bool:
        """Whether any activations came by."""
        return self._like is not None

    def __call__(self, z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Float[Tensor, "batch pos head d_head"]:
        """The activations after the edit.

        Raises:
            InvalidArgumentError: `z` is no `hook_z` of the steered model.
        """
        if z.shape[2:] != self._shape:
            raise InvalidArgumentError(_NOT_Z.format(*self._shape, tuple(z.shape)))
        return self.edit(z)

    def edit(self, z: Float[Tensor, "batch pos *d_in"]) -> Float[Tensor, "batch pos *d_in"]:
        """The same for activations that may be left unsplit, as a plain model's output projection reads them."""
        if self._like != (z.dtype, z.device):
            self._editor, self._like = self._editor_for(z), (z.dtype, z.device)
        mask = None if self._window is None else self._window(z)
        if mask is not None:
            return self._shown(z, mask)
        change = self._editor.edited if self._recorder is None else self._shown
        return change(z) if z.shape[1] == 1 else torch.cat([z[:, :-1], change(z[:, -1:])], dim=1)

    def _shown(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Edited inside a window, and recorded."""
        split = z.reshape(*z.shape[:2], *self._shape)
        edit = self._editor.look(split)
        edit = edit if mask is None else masked(edit, mask)
        if self._recorder is not None:
            self._recorder(edit, mask)
        return added(split, edit).reshape(z.shape)
