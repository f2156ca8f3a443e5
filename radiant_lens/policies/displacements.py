"""Families of displacements for the heads of a template: what they take from activations, and from a detector."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.families import Family, Ramp
from radiant_lens.analysis.steering import Steering
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.policies.head_sample import HeadRows, detector_scores
from radiant_lens.policies.heads import require_collected
from radiant_lens.policies.template import require_shape
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import require_joint
from radiant_lens.steering.maps import Certificate, EvidenceMaps, RankOneMaps

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


def evidence_family(template: Steering, detector: RiskAwareDetector | None) -> Family:
    """A displacement, and another one that grows with the evidence of the layer.

    Raises:
        InvalidArgumentError: no detector, one without joint scores or their ramps, or a head of a layer that it has not
            seen.
    """
    if detector is None:
        raise InvalidArgumentError('`family` "evidence" needs a detector: give `detector=...`.')
    return Family("evidence", template, ramp=_ramp(detector, template.sites))


def by_evidence(steering: Steering, detector: RiskAwareDetector) -> Steering:
    """The same vectors, each times the evidence of its layer, at every token.

    In place of a gate, which adds them wholly or not at all. DSAS (arXiv 2512.03661) scales other steerings by token in
    this manner, with a classifier of its own for each layer.

    Args:
        steering: with one vector for each head, as those of `ITIPolicy`, `MeanShiftPolicy` and `LeastKLPolicy`.
        detector: fitted with joint scores.

    Raises:
        InvalidArgumentError: another object, maps that are no vectors, a trust region, or a detector of another shape,
            without joint scores or their ramps, or that has not seen a layer.
        NotFittedError: the detector is not fitted.
    """
    _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    maps = steering.head_maps
    if not isinstance(maps, RankOneMaps) or bool(maps.read.any()):
        raise InvalidArgumentError(
            f"Only steerings that add one vector to each head can do so by evidence; got maps of kind {maps.kind!r}: "
            'use `ITIPolicy`, `MeanShiftPolicy`, `LeastKLPolicy(family="constant")` or `vector_steering`.'
        )
    if steering.trust is not None:
        raise InvalidArgumentError("This steering has a trust region, which decides at every token: fit it without.")
    require_fitted(detector)
    require_shape(detector, tuple(steering.scores.weights.shape))
    ramp = _ramp(detector, steering.sites)
    vectors, meta = maps.write * maps.shift[:, None], steering.meta
    return replace(
        steering,
        head_maps=EvidenceMaps(torch.zeros_like(vectors), vectors, ramp.start.to(vectors), ramp.steepness.to(vectors)),
        scores=detector_scores(detector),
        gate="none",
        # No promise of the policy carries over, nor a KL that was measured.
        certificates=tuple(Certificate(c.method, n_flagged=c.n_flagged) for c in steering.certificates),
        meta={
            **{key: value for key, value in meta.items() if key not in ("kl_budget", "least_kl", "metrics")},
            "policy": {"name": "by evidence", "of": meta.get("policy")},
            "gamma": None,
            "detector": detector.get_params(),
            "seen_groups": sorted(
                {*meta.get("seen_groups", ()), *detector.training_groups_, *detector.validation_groups_}
            ),
        },
    )


def _ramp(detector: RiskAwareDetector, sites: tuple[HeadSite, ...]) -> Ramp:
    require_fitted(detector)
    require_joint(None, detector.joint_weights_ is not None, evidence=True)
    if detector.joint_ramps_ is None:
        raise InvalidArgumentError(
            "This detector has joint scores but no ramps of evidence, as those of an earlier version and those that "
            "were restored from a steering: fit it again with `RiskAwareDetector(joint=True)`."
        )
    layers = [site.layer for site in sites]
    require_collected(layers, detector.collected_layers_, "the detector's data")
    start, end, size = detector.joint_ramps_[layers].double().unbind(1)
    return Ramp(start, 1 / (end - start), 1 / size)
