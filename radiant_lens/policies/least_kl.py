"""`LeastKLPolicy`: the edit that changes what the model says least, for a gain in log-odds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.sensitivity import GainGradient, fisher_scores, gain_gradient
from radiant_lens.analysis.strength import MeasuredStrength, mean_kl, strength_at_kl
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE, Statement
from radiant_lens.errors import DataError
from radiant_lens.models.identity import require_bridge, signature
from radiant_lens.policies.heads import HeadChoice, heads_of_shape
from radiant_lens.sites import HeadSite
from radiant_lens.solvers.least_kl import LeastKLSolution, Sample, choose_coupling, solve_least_kl
from radiant_lens.steering.gates import HeadScores
from radiant_lens.steering.maps import Certificate, RankOneMaps
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class _Half:
    """Gradient of the gain and scores of one half of the training groups, for the heads to be moved."""

    gain: GainGradient
    gradient: Float[Tensor, "site d_head"]
    sample: Sample


@dataclass(frozen=True)
class _Step:
    """One solution: what it predicts, and what was measured at the strength that meets the budget."""

    before: dict[str, float]
    coupling: float
    solution: LeastKLSolution
    measured: MeasuredStrength

    def report(self) -> dict[str, float]:
        """The step as the steering's provenance holds it, in nats."""
        strength = self.measured.strength
        return {
            **self.before,
            "coupling": self.coupling,
            "predicted_gain": strength * self.solution.gain,
            "predicted_kl": strength**2 * self.solution.kl,
            "measured_kl": self.measured.kl,
            "largest_condition": float(self.solution.condition.max()),
        }


@dataclass(frozen=True)
class LeastKLPolicy:
    """Shift heads so that correct answers gain most for a stated KL to the unsteered model.

    The user names a budget: the KL in nats a token by which desirable text may change. The displacements follow in
    closed form from the gradient of the log-odds of correct answers and the Fisher information (see
    `radiant_lens.solvers.least_kl`). Their length is set by the KL that is measured on validation text, so the budget
    is met even where the second-order estimate is poor.

    The edit is a constant shift at every position from the last prompt token on, without a gate. It is not part of the
    paper. It needs prompts with correct and incorrect answers, and no detector.

    Args:
        budget: KL in nats a token, positive.
        heads: "all", "layer:I", heads by name or pairs `(layer, head)`.
        steps: solutions one after the other, each with gradient and Fisher information under the edits so far, at
            least 1.
        ridge: share of the mean of a head's Fisher information that is added to its diagonal, positive.
        coupling: share of the Fisher information across heads, in [0, 1); None: the one with the most gain for its KL
            when either half of the training groups is tried on the other.
        n_draws: draws of tokens for each text in the Fisher information, at least 1.
        seed: of the draws.

    Example:
        >>> steering = LeastKLPolicy(budget=0.05).fit(model, train, validation=validation)  # doctest: +SKIP
    """

    budget: float = 0.05
    heads: HeadChoice = "all"
    steps: int = 1
    ridge: float = 0.1
    coupling: float | None = None
    n_draws: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        _checks.between("budget", self.budget, 0)
        _checks.between("ridge", self.ridge, 0)
        if self.coupling is not None:
            _checks.between("coupling", self.coupling, 0, 1, closed="low")
        _checks.whole("steps", self.steps, 1)
        _checks.whole("n_draws", self.n_draws, 1)
        _checks.seed(self.seed)

    def fit(
        self,
        model: TransformerBridge,
        train: Dataset,
        *,
        validation: Dataset | None = None,
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> Steering:
        """Find the displacements.

        Args:
            model: from `load_model`.
            train: prompts with correct and incorrect answers, and desirable statements.
            validation: desirable statements of other groups, on which the KL is measured; None: a fifth of the groups
                of `train` is set apart.
            max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.
            progress: show progress bars.

        Raises:
            InvalidArgumentError: a parameter out of its range.
            DataError: data without prompts of both kinds of answers, or without desirable statements.
            LeakageError: training and validation share a group.
            ConvergenceError: no strength meets the budget.
        """
        self.check()
        require_bridge(model)
        for name, data in (("train", train), ("validation", validation)):
            _checks.instance(name, data, (Dataset, *([type(None)] if name == "validation" else [])))
        if validation is None:
            train, validation = train.split((0.8, 0.2), seed=self.seed)
        _checks.disjoint_groups(train.groups, validation.groups, ("training", "validation"))
        held_out = _desirable(validation)
        sites = heads_of_shape(self.heads, model.cfg.n_layers, model.cfg.n_heads)
        parts = train.split((0.5, 0.5), seed=self.seed)
        options: dict[str, Any] = {"max_tokens": max_tokens, "progress": progress}
        shift = torch.zeros((len(sites), model.cfg.d_head), dtype=torch.float64)
        steering: Steering | None = None
        steps: list[_Step] = []
        for i in range(self.steps):
            halves = [self._measure(model, half, sites, steering, self.seed + i, options) for half in parts]
            # The budget is for all steps together: each may use what the earlier ones have left.
            budget = self.budget * (i + 1) / self.steps
            solution, coupling = self._solve(halves, budget)
            shifted = partial(self._shifted, model, sites, (train, validation), shift, solution)
            measured = strength_at_kl(partial(self._measured_kl, model, held_out, shifted, max_tokens), budget)
            steps.append(_Step(_joined([half.gain for half in halves]), coupling, solution, measured))
            steering = shifted(measured.strength)
            shift = shift + measured.strength * solution.displacement
        assert steering is not None
        return self._certified(steering, steps)

    @staticmethod
    def _measured_kl(
        model: TransformerBridge,
        statements: Sequence[Statement],
        shifted: Callable[[float], Steering],
        max_tokens: int | None,
        strength: float,
    ) -> float:
        return mean_kl(model, statements, shifted(strength), max_tokens=max_tokens)

    def _measure(
        self,
        model: TransformerBridge,
        half: Dataset,
        sites: Sequence[HeadSite],
        steering: Steering | None,
        seed: int,
        options: dict[str, Any],
    ) -> _Half:
        at = tuple(torch.tensor(axis) for axis in zip(*sites))
        gain = gain_gradient(model, half.prompts, steering, **options)
        scores = fisher_scores(model, _desirable(half), steering, n_draws=self.n_draws, seed=seed, **options)
        sample = Sample(scores.scores[:, at[0], at[1]], int(scores.n_tokens.sum()))
        return _Half(gain, gain.gradient[at], sample)

    def _solve(self, halves: Sequence[_Half], budget: float) -> tuple[LeastKLSolution, float]:
        """The solution from both halves, with the coupling that either half recommends for the other."""
        one, other = halves
        coupling = self.coupling
        if coupling is None:
            coupling, _ = choose_coupling((one.gradient, other.gradient), (one.sample, other.sample), ridge=self.ridge)
        weights = [half.gain.n_prompts for half in halves]
        gradient = (weights[0] * one.gradient + weights[1] * other.gradient) / sum(weights)
        sample = Sample(
            torch.cat([one.sample.scores, other.sample.scores]), one.sample.n_tokens + other.sample.n_tokens
        )
        return solve_least_kl(gradient, sample, budget, ridge=self.ridge, coupling=coupling), coupling

    def _shifted(
        self,
        model: TransformerBridge,
        sites: Sequence[HeadSite],
        data: tuple[Dataset, Dataset],
        shift: Float[Tensor, "site d_head"],
        solution: LeastKLSolution,
        strength: float,
    ) -> Steering:
        """A steering that adds the earlier steps' shift and this solution to each head, everywhere."""
        config = model.cfg
        scores = HeadScores(
            weights=torch.zeros((config.n_layers, config.n_heads, config.d_head)),
            # There is no detector: no head ever flags, and the gate "none" does not ask.
            biases=torch.full((config.n_layers, config.n_heads), -1.0),
            thresholds=torch.ones(config.n_layers, dtype=torch.long),
        )
        meta = {
            "policy": {"name": "least KL", **asdict(self), "heads": [list(site) for site in sites]},
            "model": signature(model),
            "data": data[0].name,
            "positions": "answer",
            "seen_groups": sorted(data[0].groups | data[1].groups),
        }
        certificates = tuple(Certificate("least KL") for _ in sites)
        maps = RankOneMaps.translation(shift + strength * solution.displacement)
        return Steering(tuple(sites), maps, scores, "none", certificates, meta=meta)

    def _certified(self, steering: Steering, steps: Sequence[_Step]) -> Steering:
        """The steering with the worst residual of its solutions, and what all steps predicted and measured."""
        residual = max(step.solution.residual for step in steps)
        certificates = tuple(Certificate("least KL", gap=residual) for _ in steering.sites)
        return replace(
            steering,
            certificates=certificates,
            meta={**steering.meta, "least_kl": {"steps": [step.report() for step in steps]}},
        )


def _joined(gains: Sequence[GainGradient]) -> dict[str, float]:
    """Means over the prompts of both halves, before the step."""
    n = sum(gain.n_prompts for gain in gains)
    return {
        "gain_before": sum(gain.value * gain.n_prompts for gain in gains) / n,
        "mc2_before": sum(gain.mc2 * gain.n_prompts for gain in gains) / n,
    }


def _desirable(data: Dataset) -> list[Statement]:
    statements = [s for s in data.statements if s.label == DESIRABLE]
    if not statements:
        raise DataError(f"Data set {data.name!r} has no desirable statements: the KL is measured on them.")
    return statements
