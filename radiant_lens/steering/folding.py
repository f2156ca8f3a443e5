"""A steering without a gate as weights: its maps folded into the attention output projections of a model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from radiant_lens.errors import InvalidArgumentError, ModelMismatchError
from radiant_lens.sites import has_rows_for_inputs, input_width, output_projections
from radiant_lens.steering.artefact import SteeringParts

# Settings of transformers that give the projections of the attention biases, nearest first.
_BIAS_SETTINGS = ("attention_bias", "bias")


def fold(steering: SteeringParts, model: nn.Module, *, savable: bool) -> None:
    """Fold the maps of a steering into a model; `Steering.fold_into` says what this means."""
    _refuse_what_is_no_weight(steering)
    projections = output_projections(model)
    n_layers, n_heads, d_head = steering.scores.weights.shape
    if (len(projections), input_width(projections[0])) != (n_layers, n_heads * d_head):
        raise ModelMismatchError(
            f"This steering is for {n_layers} layers with {n_heads} x {d_head} inputs of the output projection; "
            f"{type(model).__name__} has {len(projections)} layers with {input_width(projections[0])}."
        )
    matrices, shifts = (part.double() for part in steering.head_maps.matrices())
    layers = {site.layer for site in steering.sites}
    if bool(shifts.any()) and any(getattr(projections[layer], "bias", None) is None for layer in layers):
        _add_biases(model, [projections[layer] for layer in layers], savable=savable)
    with torch.no_grad():
        for site, matrix, shift in zip(steering.sites, matrices, shifts):
            _fold_head(projections[site.layer], site.head, matrix, shift)


def _refuse_what_is_no_weight(steering: SteeringParts) -> None:
    if steering.gate != "none":
        raise InvalidArgumentError(
            f"Only edits without a gate can be folded into weights; this steering has gate {steering.gate!r}, which "
            'decides at every token. Fit the policy with gate="none", or use `steer`.'
        )
    if steering.trust is not None:
        raise InvalidArgumentError("A trust region decides at every token: such edits cannot be folded; use `steer`.")


def _fold_head(
    projection: Any, head: int, matrix: Float[Tensor, "d_head d_head"], shift: Float[Tensor, " d_head"]
) -> None:
    """`W (G a + g) = (W G) a + W g`, for the columns of one head."""
    weight = projection.weight.T if has_rows_for_inputs(projection) else projection.weight
    columns = slice(head * len(shift), (head + 1) * len(shift))
    before = weight[:, columns].double()
    if bool(shift.any()):
        projection.bias += (before @ shift.to(before.device)).to(projection.bias)
    weight[:, columns] = (before @ matrix.to(before.device)).to(weight)


def _add_biases(model: nn.Module, projections: list[nn.Module], *, savable: bool) -> None:
    """Biases of 0: where the architecture has a setting for them all that it asks for, else only the projections'."""
    new = _biases_by_setting(model, projections)
    if new is None and savable:
        raise InvalidArgumentError(
            f"The output projection of {type(model).__name__} has no bias and its configuration no setting for one: a "
            "saved copy would lose what the edits add. `savable=False` folds in memory; edits without a constant part "
            "(such as zero ablation) fold as they are."
        )
    if new is not None:
        setting, owners = new
        setattr(model.config, setting, True)  # pyright: ignore[reportArgumentType] (attributes of any type)
    else:
        owners = [projection for projection in projections if getattr(projection, "bias", None) is None]
    for owner in owners:
        weight: Any = owner.weight
        owner.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def _biases_by_setting(model: nn.Module, projections: list[nn.Module]) -> tuple[str, list[nn.Module]] | None:
    """A setting with which the architecture has biases here, and the modules that then lack one."""
    config: Any = model.config
    present, modules = {name for name, _ in model.named_parameters()}, dict(model.named_modules())
    for setting in _BIAS_SETTINGS:
        if getattr(config, setting, None) is not False:
            continue
        changed = copy.deepcopy(config)
        setattr(changed, setting, True)
        with torch.device("meta"):
            wanted = {name for name, _ in type(model)(changed).named_parameters()}
        added = wanted - present
        owners = [modules.get(name.removesuffix(".bias")) for name in sorted(added) if name.endswith(".bias")]
        if present <= wanted and len(owners) == len(added) and all(p in owners for p in projections):
            return setting, [owner for owner in owners if owner is not None]
    return None
