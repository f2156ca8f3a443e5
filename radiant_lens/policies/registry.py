"""Policies by name, for studies, their files and the command line; register a new policy in `POLICIES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from radiant_lens import _checks
from radiant_lens.policies.ablation import AblationPolicy
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.policies.matching import LEACEPolicy, LinearActPolicy, MeanShiftPolicy, MomentMatchingPolicy
from radiant_lens.policies.policy import Policy
from radiant_lens.policies.radiant import RadiantPolicy

POLICIES: dict[str, type] = {
    "radiant": RadiantPolicy,
    "iti": ITIPolicy,
    "mean_shift": MeanShiftPolicy,
    "moment_matching": MomentMatchingPolicy,
    "linear_act": LinearActPolicy,
    "leace": LEACEPolicy,
    "ablation": AblationPolicy,
}

# Settings that choose heads. A study has one rule of heads for all its arms, so they are no options there.
_HEAD_SETTINGS = {"heads", "n_layers", "n_heads"}


def option_names(policy: str) -> list[str]:
    """List the names of a policy's options, without those that choose heads."""
    return [f.name for f in fields(POLICIES[policy]) if f.name not in _HEAD_SETTINGS]


def make_policy(policy: str, options: Mapping[str, Any], heads: HeadChoice = "significant") -> Policy:
    """Create the policy of this name and check its options.

    Raises:
        UnknownNameError: an unknown policy, or an option that it does not have.
        InvalidArgumentError: an option out of its range.
    """
    _checks.known("policy", policy, POLICIES)
    for name in options:
        _checks.known(f"option of policy {policy!r}", name, option_names(policy))
    result: Policy = POLICIES[policy](**options, heads=heads)
    result.check()
    return result
