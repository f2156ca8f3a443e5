"""What an edit does to held-out activations: the share still flagged, with an exact bound over groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens.statistics.bounds import (
    Interval,
    binomial_upper,
    bootstrap_ratio,
    clopper_pearson,
    group_sums,
    groups_needed,
    one_per_group,
)


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
            f"{row.interval:.1%}, at most {row.upper:.1%} "
            f"with confidence {self.confidence:.0%}; over all {row.n_tokens} gated tokens {row.token_share.value:.1%}"
        )
        if self.gamma is None:
            return text + "."
        needed = groups_needed(self.gamma, confidence=self.confidence)
        few = f"; {needed} groups without a failure would be needed to confirm it" if row.n_groups < needed else ""
        return f"{text}. Nominal gamma: {self.gamma:.1%}{few}."


class Events(NamedTuple):
    """Where each head's gate is open, and where the head still flags after the edit."""

    gated: Bool[Tensor, "example site"]
    still_flagged: Bool[Tensor, "example site"]


def certificate(
    names: Sequence[str],
    events: Events,
    groups: Int[Tensor, " example"],
    *,
    gamma: float | None,
    confidence: float,
    seed: int = 0,
) -> HeldOutCertificate:
    """Share of gated held-out activations still flagged, for each named head and over all.

    Args:
        names: of the heads, in the order of the events' axis `site`.
        events: what happens to each held-out activation.
        groups: code of each example's group.
        gamma: what the fit promised, to stand beside it; None where it promised nothing.
        confidence: of the bounds, in (0, 1).
        seed: which token of each group counts.
    """
    gated, still = events
    heads = tuple(_share(name, gated[:, i], still[:, i], groups, confidence, seed) for i, name in enumerate(names))
    overall = _share("all", gated.flatten(), still.flatten(), _spread(groups, events), confidence, seed)
    return HeldOutCertificate(gamma, confidence, heads, overall)


def overall_counts(events: Events, groups: Int[Tensor, " example"], *, seed: int = 0) -> tuple[int, int]:
    """How many groups are still flagged at one random gated token of any head, and how many groups there are."""
    picked = _picked(events.gated.flatten(), events.still_flagged.flatten(), _spread(groups, events), seed)
    return int(picked.sum()), len(picked)


def _spread(groups: Int[Tensor, " example"], events: Events) -> Int[Tensor, " event"]:
    return groups.repeat_interleave(events.gated.shape[1])


def _picked(
    gated: Bool[Tensor, " event"], still: Bool[Tensor, " event"], groups: Int[Tensor, " event"], seed: int
) -> Bool[Tensor, " group"]:
    where = gated.nonzero().squeeze(1)
    return still[where][one_per_group(groups[where], seed=seed)]


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
    picked = _picked(gated, still, groups, seed)
    still, groups = still[where], groups[where]
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
