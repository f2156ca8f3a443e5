"""Can this model's heads be read and edited here?"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from radiant_lens.models import load_model, signature
from radiant_lens.sites import hook_name


def examine(name: str, device: str | None) -> dict[str, Any]:
    """Versions, devices, and checks of a model at `hook_z`; `ok` says whether all hold."""
    packages = ("radiant-lens", "transformer-lens", "transformers", "torch", "scikit-learn")
    report: dict[str, Any] = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    report["devices"] = ", ".join(["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))])
    model = load_model(name, device=device)
    report |= signature(model)
    layers = range(model.cfg.n_layers)
    shapes: dict[int, tuple[int, ...]] = {}
    inputs: dict[int, torch.Tensor] = {}

    def see(layer: int):
        def hook(z: torch.Tensor, hook: Any) -> torch.Tensor:
            shapes[layer] = tuple(z.shape)
            inputs[layer] = z.detach()
            return z

        return hook

    def double(z: torch.Tensor, hook: Any) -> torch.Tensor:
        return 2 * z

    tokens = model.to_tokens("one two three")
    with torch.no_grad():
        plain = model(tokens)
        with model.hooks(fwd_hooks=[(hook_name(layer), see(layer)) for layer in layers]):
            seen = model(tokens)
        with model.hooks(fwd_hooks=[(hook_name(layer), double) for layer in layers]):
            edited = model(tokens)
    expected = (*tokens.shape, model.cfg.n_heads, model.cfg.d_head)
    report["hook_z fires at every layer"] = all(layer in shapes for layer in layers)
    report["hook_z is [batch pos head d_head]"] = all(shape == expected for shape in shapes.values())
    report["reading changes nothing"] = bool(torch.equal(plain, seen))
    report["editing changes the output"] = not bool(torch.allclose(plain, edited))
    report["ok"] = all(value for value in report.values() if isinstance(value, bool))
    return report
