"""`fit_sequential`: fit the layers of a steering in order of depth, each under the edits of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.linalg import gaussian_distance, masked_moments
from radiant_lens.policies.head_sample import prepare
from radiant_lens.policies.policy import Policy
from radiant_lens.sites import HeadSite
from radiant_lens.steering.steering import joined

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, repr=False)
class SequentialFit:
    """Result of `fit_sequential`.

    Attributes:
        steering: edits of all layers.
        moved: one row for each chosen head: `layer`, `head`; `flagged_before`, `flagged`, the number of training
            activations that its gate passes without and under the earlier layers' edits; `score_shift`, the shift of
            the mean of their scores, in their standard deviations; `distance`, the 2-Wasserstein distance of their
            Gaussian moments over the root of the trace of the covariance; `edited`, True for a head with a map.
    """

    steering: Steering
    moved: pd.DataFrame

    def __repr__(self) -> str:
        """The steering, and the distance of moments at the median head."""
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
    """Fit a policy's layers in order of depth, each on activations collected under the earlier layers' edits.

    The joint `fit` is recommended instead. On the embedded models the sequential fit gained nothing under the gate
    "vote" and lost a little truth elsewhere (tests/benchmarks/depth_and_trust.py): later heads flag less under the
    earlier edits, and what they still flag lies nearer the boundary, so their edits are weaker.

    The detector does not change. Layers at which nothing is left to edit are skipped. Each layer after the first
    costs one pass of the edited model over the data.

    Args:
        model: from `load_model`.
        data: training statements, those that the detector was trained on.
        detector: fitted on unsteered activations.
        policy: its heads, maps and gate.
        positions: those of the detector's training data (see `collect`).
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        progress: show progress bars.

    Raises:
        NothingToEditError: no layer has anything to edit.
        InvalidArgumentError: the geometry "output", which is measured on the unsteered model.
    """
    _checks.instance("detector", detector, RiskAwareDetector)
    _checks.instance("policy", policy, Policy, hint="such as `RadiantPolicy()`")
    if getattr(policy, "geometry", None) == "output":
        raise InvalidArgumentError(
            'The geometry "output" is measured on the unsteered model, and `fit_sequential` steers it: use `fit`, or '
            "another `geometry`."
        )
    options: dict[str, Any] = {"positions": positions, "max_tokens": max_tokens, "progress": progress}
    unsteered = collect(model, data, **options)
    # Chosen once, for all layers: inside the loop the policy gets the heads of one layer by name, so settings that
    # count heads (`n_heads`, "least_risk:K") mean the whole model and not each layer.
    sites = policy.sites(detector)
    fitted: list[Steering] = []
    rows: list[pd.DataFrame] = []
    for layer in sorted({site.layer for site in sites}):
        cache = collect(model, data, steering=joined(fitted), **options) if fitted else unsteered
        here = [site for site in sites if site.layer == layer]
        try:
            fitted.append(replace(policy, heads=here).fit(cache, detector))
            edited = True
        except NothingToEditError:
            edited = False
        rows.append(_moved(unsteered, cache, detector, here, policy.gate).assign(edited=edited))
    if not fitted:
        raise NothingToEditError(
            "No layer has anything to edit: the gates pass no training activation, or those that they pass are "
            "desirable already."
        )
    return SequentialFit(joined(fitted), pd.concat(rows, ignore_index=True))


def _moved(
    before: HeadCache, after: HeadCache, detector: RiskAwareDetector, sites: Sequence[HeadSite], gate: str
) -> pd.DataFrame:
    samples = [prepare(cache, detector, lambda _: tuple(sites), gate) for cache in (before, after)]
    old, new = (masked_moments(sample.rows, sample.gated) for sample in samples)
    weights = samples[0].weights
    # A head that passes nothing has moments of zero; the clamps give it shift and distance 0 in place of 0 / 0.
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
