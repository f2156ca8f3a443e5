"""Strength of a steering by the KL that is measured at it.

Policies state their strength in units of their own: standard deviations, a probability, a share of the way. The KL in
nats a token on desirable text is one unit for all, so steerings are compared at equal KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE, Statement
from radiant_lens.errors import ConvergenceError, DataError
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.statistics.bounds import group_sums, ratio_upper
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE, MAX_TRIALS = 0.03, 12
# A larger strength that changes nothing means that nothing is edited: its gate stays shut, or its maps are zero.
MAX_STRENGTH = 1e4


class MeasuredStrength(NamedTuple):
    """A strength with the KL that was measured at it, in nats a token."""

    strength: float
    kl: float


class KLCurve:
    """KL as a function of strength; measurements are kept, so that several budgets share them.

    Args:
        measure: from a strength to the KL at it.
        start: first strength to try, positive.
    """

    def __init__(self, measure: Callable[[float], float], *, start: float = 1.0) -> None:
        self._measure, self._start = measure, start
        self.trials: list[MeasuredStrength] = []

    def at(self, budget: float, *, tolerance: float = TOLERANCE) -> MeasuredStrength:
        """Find the least strength at which the KL meets a budget.

        KL grows about as the square of the strength, so each trial is a secant step of its root. A bracket keeps the
        steps from running away where it does not.

        Args:
            budget: KL in nats a token, positive.
            tolerance: allowed relative difference of the measured KL from the budget.

        Raises:
            InvalidArgumentError: a budget that is not positive.
            ConvergenceError: no strength meets the budget; says the nearest ones.
        """
        _checks.between("budget", budget, 0)
        low, high = self._bracket(budget)
        for _ in range(MAX_TRIALS):
            near = min((low, high), key=lambda trial: abs(trial.kl - budget))
            if abs(near.kl - budget) <= tolerance * budget:
                return near
            strength = _next_strength(low, high, budget) if self.trials else self._start
            if strength > MAX_STRENGTH:
                break
            self.trials.append(MeasuredStrength(strength, self._measure(strength)))
            low, high = self._bracket(budget)
        raise ConvergenceError(
            f"No strength gives a KL of {budget:g} within {tolerance:.0%}: {low.strength:.4g} gives {low.kl:.4g}, "
            + (f"{high.strength:.4g} gives {high.kl:.4g}." if math.isfinite(high.kl) else "and larger ones no more.")
        )

    def _bracket(self, budget: float) -> tuple[MeasuredStrength, MeasuredStrength]:
        """The least strength that was measured to exceed the budget, and the largest one below that does not."""
        above = [trial for trial in self.trials if trial.kl >= budget]
        high = min(above, default=MeasuredStrength(math.inf, math.inf))
        below = [trial for trial in self.trials if trial.kl < budget and trial.strength < high.strength]
        return max(below, default=MeasuredStrength(0.0, 0.0)), high


def strength_at_kl(
    measure: Callable[[float], float], budget: float, *, start: float = 1.0, tolerance: float = TOLERANCE
) -> MeasuredStrength:
    """Find the strength at which a measured KL meets one budget (see `KLCurve`).

    Example:
        >>> round(strength_at_kl(lambda c: 0.5 * c**2, 0.02).strength, 6)
        0.2
    """
    return KLCurve(measure, start=start).at(budget, tolerance=tolerance)


def _next_strength(low: MeasuredStrength, high: MeasuredStrength, budget: float) -> float:
    """The secant step in the root of the KL; ten times more at most where nothing above the budget is known."""
    target = math.sqrt(budget)
    if math.isinf(high.strength):
        return low.strength * min(target / math.sqrt(low.kl), 10.0) * 1.01 if low.kl > 0 else 10 * low.strength
    a, b = math.sqrt(low.kl), math.sqrt(high.kl)
    share = (target - a) / (b - a)
    # Not too near an end: a curve that is bent would then need many steps.
    return low.strength + min(max(share, 0.05), 0.95) * (high.strength - low.strength)


class GroupedKL(NamedTuple):
    """KL over the answers of statements, summed within each group, with the numbers of tokens."""

    kl: Float[Tensor, " group"]
    n_tokens: Float[Tensor, " group"]

    @property
    def mean(self) -> float:
        """KL in nats a token."""
        return float(self.kl.sum() / self.n_tokens.sum())

    def upper(self, confidence: float) -> float:
        """Upper bound of the mean KL a token over groups like these (bootstrap over groups)."""
        return ratio_upper(self.kl, self.n_tokens, confidence=confidence)


def measure_kl(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering,
    *,
    max_tokens: int | None = None,
) -> GroupedKL:
    """KL from the unsteered to the steered model over the answers of statements, by group.

    Raises:
        DataError: no statements.
    """
    if not statements:
        raise DataError("There are no statements to measure the KL on.")
    scored = score_statements(model, statements, steering, max_tokens=max_tokens)
    names = {name: i for i, name in enumerate(dict.fromkeys(s.group for s in statements))}
    groups = torch.tensor([names[s.group] for s in statements])
    return GroupedKL(group_sums(scored.kl, groups), group_sums(scored.n_tokens, groups))


def mean_kl(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering,
    *,
    max_tokens: int | None = None,
) -> float:
    """KL from the unsteered to the steered model, in nats a token, over the answers of statements.

    Raises:
        DataError: no statements.
    """
    return measure_kl(model, statements, steering, max_tokens=max_tokens).mean


def desirable_statements(data: Dataset) -> list[Statement]:
    """Statements that a steering should leave as they are; the KL is measured on them.

    Raises:
        DataError: there are none.
    """
    statements = [s for s in data.statements if s.label == DESIRABLE]
    if not statements:
        raise DataError(f"Data set {data.name!r} has no desirable statements: the KL is measured on them.")
    return statements
