"""`HeadPolicy`: base of the policies whose maps need the activations of the chosen heads only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_sample import HeadSample, assemble, prepare
from radiant_lens.policies.heads import HeadChoice, choose_heads
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.maps import Certificate, HeadMaps


@dataclass(frozen=True, kw_only=True)
class HeadPolicy(ABC):
    """Base of policies that compute each head's map from its activations, without a promise.

    Args:
        heads: "significant", "layer", a number of heads of least risk, or a list of heads.
        n_layers: with heads "layer", the number of layers of least mean risk.
        gate: "none" (edited everywhere), or another gate of `RadiantPolicy`.

    Attributes:
        label: name of the policy in results.
    """

    label: ClassVar[str]

    heads: HeadChoice | None = "significant"
    n_layers: int = 1
    gate: str = "none"

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Compute the map of every chosen head.

        Args:
            cache: training activations.
            detector: fitted on the same heads.

        Raises:
            InvalidArgumentError: a parameter out of its range, or a head of a layer that was not collected.
            NothingToEditError: no head to edit.
        """
        self.check()
        sample = prepare(cache, detector, self.sites, self.gate)
        settings = {**asdict(self), "heads": [list(site) for site in sample.sites]}
        certificates = [Certificate(self.label, n_flagged=int(n)) for n in sample.gated.sum(0)]
        maps = self.maps(sample)
        return assemble(self.label, settings, sample, maps, certificates, cache, detector, gate=self.gate)

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        _checks.choice("gate", self.gate, GATES)

    def sites(self, detector: RiskAwareDetector) -> tuple[HeadSite, ...]:
        """Choose the heads that `fit` edits with this detector."""
        heads = self.default_heads(detector) if self.heads is None else self.heads
        return choose_heads(detector, heads, self.n_layers)

    def default_heads(self, detector: RiskAwareDetector) -> HeadChoice:
        """Choice of heads for `heads=None`."""
        return "significant"

    @abstractmethod
    def maps(self, sample: HeadSample) -> HeadMaps:
        """Compute the maps of the sample's heads."""
