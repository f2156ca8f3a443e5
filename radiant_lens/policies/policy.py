"""`Policy`: the interface of all policies, for studies and for fitting layer by layer."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.sites import HeadSite


def needs_joint(policy: object) -> bool:
    """True where the edits of a policy, or its gate, need a detector with joint scores of layers."""
    return getattr(policy, "gate", None) == "joint" or getattr(policy, "family", None) == "evidence"


@runtime_checkable
class Policy(Protocol):
    """Settings of an edit, as a frozen dataclass: `dataclasses.replace` gives the same policy with other settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def heads(self) -> HeadChoice | None:
        """Choice of heads to edit (see `radiant_lens.policies.heads`); None for the policy's own default."""
        ...

    @property
    def gate(self) -> str:
        """Rule for the positions at which a head is edited."""
        ...

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a setting out of its range; `fit` calls it first."""
        ...

    def sites(self, detector: RiskAwareDetector) -> tuple[HeadSite, ...]:
        """Choose the heads that `fit` edits with this detector."""
        ...

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """Compute the edits of the chosen heads from training activations."""
        ...
