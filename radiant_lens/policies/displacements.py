"""Displacements that are affine in the activation, for the heads of a template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.analysis.families import Family
from radiant_lens.analysis.steering import Steering
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.policies.head_sample import HeadRows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Groups on whose activations the mean and spread of coordinates are measured, for affine displacements.
_N_MOMENT_GROUPS = 100
# Least spread of a coordinate, as a share of the head's activations (root of their mean square). A head that reads the
# first token alone hardly varies on the text of the fit, but does on other text: in units of its own spread that text
# would lie thousands of units away, and an affine displacement would follow it there.
_LEAST_SPREAD = 0.05


def affine_family(
    model: TransformerBridge, train: Dataset, template: Steering, *, seed: int, max_tokens: int | None
) -> Family:
    """Displacements that are affine in the activation, in units of its spread on some groups of the training data."""
    cache = collect(model, train.sample(_N_MOMENT_GROUPS, seed=seed), max_tokens=max_tokens)
    layers, heads = (torch.tensor(numbers) for numbers in zip(*template.sites))
    moments = [_moments(z) for z in HeadRows(cache.z, layers, heads).each_head()]
    mean, spread = (torch.stack(parts) for parts in zip(*moments))
    return Family("affine", template, mean, spread)


def _moments(z: Float[Tensor, "example d_head"]) -> tuple[Float[Tensor, " d_head"], Float[Tensor, " d_head"]]:
    """Mean and spread of each coordinate of a head, the latter at least `_LEAST_SPREAD` of the head's size."""
    size = z.square().mean().sqrt()
    return z.mean(0), torch.maximum(z.std(0), _LEAST_SPREAD * size).clamp_min(1e-6)
