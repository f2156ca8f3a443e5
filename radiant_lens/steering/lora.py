"""A steering without a gate as a PEFT LoRA of the attention output projections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from radiant_lens._files import check_target, write_errors, write_text
from radiant_lens.errors import OutputError
from radiant_lens.sites import has_rows_for_inputs
from radiant_lens.steering.artefact import SteeringParts
from radiant_lens.steering.folding import plain_projections
from radiant_lens.steering.maps import RankOneMaps

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_lora(steering: SteeringParts, folder: str | Path, model: nn.Module) -> Path:
    """Write a steering as a LoRA; `Steering.to_lora` documents it."""
    folder, projections = Path(folder), plain_projections(steering, model)
    check_target(folder / _WEIGHTS)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _CONFIG).is_file():
        raise OutputError(f"{str(folder)!r} is a folder that is no adapter, and is not replaced: choose another name.")
    layers = sorted({site.layer for site in steering.sites})
    names = {id(module): name for name, module in model.named_modules()}
    parts = {names[id(projections[layer])]: _factors(steering, projections[layer], layer) for layer in layers}
    rank = max(a.shape[0] for a, _, _ in parts.values())
    has_bias = any(bool(bias.any()) for _, _, bias in parts.values())
    tensors: dict[str, Tensor] = {}
    for name, (a, b, bias) in parts.items():
        prefix, missing = f"base_model.model.{name}", rank - a.shape[0]
        # One rank for all layers: rows and columns of zeros add nothing.
        tensors[f"{prefix}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, missing)).float().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = nn.functional.pad(b, (0, missing)).float().contiguous()
        if has_bias:
            tensors[f"{prefix}.lora_B.bias"] = bias.float()
    config = _config(model, rank, list(parts), fan_in_fan_out=has_rows_for_inputs(projections[0]), lora_bias=has_bias)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    write_text(folder / _CONFIG, json.dumps(config, indent=1))
    return folder


def _config(model: nn.Module, rank: int, names: list[str], *, fan_in_fan_out: bool, lora_bias: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model.config, "name_or_path", None),
        "inference_mode": True,
        "r": rank,
        # PEFT multiplies the product by alpha / r.
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": lora_bias,
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": names,
    }


def _factors(
    steering: SteeringParts, projection: Any, layer: int
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_model rank"], Float[Tensor, " d_model"]]:
    """`A`, `B` and the bias of one projection: `W (G a + g) = W a + B A a + W g` with `B A = W (G - I)`."""
    weight = projection.weight.detach().double().cpu()
    weight = weight.T if has_rows_for_inputs(projection) else weight
    index = [i for i, site in enumerate(steering.sites) if site.layer == layer]
    maps = steering.head_maps.take(torch.tensor(index))
    matrices, shifts = (values.double().cpu() for values in maps.matrices())
    d_head = shifts.shape[1]
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    bias = weight.new_zeros(len(weight))
    for i, site in enumerate(steering.sites[i] for i in index):
        part = weight[:, site.head * d_head : (site.head + 1) * d_head]
        bias += part @ shifts[i]
        if isinstance(maps, RankOneMaps):
            # `G - I = write read'`: one row and one column for each head.
            read, write = maps.read[i : i + 1].double().cpu(), maps.write[i].double().cpu()[:, None]
        else:
            read = torch.eye(d_head, dtype=torch.float64)
            write = matrices[i] - read
        placed = weight.new_zeros(len(read), weight.shape[1])
        placed[:, site.head * d_head : (site.head + 1) * d_head] = read
        rows.append(placed)
        columns.append(part @ write)
    return torch.cat(rows), torch.cat(columns, dim=1), bias
