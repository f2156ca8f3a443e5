"""A fingerprint of a model's weights, to which every value contributes, also those of active adapters.

A sample of each parameter is not enough: heads that were ablated in the weights would keep it.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import JointGateUpMLPBridge, JointQKVAttentionBridge

from radiant_lens._files import sha256
from radiant_lens.sites import walk

Digests = tuple[bytes, bytes]
"""Of one tensor, rounded to bfloat16, and to float16 and then to bfloat16."""

_AdapterState = tuple[tuple[str, str], ...]
"""Name and scaling of each active adapter of one layer."""

# A block of 2^12 products of 16-bit and 25-bit integers sums to less than 2^53, so float64 adds them without rounding,
# in any order: processors and accelerators get the same sum, at the speed of a matrix product.
_BLOCK, _MULTIPLIER_BITS = 2**12, 25
# Values in one step on a CPU: their copies stay in the processor's cache, and torch does not divide an operation of
# this size among threads, which would have to wait for one another at each of thousands of steps (a hundred times as
# long when other work has the cores).
_STEP = 2**15
_STEP_ON_ACCELERATORS = 2**24
# Values of each tensor that are compared at every call; see `content_hashes`.
_N_COMPARED = 256

COPYING = {JointQKVAttentionBridge: ("q", "k", "v"), JointGateUpMLPBridge: ("gate", "in")}
"""Bridges that hold copies of the parts of a joint matrix, and the names of these copies."""


class _Weight(NamedTuple):
    """A parameter or persistent buffer, and its place, which is the same in a plain model and in its bridge."""

    place: str
    module: nn.Module
    key: str
    value: Tensor


class _Stamp(NamedTuple):
    """State of a living tensor: while it is the same, nothing was written to it, except through `.data`."""

    identity: int
    pointer: int
    version: int


class _Entry(NamedTuple):
    """Digests of one tensor, with the state and some values that it had when they were made."""

    tensor: weakref.ref[Tensor]
    stamp: _Stamp
    compared: Tensor
    digests: Digests


@dataclass(frozen=True)
class _Reading:
    """Result of reading all weights of a model, and the state in which they were read."""

    tensors: list[weakref.ref[Tensor]]
    stamps: list[_Stamp]
    compared: list[Tensor]
    adapters: list[_AdapterState]
    entries: list[_Entry]
    hashes: list[str]

    def holds(self, stamps: list[_Stamp], compared: list[Tensor], adapters: list[_AdapterState]) -> bool:
        """Return True if the model is still in the state in which it was read."""
        # A tensor that was freed may have left its identity and its address to another one.
        alive = all(tensor() is not None for tensor in self.tensors)
        return alive and (self.stamps, self.adapters) == (stamps, adapters) and all(map(_same, self.compared, compared))


_READINGS: WeakKeyDictionary[nn.Module, _Reading] = WeakKeyDictionary()


@torch.no_grad()
def content_hashes(model: nn.Module, *, reread: bool = False) -> list[str]:
    """Return two hashes of all weights; the same checkpoint in another precision shares at least one of them.

    The first hash rounds weights to bfloat16, the second to float16 and then to bfloat16. A float32 model therefore
    shares the first with its bfloat16 copy and the second with its float16 copy.

    Weights that have not changed since the last call are not read again. A change is seen by one of three signs:

    1. another tensor object, address or version counter, as after any in-place operation, `load_state_dict` or
       training step;
    2. another active adapter, or one that was merged;
    3. another value among 256 of each tensor, spread over its rows and columns. This is for writes through `.data`,
       which leave the version counter as it is.

    A write through `.data` that misses all compared values is not seen. `reread=True` reads everything, and
    `signature`, which writes artefacts and opens stores, always does so.

    Args:
        model: plain, or inside a bridge.
        reread: read all weights, whatever has changed.
    """
    previous = None if reread else _READINGS.get(model)
    tensors, adapters = _tensors(model)
    stamps = [_stamp(tensor) for tensor in tensors]
    compared = _joined(_spread(tensor) for tensor in tensors if not tensor.is_meta)
    if previous is None or not previous.holds(stamps, compared, adapters):
        entries, hashes = _read(model, adapters, [] if previous is None else previous.entries)
        references = [weakref.ref(tensor) for tensor in tensors]
        previous = _READINGS[model] = _Reading(references, stamps, compared, adapters, entries, hashes)
    return list(previous.hashes)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[_AdapterState]]:
    """Every parameter and persistent buffer, and the state of every adapter; without names, which take longer."""
    tensors, adapters = list[Tensor](), list[_AdapterState]()
    for _, module in walk(model):
        inside = vars(module)
        tensors += [parameter for parameter in inside["_parameters"].values() if parameter is not None]
        if inside["_buffers"]:
            tensors += [value for _, value in _persistent_buffers(module)]
        if "base_layer" in inside["_modules"]:
            adapters.append(_adapter_state(module))
    return tensors, adapters


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a checkpoint holds: quantised layers keep their weights in such ones."""
    if any(parameter is not None for parameter in vars(module)["_parameters"].values()):
        # Not a quantised layer. TransformerLens adds a buffer to some of the others: a bias of zeros to `lm_head`.
        return
    transient: set[str] = vars(module)["_non_persistent_buffers_set"]
    for key, value in vars(module)["_buffers"].items():
        if value is not None and key not in transient:
            yield key, value


def _stamp(tensor: Tensor) -> _Stamp:
    # Offloaded tensors have no memory, those made in inference mode no version counter.
    pointer = 0 if tensor.is_meta else tensor.data_ptr()
    return _Stamp(id(tensor), pointer, -1 if tensor.is_inference() else tensor._version)


def _spread(tensor: Tensor) -> Tensor:
    """Up to 256 values of a tensor, spread over its rows and columns."""
    flat = tensor.detach().reshape(-1)
    return flat[_spread_index(flat.numel(), flat.device)]


@lru_cache(maxsize=1024)
def _spread_index(n: int, device: torch.device) -> Int[Tensor, " chosen"]:
    # One value in each of 256 equal stretches, moved on by the golden ratio from stretch to stretch: a fixed step could
    # divide the width of the matrix, and then meet one column alone.
    count = min(n, _N_COMPARED)
    golden = (5**0.5 - 1) / 2
    places = [int((i + i * golden % 1) * n / count) for i in range(count)]
    return torch.tensor(places, dtype=torch.long, device=device)


def _joined(values: Iterable[Tensor]) -> list[Tensor]:
    """Values of one device and precision as one tensor: many small comparisons would take longer than all else."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for value in values:
        by_kind[value.device, value.dtype].append(value)
    return [torch.cat(rows) for rows in by_kind.values()]


def _same(one: Tensor, other: Tensor) -> bool:
    # Bits, not numbers: NaN differs from itself.
    return one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# Adapters


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters (LoRA and others of PEFT) that take part in a model's passes, sorted."""
    layers = [module for _, module in walk(model) if "base_layer" in vars(module)["_modules"]]
    return sorted({name for layer in layers for name in _active(layer)})


def _active(layer: Any) -> tuple[str, ...]:
    """Names of a layer's adapters that are added in its passes; merged ones are part of its weight already."""
    if getattr(layer, "disable_adapters", False) or getattr(layer, "merged_adapters", None):
        return ()
    names = getattr(layer, "active_adapters", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _adapter_state(layer: Any) -> _AdapterState:
    scaling: dict[str, object] = getattr(layer, "scaling", {})
    return tuple((name, repr(scaling.get(name))) for name in _active(layer))


# Every weight with its place


def _weights(model: nn.Module) -> list[_Weight]:
    """Every parameter and persistent buffer that takes part in a pass, each once, without a bridge's copies."""
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", None) or ())
    by_tensor: dict[int, tuple[str, _Weight]] = {}
    ignored: set[int] = set()
    for path, module, allowed in _paths(model):
        for kind, parts in COPYING.items():
            if isinstance(module, kind):
                ignored.update(id(p) for part in parts for p in getattr(module, part).parameters())
        for key, value in [*vars(module)["_parameters"].items(), *_persistent_buffers(module)]:
            name = f"{path}{key}"
            if value is None or id(value) in ignored or (allowed is not None and key not in allowed):
                continue
            # A tied weight has the name of the one that it is tied to, wherever it comes first: when the model is
            # offloaded, the two are no longer one object, and the other one is left out.
            known = by_tensor.get(id(value))
            if (known is None and not (value.is_meta and name in tied)) or (known is not None and known[0] in tied):
                by_tensor[id(value)] = (name, _Weight(_place(name), module, key, value))
    return [weight for _, weight in by_tensor.values()]


def _paths(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...] | None]]:
    """Every module once, with the path that it has in the plain model without adapters.

    The third value is None, or in the parts of adapters the names of those that are active: a part is a dictionary of
    modules or parameters by the adapters' names.
    """
    queue: list[tuple[str, nn.Module, tuple[str, ...] | None]] = [("", model, None)]
    seen = {model}
    # Grows while it is read.
    for path, module, allowed in queue:
        yield path, module, allowed
        inside: dict[str, nn.Module | None] = vars(module)["_modules"]
        for key, inner in inside.items():
            if inner is not None and inner not in seen and (allowed is None or key in allowed):
                seen.add(inner)
                adapters = _active(module) if "base_layer" in inside and key != "base_layer" else None
                queue.append((path + _step(key, inner), inner, adapters))


def _step(key: str, module: nn.Module) -> str:
    """The step from one module to another in the path of the plain model."""
    if key in ("_original_component", "base_layer"):
        return ""
    if "_original_component" in vars(module)["_modules"] and isinstance(getattr(module, "name", None), str):
        # A component of a bridge remembers the name of the module that it stands for: "o" is "c_proj" in GPT-2.
        return f"{str(module.name).rsplit('.', 1)[-1]}."
    return f"{key}."


def _place(name: str) -> str:
    """Numbers in a path and its last two steps, which stay where a model becomes part of a larger one."""
    steps = name.split(".")
    return " ".join([*(step for step in steps if step.isdigit()), *steps[-2:]])


# Digests


def _read(
    model: nn.Module, adapters: Iterable[_AdapterState], previous: Iterable[_Entry]
) -> tuple[list[_Entry], list[str]]:
    """Digests of all weights, and the hashes made of them; weights that stayed the same are not read again."""
    known = {entry.stamp.identity: entry for entry in previous if entry.tensor() is not None}
    places, entries = list[str](), list[_Entry]()
    for place, tensor, values in _present(_weights(model)):
        stamp, compared = _stamp(tensor), _spread(values)
        entry = known.get(stamp.identity)
        if entry is None or entry.stamp != stamp or not _same(entry.compared, compared):
            entry = _Entry(weakref.ref(tensor), stamp, compared, _digests(values))
        places.append(place)
        entries.append(entry)
    scaling = [f"{name} {value}".encode() for state in adapters for name, value in state]
    # Sorted: a bridge may hold the parts of an attention in another order than the plain model.
    rows = [[place.encode() + entry.digests[i] for place, entry in zip(places, entries)] for i in (0, 1)]
    return entries, [sha256(sorted([*row, *scaling]))[:16] for row in rows]


def _present(weights: Sequence[_Weight]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Place, tensor and values of each weight; offloaded ones are fetched, one module at a time."""
    for weight in weights:
        if not weight.value.is_meta:
            yield weight.place, weight.value, weight.value
    offloaded = [weight for weight in weights if weight.value.is_meta]
    if offloaded:
        from accelerate.utils import align_module_device

        for module, inside in groupby(offloaded, lambda weight: weight.module):
            with align_module_device(module, torch.device("cpu")):
                yield from [(w.place, w.value, getattr(module, w.key).detach()) for w in inside]


def _digests(values: Tensor) -> Digests:
    if values.device.type == "mps":
        # It has no float64.
        values = values.cpu()
    flat = values.detach().reshape(-1)
    if not flat.is_floating_point():
        # Packed integers: each byte is exact in both roundings.
        flat = flat.view(torch.uint8)
    header = f"{tuple(values.shape)}".encode()
    step = _STEP if flat.device.type == "cpu" else _STEP_ON_ACCELERATORS
    # Filled step by step: small tensors that are kept between large ones that are freed would hold the memory of these.
    sums = torch.empty((2, -(-len(flat) // _BLOCK)), dtype=torch.float64, device=flat.device)
    for piece, *targets in zip(flat.split(step), *(row.split(step // _BLOCK) for row in sums)):
        for target, checksums in zip(targets, _checksums(piece.float())):
            target.copy_(checksums)
    one, other = (row.tobytes() for row in sums.cpu().numpy())
    return bytes.fromhex(sha256([header, one])), bytes.fromhex(sha256([header, other]))


def _checksums(values: Float[Tensor, " value"]) -> tuple[Tensor, Tensor]:
    """For each block, the sum of its bit patterns, each times a multiplier of its own (multilinear hashing).

    Two different blocks have the same sum with a probability of at most 2^-24.
    """
    return _block_sums(values.bfloat16()), _block_sums(values.half().float().bfloat16())


def _block_sums(values: Float[Tensor, " value"]) -> Float[Tensor, " block"]:
    bits = values.view(torch.int16).double()
    padded = nn.functional.pad(bits, (0, -len(bits) % _BLOCK)) if len(bits) % _BLOCK else bits
    return padded.view(-1, _BLOCK) @ _multipliers(bits.device)


@lru_cache(maxsize=16)
def _multipliers(device: torch.device) -> Float[Tensor, " value"]:
    # Drawn on the CPU, so that they are the same for every device; odd, so that none is 0.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(2 ** (_MULTIPLIER_BITS - 1), (_BLOCK,), generator=generator)
    return (2 * drawn + 1).double().to(device)
