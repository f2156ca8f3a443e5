"""What the policies share that treat every chosen head alike: check, choose heads, map, assemble."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.head_sample import HeadSample, assemble, prepare
from radiant_lens.policies.heads import HeadChoice, choose_heads
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.maps import Certificate, HeadMaps
from radiant_lens.steering.steering import Steering


@dataclass(frozen=True, kw_only=True)
class HeadPolicy(ABC):
    """A policy whose maps follow from the activations of the chosen heads alone, and that promises nothing.

    Args:
        heads: "significant", "layer", a number of heads of least risk, or the heads themselves.
        n_layers: with heads "layer", how many layers of least mean risk.
        gate: "none" (edited everywhere), or one of the others of `RadiantPolicy`.

    Attributes:
        label: what the policy is called in results.
    """

    label: ClassVar[str]

    heads: HeadChoice | None = "significant"
    n_layers: int = 1
    gate: str = "none"

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Find the map of every chosen head.

        Args:
            cache: training activations.
            detector: fitted on the same heads.

        Raises:
            InvalidArgumentError: a parameter out of its range.
            NothingToEditError: no head to edit.
        """
        self.check()
        sample = prepare(cache, detector, self.sites, self.gate)
        settings = {**asdict(self), "heads": [list(site) for site in sample.sites]}
        certificates = [Certificate(self.label, n_flagged=int(n)) for n in sample.gated.sum(0)]
        maps = self.maps(sample)
        return assemble(self.label, settings, sample, maps, certificates, cache, detector, gate=self.gate)

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        _checks.choice("gate", self.gate, GATES)

    def sites(self, detector: RiskAwareDetector) -> tuple[HeadSite, ...]:
        """The heads that `fit` edits with this detector."""
        heads = self.default_heads(detector) if self.heads is None else self.heads
        return choose_heads(detector, heads, self.n_layers)

    def default_heads(self, detector: RiskAwareDetector) -> HeadChoice:
        """The choice of heads where `heads` is None."""
        return "significant"

    @abstractmethod
    def maps(self, sample: HeadSample) -> HeadMaps:
        """The maps of the sample's heads."""
