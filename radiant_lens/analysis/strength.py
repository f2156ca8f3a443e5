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
from radiant_lens.evaluation.likelihood import KeptLogits, score_statements
from radiant_lens.models.packing import answer_passes, predict
from radiant_lens.models.predictions import token_kl
from radiant_lens.models.tokens import answer_rows, pass_tokens
from radiant_lens.statistics.bounds import group_sums, ratio_upper
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE, MAX_TRIALS = 0.03, 16
# The strength below a jump of the KL serves if it uses at least this share of the budget.
_LEAST_SHARE = 0.5
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
        unmoved: KL at a strength of 0, which is not 0 where other edits are in place already.
    """

    def __init__(self, measure: Callable[[float], float], *, start: float = 1.0, unmoved: float = 0.0) -> None:
        self._measure, self._start, self._unmoved = measure, start, unmoved
        self.trials: list[MeasuredStrength] = []

    def at(self, budget: float, *, tolerance: float = TOLERANCE) -> MeasuredStrength:
        """Find the least strength at which the KL meets a budget.

        KL grows about as a power of the strength, so each trial is a secant step between logarithms. A bracket keeps
        the steps from running away where it does not, and is halved where they all fall on one side. Gates of later
        layers open or close as a strength changes, so KL may jump over the budget: then the strength below the jump is
        taken, if its KL is at least half of the budget.

        Args:
            budget: KL in nats a token, positive.
            tolerance: allowed relative difference of the measured KL from the budget.

        Raises:
            InvalidArgumentError: a budget that is not positive.
            ConvergenceError: no strength meets the budget; says the nearest ones.
        """
        _checks.between("budget", budget, 0)
        low, high = self._bracket(budget)
        if self._unmoved > (1 + tolerance) * budget:
            raise ConvergenceError(f"The KL is {self._unmoved:.4g} without this edit, above the budget of {budget:g}.")
        sides: list[bool] = []
        for n_trials in range(MAX_TRIALS + 1):
            near = min((low, high), key=lambda trial: abs(trial.kl - budget))
            if abs(near.kl - budget) <= tolerance * budget:
                return near
            # A smooth curve changes by less than the tolerance between strengths this near to one another.
            jumps = high.strength <= (1 + tolerance / 3) * low.strength
            if jumps and low.kl >= _LEAST_SHARE * budget:
                return low
            if jumps or n_trials == MAX_TRIALS:
                break
            if not self.trials:
                strength = self._start
            elif math.isfinite(high.strength) and len(sides) > 1 and sides[-1] == sides[-2]:
                strength = (low.strength + high.strength) / 2
            else:
                strength = self._next(low, high, budget)
            if strength > MAX_STRENGTH:
                break
            self.trials.append(MeasuredStrength(strength, self._measure(strength)))
            sides.append(self.trials[-1].kl >= budget)
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
        return max(below, default=MeasuredStrength(0.0, self._unmoved)), high

    def _next(self, low: MeasuredStrength, high: MeasuredStrength, budget: float) -> float:
        """The next strength to try, by a power law for what the strength adds to the KL."""
        below, above = (MeasuredStrength(trial.strength, trial.kl - self._unmoved) for trial in (low, high))
        return _next_strength(below, above, budget - self._unmoved)


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
    """A power law through the ends of the bracket; through one end, with the exponent 2 of small strengths."""
    if math.isinf(high.strength):
        # Ten times more at most, where nothing above the budget is known.
        return low.strength * min(math.sqrt(budget / low.kl), 10.0) * 1.01 if low.kl > 0 else 10 * low.strength
    if low.kl > 0:
        share = math.log(budget / low.kl) / math.log(high.kl / low.kl)
        # Not too near an end: a curve that is no power law would then need many trials.
        return low.strength * (high.strength / low.strength) ** min(max(share, 0.05), 0.95)
    strength = high.strength * math.sqrt(budget / high.kl)
    width = high.strength - low.strength
    return min(max(strength, low.strength + 0.05 * width), high.strength - 0.05 * width)


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
    kept: KeptLogits | None = None,
    max_tokens: int | None = None,
) -> GroupedKL:
    """KL from the unsteered to the steered model over the answers of statements, by group.

    `kept` holds the unsteered model's logits for other steerings on the same statements.

    Raises:
        DataError: no statements.
    """
    if not statements:
        raise DataError("There are no statements to measure the KL on.")
    scored = score_statements(model, statements, steering, count_edits=False, kept=kept, max_tokens=max_tokens)
    names = {name: i for i, name in enumerate(dict.fromkeys(s.group for s in statements))}
    groups = torch.tensor([names[s.group] for s in statements])
    return GroupedKL(group_sums(scored.kl, groups), group_sums(scored.n_tokens, groups))


def mean_kl(
    model: TransformerBridge,
    statements: Sequence[Statement],
    steering: Steering,
    *,
    kept: KeptLogits | None = None,
    max_tokens: int | None = None,
) -> float:
    """KL from the unsteered to the steered model, in nats a token, over the answers of statements.

    Raises:
        DataError: no statements.
    """
    return measure_kl(model, statements, steering, kept=kept, max_tokens=max_tokens).mean


def desirable_statements(data: Dataset) -> list[Statement]:
    """Statements that a steering should leave as they are; the KL is measured on them.

    Raises:
        DataError: there are none.
    """
    statements = [s for s in data.statements if s.label == DESIRABLE]
    if not statements:
        raise DataError(f"Data set {data.name!r} has no desirable statements: the KL is measured on them.")
    return statements


def text_kl(
    model: TransformerBridge,
    statements: Sequence[Statement],
    changed: Sequence[Statement],
    *,
    max_tokens: int | None = None,
) -> Float[Tensor, " statement"]:
    """KL of the answers' tokens between two contexts of the same answers: unchanged || changed, summed by statement.

    For what is put before a prompt (instructions, examples), which no hook can switch on and off in one text.

    Args:
        model: from `load_model`.
        statements: with their usual context.
        changed: the same answers in another context, in the same order.
        max_tokens: tokens in one pass, padding included.

    Raises:
        DataError: an answer that has other tokens in the other context.
    """
    limit = pass_tokens(model, max_tokens)
    total = torch.zeros(len(statements), dtype=torch.float64)
    # The log-probabilities of one slice are held at a time: a vocabulary times the tokens of its answers.
    for first in range(0, len(statements), 16):
        index = slice(first, first + 16)
        before, after = (_by_text(model, list(texts[index]), limit) for texts in (statements, changed))
        for i, (plain, other) in enumerate(zip(before, after)):
            if len(plain) != len(other):
                raise DataError(f"An answer has other tokens in its changed context: {statements[first + i].text!r}.")
            total[first + i] = token_kl(plain, other).sum()
    return total


def _by_text(
    model: TransformerBridge, statements: Sequence[Statement], max_tokens: int
) -> list[Float[Tensor, "_ vocab"]]:
    """Log-probabilities at the predictions of each statement's answer."""
    result: list[list[Tensor]] = [[] for _ in statements]
    rows = list(answer_rows(model, statements))
    for batch in answer_passes(model, rows, max_tokens=max_tokens):
        with torch.no_grad():
            log_probs = predict(model, batch).log_probs().cpu()
        for text in batch.texts.unique().tolist():
            result[text].append(log_probs[batch.texts == text])
    return [torch.cat(pieces) for pieces in result]
