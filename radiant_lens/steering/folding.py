"""Fold a steering without a gate into the weights of a model's attention output projections."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from radiant_lens.errors import InvalidArgumentError, ModelMismatchError
from radiant_lens.sites import has_rows_for_inputs, input_width, output_projections, walk
from radiant_lens.steering.artefact import SteeringParts

# Settings of transformers that give the projections of the attention biases, nearest first.
_BIAS_SETTINGS = ("attention_bias", "bias")

# The only classes whose output is known to be `weight a + bias` and nothing else. Names, since this room must not load
# transformers. That of Falcon is a subclass of `Linear` that writes the same product in another way.
_PLAIN_PROJECTIONS = (
    "torch.nn.modules.linear.Linear",
    "transformers.pytorch_utils.Conv1D",
    "transformers.models.falcon.modeling_falcon.FalconLinear",
)

_REMEDY = "Fold into a plain model in float precision that is all in memory, or use `steer`, which changes no weight."


class _Fold(NamedTuple):
    """New parameters of one projection.

    Attributes:
        projection: the module.
        weight: as the module stores it.
        shift: what is added to its bias.
    """

    projection: Any
    weight: Tensor
    shift: Float[Tensor, " d_model"]


def fold(steering: SteeringParts, model: nn.Module, *, savable: bool) -> None:
    """Fold the maps of a steering into a model; `Steering.fold_into` documents it.

    All is checked and computed before the first parameter changes, so a refusal leaves the model as it was.
    """
    projections = plain_projections(steering, model)
    layers = sorted({site.layer for site in steering.sites})
    _refuse_shared_weights(model, [projections[layer] for layer in layers])
    folds = [_fold_layer(steering, projections[layer], layer) for layer in layers]
    needs_bias = [f.projection for f in folds if bool(f.shift.any()) and f.projection.bias is None]
    if needs_bias:
        _add_biases(model, [projections[layer] for layer in layers], savable=savable)
    for new in folds:
        _write(new)


def plain_projections(steering: SteeringParts, model: nn.Module) -> list[nn.Module]:
    """The output projections of a model, after checking that weights can hold these edits."""
    _require_constant_edits(steering)
    _refuse_adapters(model)
    projections = output_projections(model)
    for layer, projection in enumerate(projections):
        _require_plain(projection, layer)
    _require_shape(steering, model, projections)
    return projections


def _require_constant_edits(steering: SteeringParts) -> None:
    if steering.gate != "none":
        raise InvalidArgumentError(
            f"Only edits without a gate can be folded into weights; this steering has gate {steering.gate!r}, which "
            'decides at every token. Fit the policy with gate="none", or use `steer`.'
        )
    if steering.trust is not None:
        raise InvalidArgumentError("A trust region decides at every token: such edits cannot be folded; use `steer`.")
    if steering.head_maps.needs_joint:
        raise InvalidArgumentError(
            "An edit by evidence depends on the joint score of its layer at every token: such edits cannot be folded; "
            "use `steer`."
        )


def _refuse_adapters(model: nn.Module) -> None:
    """Refuse LoRA and the like, even at other modules: saving such a model saves the adapter without the weights."""
    # peft wraps a module and keeps the original as `base_layer`; transformers notes adapters that it loaded itself.
    wrapped = any("base_layer" in dict(module.named_children()) for _, module in walk(model))
    if wrapped or hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidArgumentError(
            f"{type(model).__name__} has an adapter (LoRA or the like), which adds to the output of its modules: "
            "nothing was folded. Merge it into the weights first (`model = model.merge_and_unload()`), or use `steer`."
        )


def _require_plain(projection: nn.Module, layer: int) -> None:
    """Refuse a projection whose output is not its weight times its input plus its bias.

    A subclass may quantise or wrap, so the exact class counts. The class is not enough: a quantiser may put a tensor of
    its own into a plain `Linear`, old-style weight normalisation computes the weight at every pass, and offloaded
    weights are not in memory.
    """
    kind = f"{type(projection).__module__}.{type(projection).__qualname__}"
    weight = vars(projection)["_parameters"].get("weight")
    if kind not in _PLAIN_PROJECTIONS:
        problem = f"is a {kind}, which is neither `torch.nn.Linear` nor the `Conv1D` of transformers"
    elif type(weight) is not nn.Parameter:
        problem = f"has a weight that is a {type(weight).__name__}, not a plain parameter"
    elif not weight.is_floating_point():
        problem = f"has weights of type {weight.dtype}"
    elif weight.is_meta:
        problem = "has weights that are offloaded"
    else:
        return
    raise InvalidArgumentError(f"The output projection of layer {layer} {problem}: nothing was folded. {_REMEDY}")


def _require_shape(steering: SteeringParts, model: nn.Module, projections: list[nn.Module]) -> None:
    n_layers, n_heads, d_head = steering.scores.weights.shape
    if (len(projections), input_width(projections[0])) != (n_layers, n_heads * d_head):
        raise ModelMismatchError(
            f"This steering is for {n_layers} layers with {n_heads} x {d_head} inputs of the output projection; "
            f"{type(model).__name__} has {len(projections)} layers with {input_width(projections[0])}."
        )


def _refuse_shared_weights(model: nn.Module, projections: list[nn.Module]) -> None:
    """Refuse weights that other modules use as well: the edit of one layer would act there, too."""
    uses = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    for projection in projections:
        if sum(parameter is projection.weight for parameter in uses) > 1:
            raise InvalidArgumentError(
                f"An output projection of {type(model).__name__} shares its weight with another module, which would "
                "be edited as well: nothing was folded. Use `steer`, which changes no weight."
            )


@torch.no_grad()
def _fold_layer(steering: SteeringParts, projection: Any, layer: int) -> _Fold:
    """New parameters of a projection: `W (G a + g) = (W G) a + W g`, for the columns of each edited head."""
    matrices, shifts = (values.double() for values in steering.head_maps.matrices())
    weight = projection.weight.double()
    weight = (weight.T if has_rows_for_inputs(projection) else weight).clone()
    added, d_head = weight.new_zeros(len(weight)), shifts.shape[1]
    for site, matrix, shift in zip(steering.sites, matrices.to(weight), shifts.to(weight)):
        if site.layer == layer:
            columns = slice(site.head * d_head, (site.head + 1) * d_head)
            added += weight[:, columns] @ shift
            weight[:, columns] = weight[:, columns] @ matrix
    new = (weight.T if has_rows_for_inputs(projection) else weight).to(projection.weight.dtype)
    # Half precision ends at 65,504: a large edit may not fit into it.
    if not bool(new.isfinite().all() and added.to(new.dtype).isfinite().all()):
        raise InvalidArgumentError(
            f"The folded weights of layer {layer} are too large for {new.dtype}: nothing was folded. Use a smaller "
            "edit, or a model in bfloat16 or float32."
        )
    return _Fold(projection, new, added)


@torch.no_grad()
def _write(new: _Fold) -> None:
    new.projection.weight.copy_(new.weight)
    if new.projection.bias is not None:
        # Rounded once, after the sum over the heads.
        new.projection.bias.copy_(new.projection.bias.double() + new.shift)


def _add_biases(model: nn.Module, projections: list[nn.Module], *, savable: bool) -> None:
    """Add biases of 0: to all modules that the architecture's setting asks for, else to the projections alone."""
    setting_and_owners = _biases_by_setting(model, projections)
    if setting_and_owners is None and savable:
        raise InvalidArgumentError(
            f"The output projection of {type(model).__name__} has no bias and its configuration no setting for one: a "
            "saved copy would lose what the edits add. `savable=False` folds in memory; edits without a constant part "
            "(such as zero ablation) fold as they are."
        )
    if setting_and_owners is not None:
        setting, owners = setting_and_owners
        setattr(model.config, setting, True)  # pyright: ignore[reportArgumentType] (attributes of any type)
    else:
        owners = [projection for projection in projections if getattr(projection, "bias", None) is None]
    for owner in owners:
        weight: Any = owner.weight
        owner.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def _biases_by_setting(model: nn.Module, projections: list[nn.Module]) -> tuple[str, list[nn.Module]] | None:
    """A setting with which the architecture has biases at the projections, and the modules that then lack one."""
    config: Any = model.config
    present, modules = {name for name, _ in model.named_parameters()}, dict(model.named_modules())
    for setting in _BIAS_SETTINGS:
        if getattr(config, setting, None) is not False:
            continue
        changed = copy.deepcopy(config)
        setattr(changed, setting, True)
        # The architecture itself tells which parameters the setting brings; on "meta" it takes no memory.
        with torch.device("meta"):
            with_setting = {name for name, _ in type(model)(changed).named_parameters()}
        added = with_setting - present
        owners = [modules.get(name.removesuffix(".bias")) for name in sorted(added) if name.endswith(".bias")]
        # Taken only if it brings biases and nothing else, and brings them to every projection in question.
        if present <= with_setting and len(owners) == len(added) and all(p in owners for p in projections):
            return setting, [owner for owner in owners if owner is not None]
    return None
