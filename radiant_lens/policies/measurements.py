"""Measurements of a fit in a folder, so that a fit that was stopped does not measure again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from radiant_lens._files import load_folder, save_folder, sha256
from radiant_lens.analysis.families import Family
from radiant_lens.analysis.steering import Steering
from radiant_lens.models.identity import signature
from radiant_lens.models.tokens import pass_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KIND = "measurement"
# Part of every key: a new number makes all measurements of older formats unknown.
_FORMAT = 2


@dataclass(frozen=True)
class Measurements:
    """Measurements by the hash of all that they depend on.

    Args:
        folder: one folder for each, written aside and renamed; None keeps nothing.
        settings: what all measurements depend on, such as the model's signature.
    """

    folder: Path | None = None
    settings: tuple[Any, ...] = ()

    def get(self, measure: Callable[[], Mapping[str, Tensor]], *inputs: object) -> Mapping[str, Tensor]:
        """The measurement of these inputs, from the folder if it is there.

        Raises:
            ArtefactError: it is damaged.
            OutputError: it cannot be written.
        """
        if self.folder is None:
            return measure()
        path = self.folder / measurement_key(self.settings, *inputs)
        if path.exists():
            return load_folder(path, KIND)[0]
        result = measure()
        save_folder(path, KIND, result, {})
        return result

    def number(self, measure: Callable[[], float], *inputs: object) -> float:
        """The same for a number."""
        return float(self.get(lambda: {"value": torch.tensor(measure(), dtype=torch.float64)}, *inputs)["value"])


def measurement_key(*inputs: object) -> str:
    """Hash of inputs: tensors by their content, all else by its `repr`.

    Example:
        >>> measurement_key("gain", torch.zeros(2)) == measurement_key("gain", torch.zeros(3))
        False
    """
    # A zero byte ends each piece, so that two pieces do not hash like their concatenation.
    pieces = (piece for value in (_FORMAT, version("radiant-lens"), *inputs) for piece in (*_bytes(value), b"\0"))
    return sha256(pieces)[:24]


def fit_settings(model: TransformerBridge, family: Family, max_tokens: int | None) -> tuple[object, ...]:
    """Everything that all measurements of a fit of displacements depend on."""
    template, scores = family.template, family.template.scores
    # The limit of a pass decides which texts share a row, and so the order of the draws.
    plain = (signature(model), family.kind, template.sites, template.gate, pass_tokens(model, max_tokens))
    tensors = (*scores.used(joint=family.needs_joint), family.mean, family.spread)
    ramp = () if family.ramp is None else family.ramp
    return (*plain, *tensors, *ramp, *map_tensors(template))


def map_tensors(steering: Steering | None) -> tuple[object, ...]:
    """The maps of a steering, by name."""
    return () if steering is None else tuple(x for pair in sorted(steering.head_maps.tensors().items()) for x in pair)


def _bytes(value: object) -> tuple[bytes | memoryview, ...]:
    if isinstance(value, Tensor):
        return repr((value.dtype, tuple(value.shape))).encode(), value.detach().cpu().contiguous().numpy().data
    return (repr(value).encode(),)
