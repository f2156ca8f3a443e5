"""The strength of a steering at which its KL on given text meets a budget, and that KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from radiant_lens import _checks
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import ConvergenceError, DataError
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE, MAX_TRIALS = 0.03, 10


class MeasuredStrength(NamedTuple):
    """A strength with the KL that was measured at it, in nats a token."""

    strength: float
    kl: float


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
    if not statements:
        raise DataError("There are no statements to measure the KL on.")
    scored = score_statements(model, statements, steering, max_tokens=max_tokens)
    return float(scored.kl.sum() / scored.n_tokens.sum())


def strength_at_kl(
    measure: Callable[[float], float], budget: float, *, start: float = 1.0, tolerance: float = TOLERANCE
) -> MeasuredStrength:
    """Find the strength at which a measured KL meets a budget.

    KL grows about as the square of the strength, so each trial is a secant step of its root; a bracket keeps the steps
    from running away where it does not.

    Args:
        measure: from a strength to the KL at it.
        budget: KL in nats a token, positive.
        start: first strength to try, positive.
        tolerance: allowed relative difference of the measured KL from the budget.

    Raises:
        InvalidArgumentError: a budget that is not positive.
        ConvergenceError: no strength meets the budget; says the nearest ones.

    Example:
        >>> round(strength_at_kl(lambda c: 0.5 * c**2, 0.02).strength, 6)
        0.2
    """
    _checks.between("budget", budget, 0)
    low, high, strength = MeasuredStrength(0.0, 0.0), MeasuredStrength(math.inf, math.inf), start
    for _ in range(MAX_TRIALS):
        trial = MeasuredStrength(strength, measure(strength))
        if abs(trial.kl - budget) <= tolerance * budget:
            return trial
        low, high = (trial, high) if trial.kl < budget else (low, trial)
        strength = _next_strength(low, high, budget)
    raise ConvergenceError(
        f"No strength gives a KL of {budget:g} within {tolerance:.0%}: {low.strength:.4g} gives {low.kl:.4g}, "
        f"{high.strength:.4g} gives {high.kl:.4g}."
    )


def _next_strength(low: MeasuredStrength, high: MeasuredStrength, budget: float) -> float:
    """The secant step in the root of the KL; ten times more at most where nothing above the budget is known."""
    target = math.sqrt(budget)
    if math.isinf(high.strength):
        return low.strength * min(target / math.sqrt(low.kl), 10.0) * 1.01 if low.kl > 0 else 10 * low.strength
    a, b = math.sqrt(low.kl), math.sqrt(high.kl)
    share = (target - a) / (b - a)
    # Not too near an end: a curve that is bent would then need many steps.
    return low.strength + min(max(share, 0.05), 0.95) * (high.strength - low.strength)
