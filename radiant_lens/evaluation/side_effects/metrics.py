"""Metrics of `side_effects`: plain and steered values over the same groups, and the interval of their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.statistics.bounds import Interval, bootstrap_ratio, clopper_pearson, group_sums, share_interval
from radiant_lens.statistics.paired import GroupSums, Link, paired_difference

LEAST_GROUPS = 6
"""With fewer groups no test of exchanged signs reaches a p-value of .05, so a reading would be an accident."""


class Metric(NamedTuple):
    """Meaning of a metric, and its computation from a ratio of sums.

    Attributes:
        words: the metric in words, with its unit, for tables.
        is_share: True if it lies in [0, 1] in every group.
        link: function of the ratio.
        of_edit: True if it compares the steered model with the plain one, so that it is 0 without a steering.
    """

    words: str
    is_share: bool = False
    link: Link = np.asarray
    of_edit: bool = False


METRICS = {
    "cross_entropy": Metric("cross entropy of neutral text, nats a token"),
    "perplexity": Metric("perplexity of neutral text", link=np.exp),
    "kl": Metric("KL from plain to steered on neutral text, nats a token", of_edit=True),
    "edited_share": Metric("share of the tokens of neutral text that are edited", is_share=True, of_edit=True),
    "repetition": Metric("repetition: share of an answer's runs of 3 words that it has had before", is_share=True),
    "dist_1": Metric("distinct words, as a share of an answer's words", is_share=True),
    "dist_2": Metric("distinct pairs of words, as a share of an answer's words", is_share=True),
    "empty_answers": Metric("share of the answers that are empty", is_share=True),
    "words": Metric("words of an answer"),
    "accuracy": Metric("accuracy: share of the benchmark's questions", is_share=True),
}


class Ratio(NamedTuple):
    """Numerators and denominators of a metric, for each example."""

    top: Float[Tensor, " example"]
    bottom: Float[Tensor, " example"]


class SideEffect(NamedTuple):
    """One metric without and with the steering, and the difference (steered less plain); 95% intervals over groups."""

    plain: Interval
    steered: Interval
    difference: Interval
    n_groups: int

    @property
    def reading(self) -> str:
        """The difference in words.

        "changed" if its interval leaves out 0, "no clear change" if it holds 0, "too few groups" for fewer than
        `LEAST_GROUPS`, "not measured" if a side has no value.
        """
        if math.isnan(self.difference.value):
            return "not measured"
        if self.n_groups < LEAST_GROUPS:
            return "too few groups"
        return "changed" if self.difference.low > 0 or self.difference.high < 0 else "no clear change"


def compare(name: str, groups: Sequence[str], plain: Ratio, steered: Ratio) -> SideEffect:
    """Compare a metric of the plain and the steered model on the same examples.

    Args:
        name: one of `METRICS`.
        groups: of the examples.
        plain: of the plain model.
        steered: of the steered model.
    """
    metric = METRICS[name]
    codes = torch.tensor(np.unique(list(groups), return_inverse=True)[1])
    one, two = (GroupSums(*(group_sums(side, codes) for side in ratio)) for ratio in (plain, steered))
    # That a plain model edits no token is certain: an interval of zeros from these groups alone would not be 0.
    before = Interval(0.0, 0.0, 0.0) if metric.of_edit else _interval(metric, one)
    after = _interval(metric, two)
    return SideEffect(before, after, _difference(metric, one, two, after), int(codes.max()) + 1)


def _interval(metric: Metric, sums: GroupSums) -> Interval:
    interval = share_interval(*sums) if metric.is_share else bootstrap_ratio(*sums)
    # A link is monotone, so the ends of the ratio's interval map to those of the metric's.
    return Interval(*map(float, metric.link(np.array(interval))))


def _difference(metric: Metric, plain: GroupSums, steered: GroupSums, after: Interval) -> Interval:
    if metric.of_edit:
        return after
    value, low, high, _ = paired_difference(steered, plain, link=metric.link)
    changed = [not torch.equal(one, two) for one, two in zip(plain, steered)]
    if metric.is_share and not any(changed) and not math.isnan(value):
        # The bootstrap of groups that all agree has no width, as if no other group could differ. At most this share
        # of all groups does, and a share changes by at most 1 in each.
        low, high = (-(most := clopper_pearson(0, len(plain.denominators)).high), most)
    return Interval(value, low, high)
