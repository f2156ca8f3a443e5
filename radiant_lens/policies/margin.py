"""Calibration: raise the margin until held-out activations confirm the promise.

A transport leaves an activation flagged exactly where its standardised score is at least `kappa`. So the share still
flagged falls as `kappa` rises, and the least margin whose upper bound is low enough keeps the bound's confidence
(upper confidence bound calibration: Bates et al., arXiv 2101.02703). The reason: let `kappa*` be the least margin with
a true share of at most `gamma`. A chosen margin below `kappa*` needs an upper bound of at most `gamma` at a margin
whose true share is above `gamma`. As the bounds fall with the margin, that is one event, the failure of the bound just
below `kappa*`, of probability `1 - confidence` at most. Many margins are tried, but no correction for many is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.errors import GuaranteeError
from radiant_lens.statistics.bounds import binomial_upper, groups_needed
from radiant_lens.steering.held_out import overall_counts

# The search stops when the margin is known to 1%. It returns the upper end, which met the bound itself.
RELATIVE_STEP = 0.01


@dataclass(frozen=True)
class Calibration:
    """Goal of a calibration and the data that must confirm it.

    Args:
        cache: activations of groups that took no part in the fit.
        gamma: largest allowed upper bound of the share still flagged.
        confidence: of that bound, in (0, 1).
        max_margin: largest `kappa` to try.
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
        """Compute the upper bound of the share still flagged, and the number of groups that it rests on."""
        n_flagged, n_groups = overall_counts(steering.events(self.cache), self.cache.groups)
        return binomial_upper(n_flagged, n_groups, confidence=self.confidence), n_groups


class _Trial(NamedTuple):
    """A margin with its steering and the bound that the calibration groups give it."""

    margin: float
    steering: Steering
    upper: float
    n_groups: int


def calibrated(fit: Callable[[float], Steering], kappa: float, goal: Calibration) -> Steering:
    """Fit the steering of least margin, at least `kappa`, whose bound on the calibration data is low enough.

    Args:
        fit: function from a margin to its steering.
        kappa: the nominal margin.
        goal: the bound to attain, and the data.

    Raises:
        LeakageError: a calibration group took part in the fit.
        GuaranteeError: too few groups for any margin, or no margin up to `max_margin` meets the bound.
    """

    def attempt(margin: float) -> _Trial:
        steering = fit(margin)
        return _Trial(margin, steering, *goal.upper(steering))

    nominal = attempt(kappa)
    _checks.disjoint_groups(nominal.steering.meta["seen_groups"], goal.cache.group_names, ("the fit", "calibration"))
    _check_groups(nominal.n_groups, goal)
    best = nominal if nominal.upper <= goal.gamma else _raise_margin(attempt, kappa, goal)
    report = {
        "margin": best.margin,
        "upper": best.upper,
        "confidence": goal.confidence,
        "n_groups": nominal.n_groups,
    }
    # The margin was chosen on these groups, so a certificate on them would be optimistic: `certify` refuses them.
    seen = sorted({*best.steering.meta["seen_groups"], *goal.cache.group_names})
    meta = {**best.steering.meta, "gamma": goal.gamma, "calibration": report, "seen_groups": seen}
    return replace(best.steering, meta=meta)


def _check_groups(n_groups: int, goal: Calibration) -> None:
    needed = groups_needed(goal.gamma, confidence=goal.confidence)
    if n_groups < needed:
        raise GuaranteeError(
            f"No margin can be confirmed: a share of at most {goal.gamma:g} with confidence {goal.confidence:g} "
            f"takes {needed} flagged calibration groups without a failure; there are {n_groups}. Collect more groups, "
            "or raise `gamma`."
        )


def _raise_margin(attempt: Callable[[float], _Trial], kappa: float, goal: Calibration) -> _Trial:
    """Search the least margin that meets the bound by bisection of its logarithm."""
    best = attempt(goal.max_margin)
    if best.upper > goal.gamma:
        raise GuaranteeError(
            f"No margin up to {best.margin:g} does it: at {best.margin:g} the upper bound of the share still flagged "
            f"is {best.upper:.3g}, above gamma = {goal.gamma:g}, on {best.n_groups} calibration groups."
        )
    # The bound must fall in the margin for the search to be valid. It does for transports; the bounds of other maps
    # and of trust regions may not, and then the margin is valid (its own bound was met) but may not be the least.
    low = kappa
    while best.margin > low * (1 + RELATIVE_STEP):
        trial = attempt(math.sqrt(low * best.margin))
        if trial.upper <= goal.gamma:
            best = trial
        else:
            low = trial.margin
    return best
