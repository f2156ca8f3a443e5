"""Ablation of heads: their activations are replaced, to measure their role."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radiant_lens import _checks
from radiant_lens.policies.head_policy import HeadPolicy
from radiant_lens.policies.head_sample import HeadSample
from radiant_lens.steering.maps import DenseMaps, HeadMaps, ResampleMaps

ABLATIONS = ("zero", "mean", "resample")
# 24 signs make 16 million cells, so that two activations of a data set seldom share one by chance.
MAX_BANK, N_PLANES = 1024, 24


@dataclass(frozen=True)
class AblationPolicy(HeadPolicy):
    """Replace the activation of heads by zero, by its mean over the training data, or by another example's.

    A resampled activation comes from one of at most 1,024 training examples. The activation that is replaced decides
    from which, so that the result does not depend on the batch or the KV cache.

    Args:
        kind: "zero", "mean" or "resample".
        seed: of resampling.
        heads: as for `RadiantPolicy`.
        n_layers: with heads "layer", the number of layers.
        gate: as for `RadiantPolicy`; default "none", everywhere.
    """

    kind: str = "zero"
    seed: int = 0
    label = "ablation"

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        super().check()
        _checks.choice("kind", self.kind, ABLATIONS)
        _checks.seed(self.seed)

    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute constants, or a bank of activations to draw from."""
        if self.kind == "zero":
            return DenseMaps.constant(torch.zeros(sample.rows.shape[1:], dtype=torch.float64))
        mean = torch.stack([z.mean(0) for z in sample.rows.each_head()])
        if self.kind == "mean":
            return DenseMaps.constant(mean)
        # One generator for bank and planes: the seed fixes both, whatever else the process draws.
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(sample.undesirable), generator=generator)[:MAX_BANK]
        planes = torch.randn((len(mean), N_PLANES, mean.shape[1]), generator=generator, dtype=torch.float64)
        return ResampleMaps(sample.rows[drawn].double().transpose(0, 1).contiguous(), planes, mean)
