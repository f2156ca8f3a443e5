"""`steer`: a steering switched on in a model, for any number of rows, with or without a KV cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from radiant_lens._typing import HookFunction
from radiant_lens.errors import InvalidArgumentError, RadiantError
from radiant_lens.hooks.edit_window import Calls, Passes
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.identity import require_fitting
from radiant_lens.sites import head_hook, output_projections
from radiant_lens.steering.editor import LayerEdit
from radiant_lens.steering.layer_hook import LayerHook
from radiant_lens.steering.steering import Steering


def compose(*hook_functions: Callable[[Tensor, Any], Tensor | None]) -> HookFunction:
    """Chain hook functions from left to right; one that returns None leaves `z` as it is.

    Example:
        >>> double = lambda z, hook: 2 * z
        >>> compose(double, double)(3, None)
        12

    Raises:
        InvalidArgumentError: something that cannot be called.
    """
    for function in hook_functions:
        if not callable(function):
            raise InvalidArgumentError(f"Hook functions must be callable; got {function!r}.")

    def composed(z: Tensor, hook: Any) -> Tensor:
        for function in hook_functions:
            result = function(z, hook)
            z = z if result is None else result
        return z

    return composed


@contextmanager
def steer(
    model: TransformerBridge | PreTrainedModel,
    steering: Steering,
    *,
    trace: bool = False,
    start: int | Sequence[int] | Int[Tensor, " batch"] | None = None,
    allow_mismatch: bool = False,
) -> Generator[Trace]:
    """Switch a steering on for the passes of a model inside the `with` block.

    Edits happen from the last token of each prompt on, for each row by its own gate. The same holds whether
    later tokens come one at a time (KV cache) or with all that stands before them: a pass that extends the
    last one by one token continues it, any other pass without a cache starts anew. On a plain model `generate`
    and `pipeline` work as ever; a prompt that is prefilled in chunks is edited from its first chunk's end on.

    All threads may generate inside the block, at once or in turn, and all are steered, each by its own prompts; a
    second thread that steers the same model is refused.

    Inside the block compiled models run uncompiled: what `torch.compile` made before knows nothing of hooks, and
    what it would make now would keep them.

    Args:
        model: from `load_model`, or any `PreTrainedModel` whose type `radiant_lens.sites` knows.
        steering: from a policy's `fit`.
        trace: record votes, gates and displacements; memory grows with the tokens.
        start: where edits begin in each row (padding counted), in place of the last prompt token; for
            scoring a given answer.
        allow_mismatch: use a steering that was made for another model of the same shape.

    Yields:
        The trace; empty unless asked for.

    Raises:
        ModelMismatchError: a steering for another model.
        InvalidArgumentError: `model` is neither a bridge nor a `PreTrainedModel`.
        UnknownNameError: a `PreTrainedModel` of an architecture whose module paths are not known.
        RadiantError: another thread is steering the model; at the end of the block, a plain model
            that ran without calling its output projections.
    """
    require_fitting(steering, model, allow_mismatch=allow_mismatch)
    pad_id = getattr(model.tokenizer, "pad_token_id", None) if isinstance(model, TransformerBridge) else None
    trace_record, calls = Trace(trace), Calls()
    passes = Passes(start, pad_id, calls, recorded=trace)

    def record(edit: LayerEdit, mask: Tensor | None) -> None:
        trace_record.records.append(passes.record(edit, mask))

    functions = {
        layer: steering.hook(layer, window=passes.window, recorder=record if trace else None)
        for layer in steering.layers
    }
    bridge = isinstance(model, TransformerBridge)
    switched_on = _on_bridge(model, functions, passes) if bridge else _on_plain(model, functions, passes, calls)
    with _by_one_thread(model), torch.compiler.set_stance("force_eager"), switched_on:
        yield trace_record


_STEERED_BY: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
"""Which thread steers a model, once for each block that it is in."""


@contextmanager
def _by_one_thread(model: nn.Module) -> Generator[None]:
    """Hooks of two threads would act on the passes of both, and leave with the first of the two."""
    thread, blocks = threading.get_ident(), _STEERED_BY.setdefault(model, [])
    if any(other != thread for other in blocks):
        raise RadiantError(
            "Another thread is steering this model: its edits would act here, too. Steer once and let all threads "
            "generate inside that block, or load the model a second time."
        )
    blocks.append(thread)
    try:
        yield
    finally:
        blocks.remove(thread)


@contextmanager
def _on_bridge(model: TransformerBridge, functions: Mapping[int, HookFunction], passes: Passes) -> Generator[None]:
    # Told apart from all others by their level.
    level = id(passes)
    with ExitStack() as handles:
        handles.callback(model.original_model.register_forward_pre_hook(passes.begin, with_kwargs=True).remove)
        for layer, function in functions.items():
            point = head_hook(model, layer)
            handles.callback(point.remove_hooks, level=level)
            point.add_hook(function, level=level)
        yield


@contextmanager
def _on_plain(
    model: PreTrainedModel, functions: Mapping[int, LayerHook], passes: Passes, calls: Calls
) -> Generator[None]:
    projections = output_projections(model)

    def before(edit: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Any, ...]]:
        return lambda module, args: (edit(args[0]), *args[1:])

    with ExitStack() as handles:
        handles.callback(model.register_forward_pre_hook(passes.begin, with_kwargs=True).remove)
        for layer, function in functions.items():
            handle = projections[layer].register_forward_pre_hook(before(function.edit))
            handles.callback(handle.remove)
        yield
    idle = [layer for layer, function in functions.items() if not function.has_run]
    if idle and calls.n:
        raise RadiantError(
            f"{type(model).__name__} ran without calling the output projection of layer {min(idle)}: nothing was "
            "edited there. Such a model can be steered as a bridge: `load_model(model)`."
        )
