"""Raising the margin until held-out activations confirm the promise.

Of a transport an activation is still flagged exactly when its standardised score is at least `kappa`, so the share
still flagged falls in `kappa`, and the least margin whose upper bound is low enough keeps the bound's confidence
(upper confidence bound calibration: Bates et al., arXiv 2101.02703): were its true share above `gamma`, then so would
have been that of a slightly larger margin, whose bound fails with probability `1 - confidence` at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from radiant_lens import _checks
from radiant_lens.caches import HeadCache
from radiant_lens.errors import GuaranteeError
from radiant_lens.statistics.bounds import binomial_upper, groups_needed
from radiant_lens.steering.held_out import overall_counts
from radiant_lens.steering.steering import Steering

RELATIVE_STEP = 0.01


@dataclass(frozen=True)
class Calibration:
    """What the margin must attain, and on what.

    Args:
        cache: activations of groups that took no part in the fit.
        gamma: the share still flagged that the upper bound may not exceed.
        confidence: of that bound, in (0, 1).
        max_margin: the largest `kappa` to try.
    """

    cache: HeadCache
    gamma: float
    confidence: float = 0.95
    max_margin: float = 1000.0

    def check(self, kappa: float) -> None:
        """Raise `InvalidArgumentError` for settings out of range."""
        _checks.between("confidence", self.confidence, 0, 1)
        _checks.between("max_margin", self.max_margin, kappa, closed="low")
        _checks.finite("calibrate.z", self.cache.z)

    def upper(self, steering: Steering) -> tuple[float, int]:
        """Upper bound of the share still flagged, and the number of groups it rests on."""
        n_flagged, n_groups = overall_counts(steering.events(self.cache), self.cache.groups)
        return binomial_upper(n_flagged, n_groups, confidence=self.confidence), n_groups


def calibrated(fit: Callable[[float], Steering], kappa: float, wanted: Calibration) -> Steering:
    """The steering of least margin, at least `kappa`, whose bound on the calibration part is low enough.

    Args:
        fit: from a margin to its steering.
        kappa: the nominal margin.
        wanted: what to attain.

    Raises:
        LeakageError: a calibration group took part in the fit.
        GuaranteeError: too few groups for any margin, or none up to `max_margin` does it.
    """

    def at(margin: float) -> tuple[Steering, float, int]:
        steering = fit(margin)
        return steering, *wanted.upper(steering)

    low = high = kappa
    steering, upper, n_groups = at(kappa)
    _checks.disjoint_groups(steering.meta["seen_groups"], wanted.cache.group_names, ("the fit", "calibration"))
    needed = groups_needed(wanted.gamma, confidence=wanted.confidence)
    if n_groups < needed:
        raise GuaranteeError(
            f"No margin can be confirmed: a share of at most {wanted.gamma:g} with confidence {wanted.confidence:g} "
            f"takes {needed} flagged calibration groups without a failure; there are {n_groups}."
        )
    if upper > wanted.gamma:
        high = wanted.max_margin
        steering, upper, _ = at(high)
        if upper > wanted.gamma:
            raise GuaranteeError(
                f"No margin up to {high:g} does it: at {high:g} the upper bound of the share still flagged is "
                f"{upper:.3g}, above gamma = {wanted.gamma:g}, on {n_groups} calibration groups."
            )
    while high > low * (1 + RELATIVE_STEP):
        trial, bound, _ = at(math.sqrt(low * high))
        if bound <= wanted.gamma:
            high, steering, upper = math.sqrt(low * high), trial, bound
        else:
            low = math.sqrt(low * high)
    report = {"margin": high, "upper": upper, "confidence": wanted.confidence, "n_groups": n_groups}
    seen = sorted({*steering.meta["seen_groups"], *wanted.cache.group_names})
    return replace(steering, meta={**steering.meta, "gamma": wanted.gamma, "calibration": report, "seen_groups": seen})
