"""Inputs of every policy: activations of the chosen heads, their classes, and the positions that the gate passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.detectors.joint import joint_scores
from radiant_lens.distributed import fitting_rank
from radiant_lens.linalg import MaskedSums, Moments, Scatter, class_means, class_scatters, masked_moments
from radiant_lens.policies.heads import require_collected
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import GATES, HeadScores, JointScores, opens, require_joint
from radiant_lens.steering.maps import Certificate, HeadMaps

# Covariances of fewer activations than this for each dimension are shrunk.
SHRINK_BELOW = 10.0


@dataclass(frozen=True)
class HeadRows:
    """Activations of some heads of a cache, read in slices of examples."""

    z: Float[Tensor, "example layer head d_head"]
    layers: Int[Tensor, " site"]
    heads: Int[Tensor, " site"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Axes `example site d_head`."""
        return len(self.z), len(self.layers), self.z.shape[-1]

    def __getitem__(self, index: slice | Int[Tensor, " some"]) -> Float[Tensor, "some site d_head"]:
        """Activations of some examples."""
        # One number for each head: an index of two axes takes three times as long, and all heads in order take none.
        every, numbers = self.z[index].flatten(1, 2), (self.layers * self.z.shape[2] + self.heads).to(self.z.device)
        if torch.equal(numbers, torch.arange(every.shape[1], device=every.device)):
            return every
        return every.index_select(1, numbers)

    def each_head(self) -> Iterator[Float[Tensor, "example d_head"]]:
        """All activations of one head after the other, in float64; only one layer is in memory at a time."""
        sites = zip(self.layers.tolist(), self.heads.tolist())
        for layer, of_layer in groupby(sites, key=lambda site: site[0]):
            z = self.z[:, layer].clone()
            for _, head in of_layer:
                yield z[:, head].double()
            # Before the next one is read.
            del z


@dataclass(frozen=True)
class HeadSample:
    """Activations of the chosen heads, the examples' classes, and marks of what the gate passes."""

    sites: tuple[HeadSite, ...]
    rows: HeadRows
    undesirable: Bool[Tensor, " example"]
    gated: Bool[Tensor, "example site"]
    weights: Float[Tensor, "site d_head"]
    biases: Float[Tensor, " site"]

    @cached_property
    def _class_means(self) -> Float[Tensor, "2 site d_head"]:
        """Means of the desirable and of the undesirable activations."""
        return class_means(self.rows, self.undesirable, workers=fitting_rank())

    @cached_property
    def _scatters(self) -> tuple[Scatter, Scatter]:
        """Desirable and undesirable activations around their means."""
        return self._read_classes(None)

    def _read_classes(self, masked: MaskedSums | None) -> tuple[Scatter, Scatter]:
        return class_scatters(
            self.rows,
            self.undesirable,
            self._class_means,
            shrink_below=SHRINK_BELOW,
            masked=masked,
            workers=fitting_rank(),
        )

    def gated_moments(self) -> Moments:
        """Compute the moments of the activations that each head's gate passes; those of few are shrunk.

        Those of many are added up in the pass that reads the classes, whose scatters are kept. Shrinkage needs a pass
        of its own.
        """
        few = self.gated.sum(0) < SHRINK_BELOW * self.rows.shape[-1]
        if bool(few.all()):
            return masked_moments(self.rows, self.gated, shrink_below=SHRINK_BELOW, workers=fitting_rank())
        sums = MaskedSums(self.gated, self._class_means)
        # Where the property keeps it.
        vars(self)["_scatters"] = self._read_classes(sums)
        moments = sums.moments(fitting_rank())
        if bool(few.any()):
            rows = HeadRows(self.rows.z, self.rows.layers[few], self.rows.heads[few])
            shrunk = masked_moments(rows, self.gated[:, few], shrink_below=SHRINK_BELOW, workers=fitting_rank())
            for name, values in vars(shrunk).items():
                getattr(moments, name)[few] = values
        return moments

    def class_moments(self, undesirable: bool) -> Moments:
        """Compute the moments of one class, with a ridge; covariances of few examples are shrunk."""
        return self._scatters[int(undesirable)].moments().ridged()

    def mean_difference(self) -> Float[Tensor, "site d_head"]:
        """Compute the vectors from the undesirable to the desirable mean."""
        desirable, undesirable = self._class_means
        return desirable - undesirable

    def within_class_covariance(self) -> Float[Tensor, "site d_head d_head"]:
        """Compute the pooled covariance around the class means, with a ridge; that of few examples is shrunk."""
        desirable, undesirable = self._scatters
        return desirable.pooled(undesirable).moments().ridged().covariance

    def total_covariance(self) -> Float[Tensor, "site d_head d_head"]:
        """Compute the covariance of all activations, with a ridge; that of few examples is shrunk."""
        every = torch.ones(self.rows.shape[:2], dtype=torch.bool)
        return masked_moments(self.rows, every, shrink_below=SHRINK_BELOW, workers=fitting_rank()).ridged().covariance


def prepare(
    cache: HeadCache,
    detector: RiskAwareDetector,
    choose: Callable[[RiskAwareDetector], tuple[HeadSite, ...]],
    gate: str,
) -> HeadSample:
    """Check the inputs of a policy, choose its heads, and gather their activations.

    Args:
        cache: training activations.
        detector: fitted on the same heads.
        choose: function from the detector to the heads, such as `Policy.sites`.
        gate: one of `GATES`.

    Raises:
        NotFittedError: the detector is not fitted.
        InvalidArgumentError: a gate or a choice of heads that is not allowed, shapes that differ, or a head of a layer
            that was not collected.
        DataError: one class only, or activations that are not finite.
        NothingToEditError: no head is significant.
    """
    _checks.choice("gate", gate, GATES)
    _checks.instance("cache", cache, HeadCache)
    require_fitted(detector)
    require_joint(gate, detector.joint_weights_ is not None)
    _checks.both_classes(cache.labels, "the training data")
    _checks.finite("cache.z", cache.z)
    sites = choose(detector)
    edited = [site.layer for site in sites]
    read = detector_scores(detector).hooked(edited, joint=gate == "joint")
    require_collected(read, cache.collected_layers, "the training cache")
    if gate != "none":
        require_collected(edited, detector.collected_layers_, "the detector's data")
    layers, index = (torch.tensor(axis) for axis in zip(*sites))
    # A head's own flags, and the votes of all heads of its layer: a gate may need either.
    flags = detector.flags(cache)
    own = flags[:, layers, index]
    thresholds = [int(detector.vote_thresholds_[site.layer]) for site in sites]
    votes = [flags[:, site.layer].sum(-1, keepdim=True) for site in sites]
    joint = detector.joint_flags(cache)[:, layers, None].unbind(1) if gate == "joint" else [None] * len(sites)
    gated = torch.cat([opens(gate, own[:, [i]], votes[i], thresholds[i], joint[i]) for i in range(len(sites))], dim=1)
    weights, biases = detector.weights_[layers, index], detector.biases_[layers, index]
    rows = HeadRows(cache.z, layers, index)
    return HeadSample(sites, rows, cache.labels == 1, gated, weights.double(), biases.double())


def assemble(
    policy: str,
    settings: Mapping[str, Any],
    sample: HeadSample,
    maps: HeadMaps,
    certificates: Sequence[Certificate],
    cache: HeadCache,
    detector: RiskAwareDetector,
    *,
    gate: str,
    **extra: Any,
) -> Steering:
    """Build a steering with its provenance."""
    meta = {
        "policy": {"name": policy, **settings},
        "detector": detector.get_params(),
        "gamma": settings.get("gamma") if settings.get("margin") is None else None,
        "split_seed": detector.seed,
        "data_hash": _data_hash(cache),
        "metrics": {"detector": {str(site): _rates(detector, site) for site in sample.sites}},
        "seen_groups": sorted({*cache.group_names, *detector.training_groups_, *detector.validation_groups_}),
        **cache.meta,
    }
    return Steering(sample.sites, maps, detector_scores(detector), gate, tuple(certificates), meta=meta, **extra)


def detector_scores(detector: RiskAwareDetector) -> HeadScores:
    """The scores of a fitted detector, as a steering holds them."""
    joint = joint_scores(detector.joint_weights_, detector.joint_biases_, detector.joint_carry_)
    scores = None if joint is None else JointScores(*joint)
    return HeadScores(detector.weights_, detector.biases_, detector.vote_thresholds_, scores)


def _data_hash(cache: HeadCache) -> str:
    """Hash the texts, positions and labels that a steering was fitted on."""
    columns = (cache.text_index, cache.positions, cache.labels)
    # A zero byte ends each text, so that two texts do not hash like their concatenation.
    texts = (text.encode() + b"\0" for text in cache.texts)
    return sha256(chain(texts, (column.long().cpu().contiguous().numpy().data for column in columns)))[:16]


def _rates(detector: RiskAwareDetector, site: HeadSite) -> dict[str, float]:
    named = {"fpr": detector.head_fpr_, "fnr": detector.head_fnr_, "risk": detector.head_risk_}
    return {name: float(values[site]) for name, values in named.items()}
