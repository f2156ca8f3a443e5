"""Fitting the layers of a steering in the order of their depth, each under the edits of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import NothingToEditError
from radiant_lens.linalg import gaussian_distance, masked_moments
from radiant_lens.policies.head_sample import prepare
from radiant_lens.policies.policy import Policy
from radiant_lens.sites import HeadSite
from radiant_lens.steering.steering import Steering, joined

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, repr=False)
class SequentialFit:
    """Result of `fit_sequential`.

    Attributes:
        steering: all layers' edits.
        moved: one row for each chosen head: `layer`, `head`; `flagged_before`, `flagged`, how many training
            activations its gate passes without and under the earlier layers' edits; `score_shift`, by how many of
            their standard deviations the mean of their scores moved; `distance`, 2-Wasserstein distance of their
            Gaussian moments over the root of the trace of the covariance; `edited`, whether a map was found.
    """

    steering: Steering
    moved: pd.DataFrame

    def __repr__(self) -> str:
        """The steering, and how far moments had moved at the median head."""
        later = self.moved.loc[self.moved["layer"] > self.moved["layer"].min(), "distance"].to_numpy()
        text = f", moments moved by {np.median(later):.2f} at the median later head" if len(later) else ""
        return f"SequentialFit({self.steering!r}{text})"


def fit_sequential(
    model: TransformerBridge,
    data: Dataset | Sequence[Statement],
    detector: RiskAwareDetector,
    policy: Policy,
    *,
    positions: str | Sequence[int] = "answer",
    max_tokens: int | None = None,
    progress: bool = False,
) -> SequentialFit:
    """Fit a policy's layers in the order of their depth, each on activations collected under the earlier ones.

    On the embedded models this gained nothing over a joint `fit` at the recommended settings and lost a little truth
    elsewhere (tests/benchmarks/depth_and_trust.py): later heads flag less under the earlier edits, and those they
    still flag lie nearer the boundary, so their edits are weaker. It is the joint fit that is recommended.

    The detector stays as it is. A layer at which nothing is left to edit is left out. The edited model is run once
    for each layer after the first.

    Args:
        model: from `load_model`.
        data: training statements, those that the detector was trained on.
        detector: fitted on unsteered activations.
        policy: which heads, which maps.
        positions: as the detector was trained at (see `collect`).
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        progress: show progress bars.

    Raises:
        NothingToEditError: no layer has anything to edit.
    """
    _checks.instance("detector", detector, RiskAwareDetector)
    _checks.instance("policy", policy, Policy, hint="such as `RadiantPolicy()`")
    options: dict[str, Any] = {"positions": positions, "max_tokens": max_tokens, "progress": progress}
    unsteered = collect(model, data, **options)
    sites = policy.sites(detector)
    parts: list[Steering] = []
    rows: list[pd.DataFrame] = []
    for layer in sorted({site.layer for site in sites}):
        cache = collect(model, data, steering=joined(parts), **options) if parts else unsteered
        here = [site for site in sites if site.layer == layer]
        try:
            parts.append(replace(policy, heads=here).fit(cache, detector))
            edited = True
        except NothingToEditError:
            edited = False
        rows.append(_moved(unsteered, cache, detector, here, policy.gate).assign(edited=edited))
    if not parts:
        raise NothingToEditError("No layer has anything to edit.")
    return SequentialFit(joined(parts), pd.concat(rows, ignore_index=True))


def _moved(
    before: HeadCache, after: HeadCache, detector: RiskAwareDetector, sites: Sequence[HeadSite], gate: str
) -> pd.DataFrame:
    samples = [prepare(cache, detector, lambda _: tuple(sites), gate) for cache in (before, after)]
    old, new = (masked_moments(sample.rows, sample.gated) for sample in samples)
    weights = samples[0].weights
    deviation = ((weights[:, None] @ old.covariance) @ weights[..., None]).flatten().clamp_min(1e-300).sqrt()
    size = old.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-300).sqrt()
    return pd.DataFrame(
        {
            "layer": [site.layer for site in sites],
            "head": [site.head for site in sites],
            "flagged_before": old.count.long().numpy(),
            "flagged": new.count.long().numpy(),
            "score_shift": ((weights * (new.mean - old.mean)).sum(-1) / deviation).numpy(),
            "distance": (gaussian_distance(old, new) / size).numpy(),
        }
    )
