"""Knocking heads out: the edits that ask what a head is needed for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radiant_lens import _checks
from radiant_lens.policies.head_policy import HeadPolicy
from radiant_lens.policies.head_sample import HeadSample
from radiant_lens.steering.maps import DenseMaps, HeadMaps, ResampleMaps

ABLATIONS = ("zero", "mean", "resample")
MAX_BANK, N_PLANES = 1024, 24


@dataclass(frozen=True)
class AblationPolicy(HeadPolicy):
    """Replace the activation of heads by zero, by its mean over the training data, or by another example's.

    A resampled activation is drawn from at most 1,024 training examples by the activation that it replaces, so that
    the same activation is replaced alike alone, in a batch and with or without a KV cache.

    Args:
        kind: "zero", "mean" or "resample".
        seed: of resampling.
        heads: as for `RadiantPolicy`.
        n_layers: with heads "layer", how many.
        gate: as for `RadiantPolicy`; default "none", everywhere.
    """

    kind: str = "zero"
    seed: int = 0
    label = "ablation"

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        super().check()
        _checks.choice("kind", self.kind, ABLATIONS)
        _checks.seed(self.seed)

    def maps(self, sample: HeadSample) -> HeadMaps:
        """What the heads' activations are replaced by."""
        mean = sample.z.double().mean(0)
        if self.kind != "resample":
            return DenseMaps.constant(mean if self.kind == "mean" else torch.zeros_like(mean))
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(sample.z), generator=generator)[:MAX_BANK]
        planes = torch.randn((len(mean), N_PLANES, mean.shape[1]), generator=generator, dtype=torch.float64)
        return ResampleMaps(sample.z[drawn].double().transpose(0, 1).contiguous(), planes, mean)
