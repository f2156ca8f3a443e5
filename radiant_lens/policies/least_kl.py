"""`LeastKLPolicy`: the edit that changes what the model says least, for a gain in the log-share of correct answers.

The closed form is in `radiant_lens.solvers.least_kl`, the displacements in `radiant_lens.analysis.families`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import check_target
from radiant_lens.analysis.families import FAMILIES, Family
from radiant_lens.analysis.sensitivity import GainGradient, fisher_scores, gain_gradient, require_gain
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import KLCurve, MeasuredStrength, desirable_statements, measure_kl
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import ConvergenceError, InvalidArgumentError
from radiant_lens.evaluation.likelihood import KeptLogits
from radiant_lens.models.identity import require_bridge, require_fitting
from radiant_lens.models.lengths import fit_context
from radiant_lens.policies.displacements import affine_family
from radiant_lens.policies.evidence import evidence_family, fit_again, refit_under_edits, require_refits
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.policies.measurements import KIND, Measurements, fit_settings, map_tensors
from radiant_lens.policies.template import steering_template
from radiant_lens.solvers.least_kl import LeastKLSolution, Sample, choose_regularisation, solve_least_kl
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.maps import Certificate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class _Texts(NamedTuple):
    """Texts of one half of the training groups: prompts with their answers, and statements."""

    prompts: tuple[Prompt, ...]
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class _Half:
    """Gradient of the gain and scores of one half of the training groups."""

    gain: GainGradient
    sample: Sample


@dataclass(frozen=True)
class _Step:
    """One solution: what it predicts, and what was measured at the strength that meets the budget.

    `held_out_kl` is the second-order KL of the solution's displacement on validation text, which took no part in it.
    """

    before: dict[str, float]
    ridge: float
    coupling: float
    solution: LeastKLSolution
    held_out_kl: float
    measured: MeasuredStrength

    def report(self) -> dict[str, float]:
        """The step as the steering's provenance holds it, in nats."""
        strength = self.measured.strength
        return {
            **self.before,
            "ridge": self.ridge,
            "coupling": self.coupling,
            "predicted_gain": strength * self.solution.gain,
            "predicted_kl": strength**2 * self.held_out_kl,
            "measured_kl": self.measured.kl,
            "largest_condition": float(self.solution.condition.max()),
        }


@dataclass(frozen=True)
class LeastKLPolicy:
    """Move heads so that correct answers gain most for a stated KL to the unsteered model.

    The user names a budget: the KL in nats a token by which desirable text may change. The displacements follow in
    closed form from the gradient of the log-share of correct answers and the Fisher information (see
    `radiant_lens.solvers.least_kl`). Their length is set by the KL that is measured on validation text, so the budget
    is met even where the second-order estimate is poor.

    It is not part of the paper. It needs prompts with correct and incorrect answers; it needs a detector only for a
    gate and for the family "evidence".

    Args:
        budget: KL in nats a token, positive.
        heads: "all", "layer:I", heads by name or pairs `(layer, head)`; with a detector, any rule of
            `radiant_lens.policies.heads`.
        gate: "none" edits at every position from the last prompt token on; the others as for `RadiantPolicy`.
        family: displacements to choose among: "constant", "affine" in the activation, "evidence" for those that grow
            with the evidence of the layer, which needs `RiskAwareDetector(joint=True)`, or "strength" for
            each head of the maps of another steering, which is given to `fit` and brings its heads and gate (see
            `radiant_lens.analysis.families`).
        steps: solutions one after the other, each with gradient and Fisher information under the edits so far, at
            least 1.
        ridge: share of the mean of a head's Fisher information that is added to its diagonal, positive; None: chosen
            with the coupling.
        coupling: weight of the Fisher information across heads, at least 0; None: the one with the most gain for its
            KL when either half of the training groups is tried on the other.
        n_draws: draws of tokens for each text in the Fisher information, at least 1.
        seed: of the draws.
        refits: for the family "evidence": how often the scores of layers are fitted again so that the edits found so
            far move them little (see `radiant_lens.policies.refit_under_edits`), and then the displacements; at least
            0. A fit takes as long again for each; worth it at budgets where more strength adds nothing without it.

    Example:
        >>> steering = LeastKLPolicy(budget=0.05).fit(model, train, validation=validation)  # doctest: +SKIP
    """

    budget: float = 0.05
    heads: HeadChoice = "all"
    gate: str = "none"
    family: str = "constant"
    steps: int = 1
    ridge: float | None = None
    coupling: float | None = None
    n_draws: int = 2
    seed: int = 0
    refits: int = 0

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        _checks.between("budget", self.budget, 0)
        _checks.choice("gate", self.gate, GATES)
        _checks.choice("family", self.family, FAMILIES)
        if self.ridge is not None:
            _checks.between("ridge", self.ridge, 0)
        if self.coupling is not None:
            _checks.between("coupling", self.coupling, 0, closed="low")
        _checks.whole("steps", self.steps, 1)
        _checks.whole("n_draws", self.n_draws, 1)
        _checks.whole("refits", self.refits, 0)
        _checks.seed(self.seed)

    def fit(
        self,
        model: TransformerBridge,
        train: Dataset,
        *,
        validation: Dataset | None = None,
        detector: RiskAwareDetector | None = None,
        base: Steering | None = None,
        guarantee: float | None = None,
        max_tokens: int | None = None,
        out: str | Path | None = None,
        progress: bool = False,
    ) -> Steering:
        """Find the displacements.

        Texts beyond the model's context are skipped with a warning, or what else `on_long` of the data set says.

        Args:
            model: from `load_model`.
            train: prompts with correct and incorrect answers, and desirable statements.
            validation: desirable statements of other groups, on which the KL is measured; None: a fifth of the groups
                of `train` is set apart. With refits also undesirable ones: half of the groups choose ramps of evidence.
            detector: fitted; needed for a gate, and for the family "evidence".
            base: the steering whose maps get strengths, for the family "strength".
            guarantee: None: the mean KL on validation text meets the budget. Else an upper bound of it over groups,
                with this confidence in (0.5, 1).
            max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.
            out: folder for what is measured; the same call after an interruption measures what is missing. A step takes
                the size of its scores: texts times draws times parameters of all heads. Refitted detectors are there,
                too (`radiant_lens.detectors.load_detector`). None: nothing is kept.
            progress: show progress bars.

        Raises:
            InvalidArgumentError: a parameter out of its range, or a gate or evidence without a detector.
            OutputError: `out` cannot be written.
            DataError: data without prompts of both kinds of answers, or without desirable statements; or all texts
                (with the rule "error", one) longer than the context.
            LeakageError: training and validation share a group.
            ConvergenceError: no strength meets the budget in the first step. A later step without one is left out, with
                a warning, and the steps before it are kept.
        """
        self.check()
        require_bridge(model)
        for name, data in (("train", train), ("validation", validation)):
            _checks.instance(name, data, (Dataset, *([type(None)] if name == "validation" else [])))
        if guarantee is not None:
            _checks.between("guarantee", guarantee, 0.5, 1)
        if validation is None:
            train, validation = train.split((0.8, 0.2), seed=self.seed)
        _checks.disjoint_groups(train.groups, validation.groups, ("training", "validation"))
        # Before the family collects activations.
        require_gain(train.prompts)
        for data in (train, validation):
            desirable_statements(data)
        if out is not None:
            check_target(Path(out) / "any", KIND)
        refits = self.refits if self.family == "evidence" else 0
        if refits and detector is not None:
            require_refits(detector, train, validation)

        def fit(detector: RiskAwareDetector | None) -> Steering:
            family = self.make_family(model, train, detector, base, max_tokens=max_tokens)
            measurements = (
                Measurements() if out is None else Measurements(Path(out), fit_settings(model, family, max_tokens))
            )
            return _Fit(self, model, family, max_tokens, progress, measurements).run(train, validation, guarantee)

        def refit(detector: RiskAwareDetector, steering: Steering) -> RiskAwareDetector:
            return refit_under_edits(
                model, detector, steering, train, validation, max_tokens=max_tokens, out=out, progress=progress
            )

        return fit_again(fit, detector, refit, refits)

    def make_family(
        self,
        model: TransformerBridge,
        train: Dataset,
        detector: RiskAwareDetector | None = None,
        base: Steering | None = None,
        *,
        max_tokens: int | None = None,
    ) -> Family:
        """Make the displacements to choose among; `fit` documents the arguments."""
        if (self.family == "strength") != (base is not None):
            raise InvalidArgumentError(
                '`base`, the steering whose maps get strengths, goes with family="strength" and with no other; got '
                f"family={self.family!r} {'without' if base is None else 'with'} it."
            )
        if base is not None:
            require_fitting(base, model)
            return Family("strength", base)
        template = steering_template(model, self.heads, self.gate, detector, "least KL")
        if self.family == "affine":
            return affine_family(model, train, template, seed=self.seed, max_tokens=max_tokens)
        return Family("constant", template) if self.family == "constant" else evidence_family(template, detector)


@dataclass(frozen=True)
class _Fit:
    """One fit: the policy, and where it is done."""

    policy: LeastKLPolicy
    model: TransformerBridge
    family: Family
    max_tokens: int | None
    progress: bool
    measurements: Measurements

    def run(self, train: Dataset, validation: Dataset, guarantee: float | None) -> Steering:
        """All steps; each measures, solves, and sets the strength on validation text."""
        policy, family = self.policy, self.family
        held_out = fit_context(self.model, desirable_statements(validation), validation.on_long, stacklevel=6).records
        halves = [self._read(half) for half in train.split((0.5, 0.5), seed=policy.seed)]
        parameters = torch.zeros((len(family.sites), family.n_parameters), dtype=torch.float64)
        steering: Steering | None = None
        unsteered = KeptLogits()
        steps: list[_Step] = []
        for i in range(policy.steps):
            measured = [self._measure(half, steering, policy.seed + i) for half in halves]
            # The budget is for all steps together: each may use what the earlier ones have left.
            budget = policy.budget * (i + 1) / policy.steps
            solution, ridge, coupling = self._solve(measured, budget)

            def kl(strength: float, direction: Tensor = solution.displacement) -> float:
                moved = parameters + strength * direction  # noqa: B023 (called within this round)

                def measure() -> float:
                    steered = self._steering(moved)
                    grouped = measure_kl(self.model, held_out, steered, kept=unsteered, max_tokens=self.max_tokens)
                    return grouped.mean if guarantee is None else grouped.upper(guarantee)

                return self.measurements.number(measure, "KL", held_out, guarantee, moved)

            predicted = self._sample(held_out, steering, policy.seed + i).kl(solution.displacement)
            used = steps[-1].measured.kl if steps else 0.0
            start = (max(budget - used, 0.0) / predicted) ** 0.5 if predicted > 0 else 0.0
            try:
                at_budget = KLCurve(kl, start=start or 1.0, unmoved=used).at(budget)
            except ConvergenceError as error:
                if not steps:
                    raise
                # Where gates open at any further movement; what the steps before have found still holds.
                warnings.warn(
                    f"Step {i + 1} of {policy.steps} is left out: {error} The steps before it are kept, at a KL of "
                    f"{used:.4g} of {policy.budget:g}; `steering.at_kl` looks for another strength of all of them.",
                    UserWarning,
                    stacklevel=5,
                )
                break
            steps.append(_Step(_before(measured), ridge, coupling, solution, predicted, at_budget))
            parameters = parameters + at_budget.strength * solution.displacement
            steering = self._steering(parameters)
        assert steering is not None
        return self._documented(steering, steps, (train, validation))

    def _read(self, half: Dataset) -> _Texts:
        """The texts of one half that fit the model's context."""
        prompts = fit_context(self.model, half.prompts, half.on_long, answers=True, stacklevel=7)
        statements = fit_context(self.model, self._scored(half), half.on_long, stacklevel=7)
        return _Texts(prompts.records, statements.records)

    def _measure(self, half: _Texts, steering: Steering | None, seed: int) -> _Half:
        def measure() -> dict[str, Tensor]:
            gain = gain_gradient(
                self.model, half.prompts, self.family, steering, max_tokens=self.max_tokens, progress=self.progress
            )
            numbers = torch.tensor([gain.value, gain.mc2, gain.n_prompts], dtype=torch.float64)
            return {"gradient": gain.gradient, "numbers": numbers}

        result = self.measurements.get(measure, "gain", half.prompts, *map_tensors(steering))
        value, mc2, n_prompts = result["numbers"].tolist()
        gain = GainGradient(result["gradient"], value, mc2, int(n_prompts))
        return _Half(gain, self._sample(half.statements, steering, seed))

    def _sample(self, statements: Sequence[Statement], steering: Steering | None, seed: int) -> Sample:
        def measure() -> dict[str, Tensor]:
            scores = fisher_scores(
                self.model,
                statements,
                self.family,
                steering,
                n_draws=self.policy.n_draws,
                seed=seed,
                max_tokens=self.max_tokens,
                progress=self.progress,
            )
            return {"scores": scores.scores, "n_tokens": scores.n_tokens.sum()}

        draws = (self.policy.n_draws, seed)
        result = self.measurements.get(measure, "scores", statements, draws, *map_tensors(steering))
        return Sample(result["scores"], int(result["n_tokens"]))

    def _scored(self, half: Dataset) -> Sequence[Statement]:
        """Texts of the Fisher information: what the budget is measured on, or all that a gate may pass."""
        # A gate is nearly shut on desirable text. There F is almost 0, and displacements would look free.
        return desirable_statements(half) if self.family.template.gate == "none" else half.statements

    def _solve(self, halves: Sequence[_Half], budget: float) -> tuple[LeastKLSolution, float, float]:
        """The solution from both halves, with the regularisation that either half recommends for the other."""
        one, other = halves
        ridge, coupling = choose_regularisation(
            (one.gain.gradient, other.gain.gradient),
            (one.sample, other.sample),
            ridge=self.policy.ridge,
            coupling=self.policy.coupling,
        )
        n = one.gain.n_prompts + other.gain.n_prompts
        gradient = sum(half.gain.gradient * (half.gain.n_prompts / n) for half in halves)
        assert isinstance(gradient, Tensor)
        sample = Sample(
            torch.cat([one.sample.scores, other.sample.scores]), one.sample.n_tokens + other.sample.n_tokens
        )
        return solve_least_kl(gradient, sample, budget, ridge=ridge, coupling=coupling), ridge, coupling

    def _steering(self, parameters: Float[Tensor, "site parameter"]) -> Steering:
        return replace(self.family.template, head_maps=self.family.maps(parameters))

    def _documented(self, steering: Steering, steps: Sequence[_Step], data: tuple[Dataset, Dataset]) -> Steering:
        """The steering with the worst residual of its solutions, and all that the steps predicted and measured."""
        residual = max(step.solution.residual for step in steps)
        template = self.family.template
        seen = {*template.meta.get("seen_groups", ()), *data[0].groups, *data[1].groups}
        return replace(
            steering,
            certificates=tuple(Certificate("least KL", gap=residual) for _ in steering.sites),
            meta={
                **template.meta,
                "policy": {
                    "name": "least KL",
                    **asdict(self.policy),
                    "heads": [list(site) for site in steering.sites],
                    "gate": template.gate,
                },
                "gamma": None,
                "data": data[0].name,
                "seen_groups": sorted(seen),
                "kl_budget": self.policy.budget * (len(steps) / self.policy.steps),
                "least_kl": {"steps": [step.report() for step in steps]},
            },
        )


def _before(halves: Sequence[_Half]) -> dict[str, float]:
    """Means over the prompts of both halves, before the step."""
    n = sum(half.gain.n_prompts for half in halves)
    return {
        "gain_before": sum(half.gain.value * half.gain.n_prompts for half in halves) / n,
        "mc2_before": sum(half.gain.mc2 * half.gain.n_prompts for half in halves) / n,
    }
