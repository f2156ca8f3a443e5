"""`steer`: switch a steering on in a model, for any number of rows, with or without a KV cache."""

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
from radiant_lens.hooks.block import SteerBlock
from radiant_lens.hooks.edit_window import UNKNOWN_CACHE, Calls, Passes
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.identity import plain_model, require_fitting
from radiant_lens.sites import head_hook, output_projections
from radiant_lens.steering.editor import LayerEdit
from radiant_lens.steering.layer_hook import LayerHook
from radiant_lens.steering.steering import Steering


def compose(*hook_functions: Callable[[Tensor, Any], Tensor | None]) -> HookFunction:
    """Chain hook functions from left to right; a function that returns None leaves `z` as it is.

    Example:
        >>> double = lambda z, hook: 2 * z
        >>> compose(double, double)(3, None)
        12

    Raises:
        InvalidArgumentError: an argument that cannot be called.
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


def steer(
    model: TransformerBridge | PreTrainedModel,
    steering: Steering,
    *,
    strength: float = 1.0,
    trace: bool = False,
    start: int | Sequence[int] | Int[Tensor, " batch"] | None = None,
    allow_mismatch: bool = False,
) -> SteerBlock:
    """Switch a steering on for the forward passes of a model inside a `with` block.

    Edits begin at the last token of each prompt, for each row by its own gate, and go on through the answer. It makes
    no difference whether later tokens come one at a time (KV cache) or together with all tokens before them.

    Several tokens on a filled cache are a new turn, such as the next message of a chat: edits begin at its last token,
    and earlier turns stay as they are in the cache. Such a pass continues the answer instead where it asks for a logit
    of every token (`logits_to_keep=n`), as assisted generation does. A prompt that is prefilled in chunks cannot be
    told apart from turns, so the last token of every chunk is edited: prefill such a prompt whole, or use `start`.

    `generate` and `pipeline` work as usual on a plain model. Continuous batching (`generate_batch`), paged attention
    and other caches that are no `transformers.Cache` are refused.

    All threads may generate inside the block, and all are steered, each by its own prompts. A second thread that steers
    the same model is refused.

    Compiled models run uncompiled inside the block: graphs from before the block have no hooks, and graphs made inside
    would keep them.

    Args:
        model: from `load_model`, or any `PreTrainedModel` whose type `radiant_lens.sites` knows.
        steering: from the `fit` of a policy.
        strength: factor of every displacement, as in `Steering.scaled`.
        trace: record votes, gates and displacements; memory grows with the number of tokens.
        start: column at which edits begin in each row (padding and cached tokens counted), in place of the last prompt
            token; for scoring a known answer.
        allow_mismatch: use a steering that was made for another model of the same shape.

    Returns:
        A context manager for `with`; it gives the trace, which is empty without `trace`. It warns if it is thrown away
        without having been entered.

    Raises:
        ModelMismatchError: a steering for another model.
        InvalidArgumentError: `model` is neither a bridge nor a `PreTrainedModel`, or a strength out of range; inside
            the block, a cache of an unknown class.
        UnknownNameError: a `PreTrainedModel` of an architecture whose module paths are not known.
        RadiantError: another thread is steering the model; at the end of the block, a plain model that ran without
            calling its output projections.
    """
    return SteerBlock(lambda: _steered(model, steering, strength, trace, start, allow_mismatch))


@contextmanager
def _steered(
    model: TransformerBridge | PreTrainedModel,
    steering: Steering,
    strength: float,
    trace: bool,
    start: int | Sequence[int] | Tensor | None,
    allow_mismatch: bool,
) -> Generator[Trace]:
    """One block of `steer`."""
    require_fitting(steering, model, allow_mismatch=allow_mismatch)
    # After the check, which gives a sentence for what is no steering at all.
    steering = steering.scaled(strength)
    pad_id = getattr(model.tokenizer, "pad_token_id", None) if isinstance(model, TransformerBridge) else None
    trace_record, calls = Trace(trace), Calls()
    passes = Passes(start, pad_id, calls, recorded=trace)

    def record(edit: LayerEdit, mask: Tensor | None) -> None:
        trace_record.records.append(passes.record(edit, mask))

    running = steering.running_score()
    functions = {
        layer: steering.hook(
            layer,
            window=passes.window,
            recorder=record if trace and layer in steering.layers else None,
            running=running,
        )
        for layer in steering.hooked_layers
    }
    # A bridge has hook points of its own, which also run under its compatibility mode.
    bridge = isinstance(model, TransformerBridge)
    switched_on = _on_bridge(model, functions, passes) if bridge else _on_plain(model, functions, passes, calls)
    eager = torch.compiler.set_stance("force_eager")
    with (
        _by_one_thread(model),
        eager,
        _no_continuous_batching(plain_model(model)),
        _raising_refusals(calls),
        switched_on,
    ):
        yield trace_record


# Weak, so that a model is freed as if it had never been steered.
_STEERED_BY: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
"""The thread that steers a model, once for each block that it is in."""


@contextmanager
def _by_one_thread(model: nn.Module) -> Generator[None]:
    """Refuse a second thread: its hooks would act on the passes of both, and leave with the first of the two."""
    thread, blocks = threading.get_ident(), _STEERED_BY.setdefault(model, [])
    if any(other != thread for other in blocks):
        raise RadiantError(
            "Another thread is steering this model, and its edits would act here, too. Steer once and let all threads "
            "generate inside that block, or load the model a second time."
        )
    blocks.append(thread)
    try:
        yield
    finally:
        blocks.remove(thread)


@contextmanager
def _no_continuous_batching(model: PreTrainedModel) -> Generator[None]:
    """Refuse continuous batching where it is called.

    It runs the model in a thread of its own that catches all errors, so that a refusal by a hook would reach the caller
    as empty answers. A manager that is running already is caught by `_raising_refusals`.
    """

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InvalidArgumentError(UNKNOWN_CACHE.format("PagedAttentionCache"))

    # An attribute of this one model hides the method of its class, which other models keep. If there is one already, it
    # belongs to an outer block, which goes on after this one.
    attributes, name = vars(model), "init_continuous_batching"
    outer = attributes.get(name)
    attributes[name] = refuse
    try:
        yield
    finally:
        del attributes[name]
        if outer is not None:
            attributes[name] = outer


@contextmanager
def _raising_refusals(calls: Calls) -> Generator[None]:
    """Raise in the caller's thread, at the end of the block, what another thread was refused."""
    try:
        yield
    except Exception as error:
        # Such as an index error in empty answers, of which the refusal is the reason.
        calls.raise_refusal(error)
        raise
    calls.raise_refusal()


@contextmanager
def _on_bridge(model: TransformerBridge, functions: Mapping[int, HookFunction], passes: Passes) -> Generator[None]:
    # A hook point removes hooks by their level; this one belongs to no other block.
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
    # A fused kernel may read the weights of a projection without calling it, and so without its hooks.
    idle = [layer for layer, function in functions.items() if not function.has_run]
    if idle and calls.n:
        raise RadiantError(
            f"{type(model).__name__} ran without calling the output projection of layer {min(idle)}: nothing was "
            "edited there. Such a model can be steered as a bridge: `load_model(model)`."
        )
