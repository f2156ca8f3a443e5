"""A steering as a control vector of llama.cpp: one direction for each layer, added to the residual stream after it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from radiant_lens._files import check_target, write_errors
from radiant_lens.errors import InvalidArgumentError, MissingPackageError, NothingToEditError
from radiant_lens.sites import has_rows_for_inputs, output_projections
from radiant_lens.steering.editor import LayerEdit

Displace = Callable[[Tensor, int], LayerEdit]


class ControlVector(NamedTuple):
    """A control vector on disk, and how far it is from the steering that it stands for.

    Attributes:
        path: of the GGUF file.
        kl: mean KL(steering || control vector) in nats per token, on the tokens that it was made from.
        kl_unsteered: the same with no edit in place of the control vector: what there was to reach.
    """

    path: Path
    kl: float
    kl_unsteered: float


@torch.no_grad()
def save_control_vector(
    displace: Displace, layers: Iterable[int], shape: tuple[int, int], file: str | Path, model: Any, tokens: Tensor
) -> ControlVector:
    """Write a steering as a control vector; `Steering.to_gguf_control_vector` documents it.

    Args:
        displace: the edits of the steering, one layer after the other.
        layers: that it reads.
        shape: number of heads, and `d_head`.
        file: to write.
        model: a plain transformers model.
        tokens: texts to average over.
    """
    if find_spec("gguf") is None:
        raise MissingPackageError("Writing a control vector needs the package gguf: pip install 'radiant-lens[gguf]'.")
    _check_tokens(tokens)
    check_target(file)
    projections = output_projections(model)
    sums: dict[int, Tensor] = {}
    with _exact(displace, layers, shape, projections, sums):
        exact = model(tokens).logits.log_softmax(-1)
    directions = _directions(sums, projections, tokens.numel())
    with _added(model, directions):
        approximate = model(tokens).logits.log_softmax(-1)
    plain = model(tokens).logits.log_softmax(-1)
    _write(Path(file), directions, model)
    return ControlVector(Path(file), _kl(exact, approximate), _kl(exact, plain))


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise InvalidArgumentError(
            f"`tokens` must be token ids with axes `row pos`, at least one; got shape {tuple(tokens.shape)} of "
            f"{tokens.dtype}: pass `tokenizer(text, return_tensors='pt').input_ids`."
        )


def _kl(exact: Tensor, other: Tensor) -> float:
    return float((exact.exp() * (exact - other)).sum(-1).mean())


@contextmanager
def _exact(
    displace: Displace,
    layers: Iterable[int],
    shape: tuple[int, int],
    projections: list[nn.Module],
    sums: dict[int, Tensor],
) -> Generator[None]:
    """Edit every position as the steering does, and sum what the edits write into the residual stream."""

    def edit(layer: int) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            split = args[0].unflatten(-1, shape)
            change = torch.zeros_like(split)
            result = displace(split, layer)
            if not len(result.heads):
                return args
            change.index_add_(-2, result.heads, result.displacement.to(split.dtype))
            sums[layer] = sums.get(layer, 0) + change.flatten(-2).double().flatten(0, -2).sum(0)
            return (args[0] + change.flatten(-2), *args[1:])

        return hook

    with ExitStack() as handles:
        for layer in layers:
            handles.callback(projections[layer].register_forward_pre_hook(edit(layer)).remove)
        yield


def _directions(
    sums: dict[int, Tensor], projections: list[nn.Module], n_tokens: int
) -> dict[int, Float[Tensor, " d_model"]]:
    """Mean write of each layer, at the layer after which it is added: llama.cpp has no vector after layer 0."""
    directions: dict[int, Tensor] = {}
    for layer, total in sums.items():
        projection: Any = projections[layer]
        weight = projection.weight.double()
        write = (weight.T if has_rows_for_inputs(projection) else weight) @ (total / n_tokens)
        place = max(layer, 1)
        directions[place] = directions.get(place, 0) + write.float()
    if not any(bool(direction.any()) for direction in directions.values()):
        raise NothingToEditError("The steering edits none of these tokens: its control vector would be 0.")
    return directions


@contextmanager
def _added(model: nn.Module, directions: dict[int, Tensor]) -> Generator[None]:
    """Add the directions where llama.cpp does: to the output of the whole layer."""
    blocks = _blocks(model)

    def add(direction: Tensor) -> Callable[[Any, Any, Any], Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            changed = first + direction.to(first)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as handles:
        for layer, direction in directions.items():
            handles.callback(blocks[layer].register_forward_hook(add(direction)).remove)
        yield


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the model, each of which contains its output projection."""
    projections = {id(module) for module in output_projections(model)}
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and sum(id(inner) in projections for inner in module.modules()) == len(
            projections
        ):
            return list(module)
    raise AssertionError("the path of a projection leads through a list of layers")


def _write(file: Path, directions: dict[int, Tensor], model: Any) -> None:
    import gguf

    config = model.config.get_text_config()
    with write_errors(file):
        writer = gguf.GGUFWriter(file, "controlvector")
        writer.add_string("controlvector.model_hint", str(config.model_type))
        writer.add_uint32("controlvector.layer_count", len(directions))
        for layer in sorted(directions):
            writer.add_tensor(f"direction.{layer}", directions[layer].cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
