"""Held-out certificate of a steering: the share of activations still flagged after the edit, with exact bounds.

Tokens of one text are not independent, so the exact bounds count groups (questions): one random gated token of each.
Let `p_g` be the share of the gated tokens of group `g` that are still flagged. The count of one draw is a sum of
independent events with probabilities `p_g`, which for groups drawn at random is binomial with the mean of `p_g`, so the
bounds of Clopper and Pearson are exact. They hold for one draw that was fixed beforehand (by `seed`): the bound of the
most favourable of several draws would be too low, and the bound of an average has no exact form. Further draws are
therefore reported beside the first, as the mean and the largest count, to show how much the draw matters.

A draw says little of the worst token of a text, so the groups that are still flagged at any token are counted, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens.notebook import card, html_table
from radiant_lens.statistics.bounds import (
    Interval,
    binomial_upper,
    bootstrap_ratio,
    clopper_pearson,
    group_sums,
    groups_needed,
    one_per_group,
)

_ALL = "all"


@dataclass(frozen=True)
class HeldOutShare:
    """Share of gated activations that their head still flags after the edit.

    Attributes:
        name: the head, or "all". For a head, a draw takes one random gated token of each group; for "all", one random
            pair of a gated token and a head of each group.
        n_groups: groups with a gated activation.
        n_still_flagged: groups that are still flagged at the token of the first draw; the bounds count these.
        interval: exact two-sided interval (Clopper-Pearson).
        upper: exact one-sided upper bound.
        n_tokens: gated activations; for "all", summed over the heads.
        token_share: share of those that are still flagged, with a bootstrap interval over groups.
        n_any_flagged: groups that are still flagged at any gated token.
        draw_counts: `n_still_flagged` of every draw, beginning with the first.
    """

    name: str
    n_groups: int
    n_still_flagged: int
    interval: Interval
    upper: float
    n_tokens: int
    token_share: Interval
    n_any_flagged: int = 0
    draw_counts: tuple[int, ...] = ()

    @property
    def mean_still_flagged(self) -> float:
        """Mean of `n_still_flagged` over the draws."""
        return sum(self.draw_counts) / len(self.draw_counts) if self.draw_counts else float(self.n_still_flagged)

    @property
    def most_still_flagged(self) -> int:
        """Largest `n_still_flagged` of the draws."""
        return max(self.draw_counts, default=self.n_still_flagged)


@dataclass(frozen=True)
class HeldOutCertificate:
    """Result of `Steering.certify`: one row for each head, and one over all heads.

    The guarantee of a fit is about the moments that it was fitted on; this certificate is about held-out activations.
    """

    gamma: float | None
    confidence: float
    heads: tuple[HeldOutShare, ...]
    overall: HeldOutShare

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each head, and a last one over all heads."""
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
                "still flagged at any token": row.n_any_flagged,
                "mean of draws": row.mean_still_flagged,
                "most of draws": row.most_still_flagged,
                "counted in each group": _unit(row.name),
            }
            for row in (*self.heads, self.overall)
        )

    def _repr_html_(self) -> str:
        columns = ["head", "groups", "still flagged", "upper", "still flagged at any token"]
        rows = self.to_dataframe()[columns].iloc[::-1].to_dict("records")
        return card("HeldOutCertificate", str(self), html_table(rows, note=", in `.to_dataframe()`"))

    def __repr__(self) -> str:
        """The overall row, in one line."""
        return f"HeldOutCertificate({self})"

    def __str__(self) -> str:
        """The overall row as a sentence, with `gamma` for comparison."""
        row = self.overall
        if row.n_groups == 0:
            return "The gate passes no held-out activation: nothing is certified."
        text = (
            f"{row.n_still_flagged} of {row.n_groups} held-out groups still flagged after the edit at "
            f"{_unit(row.name)}: {row.interval:.1%}, at most {row.upper:.1%} with confidence {self.confidence:.0%} "
            f"({_draws(row)}); at any gated token {row.n_any_flagged} of {row.n_groups}; of all {row.n_tokens} gated "
            f"tokens {row.token_share.value:.1%}"
        )
        if self.gamma is None:
            return text + "."
        needed = groups_needed(self.gamma, confidence=self.confidence)
        few = f"; {needed} groups without a failure would be needed to confirm it" if row.n_groups < needed else ""
        return f"{text}. Nominal gamma: {self.gamma:.1%}{few}."


def _unit(name: str) -> str:
    """The activation of each group that a draw counts."""
    return "one random gated token and head" if name == _ALL else "one random gated token"


def _draws(row: HeldOutShare) -> str:
    n = max(len(row.draw_counts), 1)
    if n == 1:
        return "1 draw"
    return f"first of {n} draws: {row.mean_still_flagged:.1f} on average, {row.most_still_flagged} at most"


class Events(NamedTuple):
    """Activations at which the gate of each head is open, and at which the head still flags after the edit."""

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
    draws: int = 20,
) -> HeldOutCertificate:
    """Share of gated held-out activations that are still flagged, for each named head and over all heads.

    Args:
        names: of the heads, in the order of the events' axis `site`.
        events: the outcome at each held-out activation.
        groups: code of each example's group.
        gamma: share that the fit promised, for comparison; None where it promised nothing.
        confidence: of the bounds, in (0, 1).
        seed: of the first draw, which the bounds count; the next draws have the next seeds.
        draws: number of draws, at least 1.
    """
    gated, still = events
    seeds = range(seed, seed + draws)
    heads = tuple(_share(name, gated[:, i], still[:, i], groups, confidence, seeds) for i, name in enumerate(names))
    overall = _share(_ALL, gated.flatten(), still.flatten(), _spread(groups, events), confidence, seeds)
    return HeldOutCertificate(gamma, confidence, heads, overall)


def overall_counts(events: Events, groups: Int[Tensor, " example"], *, seed: int = 0) -> tuple[int, int]:
    """Number of groups still flagged at one random gated token and head, and number of groups with such a token."""
    gated = events.gated.flatten()
    still, spread = events.still_flagged.flatten()[gated], _spread(groups, events)[gated]
    return _draw(still, spread, seed), len(spread.unique())


def _spread(groups: Int[Tensor, " example"], events: Events) -> Int[Tensor, " event"]:
    """Group of each event, in the order of the flattened events."""
    return groups.repeat_interleave(events.gated.shape[1])


def _draw(still: Bool[Tensor, " event"], groups: Int[Tensor, " event"], seed: int) -> int:
    """Number of groups that are still flagged at one random event of each."""
    return int(still[one_per_group(groups, seed=seed)].sum())


def _share(
    name: str,
    gated: Bool[Tensor, " event"],
    still: Bool[Tensor, " event"],
    groups: Int[Tensor, " event"],
    confidence: float,
    seeds: Sequence[int],
) -> HeldOutShare:
    """The row of one head, or of all."""
    still, groups = still[gated], groups[gated]
    if len(still) == 0:
        # No gated activation, no promise: the upper bound is 1.
        empty = clopper_pearson(0, 0, confidence=confidence)
        return HeldOutShare(name, 0, 0, empty, 1.0, 0, Interval(float("nan"), 0.0, 1.0), 0, (0,) * len(seeds))
    flagged, tokens = group_sums(still, groups), group_sums(torch.ones_like(still), groups)
    n, counts = len(tokens), tuple(_draw(still, groups, seed) for seed in seeds)
    return HeldOutShare(
        name,
        n,
        counts[0],
        clopper_pearson(counts[0], n, confidence=confidence),
        binomial_upper(counts[0], n, confidence=confidence),
        len(still),
        bootstrap_ratio(flagged, tokens, confidence=confidence),
        int((flagged > 0).sum()),
        counts,
    )
