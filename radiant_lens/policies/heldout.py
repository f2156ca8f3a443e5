"""What an edit does to held-out activations: the share still flagged, with an exact bound over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens.caches import HeadCache
from radiant_lens.risks import (
    Interval,
    binomial_upper,
    bootstrap_ratio,
    clopper_pearson,
    group_sums,
    groups_needed,
    one_per_group,
)

if TYPE_CHECKING:
    from radiant_lens.policies.steering import Steering


@dataclass(frozen=True)
class HeldOutShare:
    """Share of gated activations that their head still flags after the edit.

    Attributes:
        name: the head, or "all".
        n_groups: groups with a gated activation; one random token of each counts for the bounds.
        n_still_flagged: how many of those are still flagged.
        interval: exact two-sided interval (Clopper-Pearson).
        upper: exact one-sided upper bound.
        n_tokens: all gated tokens; `token_share` is the share over them, with a bootstrap over groups.
    """

    name: str
    n_groups: int
    n_still_flagged: int
    interval: Interval
    upper: float
    n_tokens: int
    token_share: Interval


@dataclass(frozen=True)
class HeldOutCertificate:
    """Result of `Steering.certify`: one row for each head, and one over all of them.

    The guarantee of a fit is about its fitted moments; this is what held-out activations say.
    """

    gamma: float | None
    confidence: float
    heads: tuple[HeldOutShare, ...]
    overall: HeldOutShare

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head, and a last one over all."""
        return pd.DataFrame(
            {
                "head": row.name,
                "groups": row.n_groups,
                "still flagged": row.n_still_flagged,
                "share": row.interval.value,
                "low": row.interval.low,
                "high": row.interval.high,
                "upper": row.upper,
                "tokens": row.n_tokens,
                "token share": row.token_share.value,
            }
            for row in (*self.heads, self.overall)
        )

    def __str__(self) -> str:
        """The overall bound beside `gamma`, in words."""
        row = self.overall
        text = (
            f"{row.n_still_flagged} of {row.n_groups} held-out groups still flagged after the edit: "
            f"{row.interval.value:.1%} [{row.interval.low:.1%}, {row.interval.high:.1%}], at most {row.upper:.1%} "
            f"with confidence {self.confidence:.0%}; over all {row.n_tokens} gated tokens {row.token_share.value:.1%}"
        )
        if self.gamma is None:
            return text + "."
        needed = groups_needed(self.gamma, confidence=self.confidence)
        few = f"; {needed} groups without a failure would be needed to confirm it" if row.n_groups < needed else ""
        return f"{text}. Nominal gamma: {self.gamma:.1%}{few}."


def certify(steering: Steering, cache: HeadCache, *, confidence: float, seed: int = 0) -> HeldOutCertificate:
    """Share of gated held-out activations still flagged, for each head and over all."""
    gated, still = _events(steering, cache)
    groups = cache.groups
    heads = tuple(
        _share(str(site), gated[:, i], still[:, i], groups, confidence, seed) for i, site in enumerate(steering.sites)
    )
    flat_groups = groups.repeat_interleave(gated.shape[1])
    overall = _share("all", gated.flatten(), still.flatten(), flat_groups, confidence, seed)
    return HeldOutCertificate(steering.meta.get("gamma"), confidence, heads, overall)


def _events(steering: Steering, cache: HeadCache) -> tuple[Bool[Tensor, "example site"], Bool[Tensor, "example site"]]:
    """Where each head's gate is open, and where the head still flags after the edit.

    Flagged activations that a trust region keeps from being edited count as gated and still flagged.
    """
    gated, still = [], []
    for layer in steering.layers:
        z = cache.z[:, layer].double()
        edit = steering.displace(z, layer)
        after = z[:, edit.heads] + edit.displacement
        weights, biases = steering.scores.weights[layer].double(), steering.scores.biases[layer].double()
        flagged = (after * weights[edit.heads]).sum(-1) + biases[edit.heads] >= 0
        opened = edit.gated if steering.trust is None else edit.gated | edit.flagged
        gated.append(opened)
        still.append(flagged & opened)
    return torch.cat(gated, dim=1), torch.cat(still, dim=1)


def _share(
    name: str,
    gated: Bool[Tensor, " event"],
    still: Bool[Tensor, " event"],
    groups: Int[Tensor, " event"],
    confidence: float,
    seed: int,
) -> HeldOutShare:
    where = gated.nonzero().squeeze(1)
    if len(where) == 0:
        empty = clopper_pearson(0, 0, confidence=confidence)
        return HeldOutShare(name, 0, 0, empty, 1.0, 0, Interval(float("nan"), 0.0, 1.0))
    still, groups = still[where], groups[where]
    picked = still[one_per_group(groups, seed=seed)]
    n, events = len(picked), int(picked.sum())
    tokens = bootstrap_ratio(
        group_sums(still, groups), group_sums(torch.ones_like(still), groups), confidence=confidence
    )
    return HeldOutShare(
        name,
        n,
        events,
        clopper_pearson(events, n, confidence=confidence),
        binomial_upper(events, n, confidence=confidence),
        len(still),
        tokens,
    )
