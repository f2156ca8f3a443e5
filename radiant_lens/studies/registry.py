"""The policies that a study knows by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.ablation import AblationPolicy
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.policies.matching import LEACEPolicy, LinearActPolicy, MeanShiftPolicy, MomentMatchingPolicy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.policies.steering import Steering


@runtime_checkable
class Policy(Protocol):
    """What a study needs of a policy: a frozen dataclass with a field `heads`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fit(self, cache: HeadCache, detector: RiskAwareDetector) -> Steering:
        """From activations and a detector to a steering."""
        ...


POLICIES: dict[str, type] = {
    "radiant": RadiantPolicy,
    "iti": ITIPolicy,
    "mean_shift": MeanShiftPolicy,
    "moment_matching": MomentMatchingPolicy,
    "linear_act": LinearActPolicy,
    "leace": LEACEPolicy,
    "ablation": AblationPolicy,
}

# Set by the study itself.
_OWN = {"heads", "n_layers", "n_heads"}


def option_names(policy: str) -> list[str]:
    """Names of the options that an arm may give to a policy."""
    return [f.name for f in fields(POLICIES[policy]) if f.name not in _OWN]


def make_policy(policy: str, options: dict[str, Any], heads: Any = "significant") -> Policy:
    """The policy with its options, checked.

    Raises:
        UnknownNameError: no such policy, or no such option of it.
        InvalidArgumentError: an option out of its range.
    """
    _checks.known("policy", policy, POLICIES)
    for name in options:
        _checks.known(f"option of policy {policy!r}", name, option_names(policy))
    made = POLICIES[policy](**options, heads=heads)
    if hasattr(made, "check"):
        made.check()
    return made
