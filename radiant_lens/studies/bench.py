"""The bench on which cells are computed; what they share is made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from radiant_lens._typing import HookFunction
from radiant_lens.datasets.examples import Dataset
from radiant_lens.errors import NothingToEditError
from radiant_lens.evaluation.evaluate import evaluate
from radiant_lens.evaluation.parts import join_parts
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.fitting import HeadEffects, head_effects
from radiant_lens.models import load_model
from radiant_lens.policies.controls import RandomDirectionPolicy
from radiant_lens.policies.steering import Steering
from radiant_lens.studies.arms import Arm
from radiant_lens.studies.cells import RANDOM, SHUFFLED, Cell
from radiant_lens.studies.compare import UNSTEERED
from radiant_lens.studies.controls import shuffled_labels
from radiant_lens.studies.experiment import Experiment, prepare, recommended_policy
from radiant_lens.studies.head_rules import heads_by_rule, parse_heads
from radiant_lens.studies.registry import Policy, make_policy

Hooks = Sequence[tuple[str, HookFunction]]


class Bench:
    """Computes cells. Models, activations, detectors and steerings are kept while the cells that share them last.

    Args:
        models: those that were given as objects, by name; others are loaded by name.
        data: data sets by name.
        hooks: the user's own hook functions by name.
        options: of `evaluate`.
        fractions: of groups for training, validation and test.
    """

    def __init__(
        self,
        models: Mapping[str, TransformerBridge],
        data: Mapping[str, Dataset],
        hooks: Mapping[str, Hooks],
        options: Mapping[str, Any],
        fractions: tuple[float, float, float],
    ) -> None:
        self._models, self._data, self._hooks = models, data, hooks
        self._options, self._fractions = options, fractions
        self._load = lru_cache(maxsize=1)(load_model)
        self._prepared = lru_cache(maxsize=2)(self._prepare)
        self._detected: dict[tuple[str, ...], Experiment] = {}
        self._effects: dict[tuple[str, ...], tuple[Steering, HeadEffects]] = {}
        self._fitted: dict[str, Steering | str] = {}

    def run(self, cell: Cell) -> Evaluation:
        """Evaluate one cell; what was edited stands in the settings of the result."""
        model, test = self._model(cell.arm), self._test_part(cell.arm, cell.seed)
        options: dict[str, Any] = {**self._options, "seed": cell.seed}
        if cell.control == UNSTEERED:
            return evaluate(model, test, **options)
        if cell.arm.hooks is not None:
            return _without_edits(evaluate(model, test, fwd_hooks=self._hooks[cell.arm.hooks], **options))
        steering = self._steering(cell.arm, cell.seed)
        if isinstance(steering, str):
            return _noted(_unmoved(evaluate(model, test, **options)), heads=[], note=steering)
        steered = self._controlled(cell, steering)
        return _noted(evaluate(model, test, steered, **options), heads=[str(s) for s in steered.sites], note="")

    def _model(self, arm: Arm) -> TransformerBridge:
        assert arm.model is not None
        return self._models[arm.model] if arm.model in self._models else self._load(arm.model)

    def _test_part(self, arm: Arm, seed: int) -> Dataset:
        assert arm.test_data is not None
        train, _, test = self._data[arm.test_data].split(self._fractions, seed=seed)
        separator = test.contexts.separator if test.contexts else "\n\n"
        return test.with_few_shot(train, arm.few_shot, seed=seed, separator=separator) if arm.few_shot else test

    def _prepare(self, model: str, data: str, positions: str, seed: int) -> Experiment:
        bridge = self._models[model] if model in self._models else self._load(model)
        return prepare(bridge, self._data[data], positions=positions, fractions=self._fractions, seed=seed)

    def _key(self, arm: Arm, seed: int) -> tuple[str, ...]:
        """What an arm's activations (first four) and detector depend on."""
        assert arm.model is not None and arm.data is not None
        return (arm.model, arm.data, arm.positions, str(seed), str(arm.make_detector(seed).get_params()))

    def _experiment(self, arm: Arm, seed: int) -> Experiment:
        key = self._key(arm, seed)
        self._detected = {k: value for k, value in self._detected.items() if k[:4] == key[:4]}
        if key not in self._detected:
            prepared, detector = self._prepared(*key[:3], seed), arm.make_detector(seed)
            same = detector.get_params() == prepared.detector.get_params()
            self._detected[key] = prepared if same else prepared.with_detector(detector)
        return self._detected[key]

    def _most_effective(self, arm: Arm, seed: int, policy: Policy, k: int | None) -> Steering:
        """The policy on the heads on which it acts; the effects of all heads are estimated once."""
        key = (*self._key(arm, seed), repr(policy))
        # One pass over a seed's arms needs those of that seed alone.
        self._effects = {k: value for k, value in self._effects.items() if k[3] == key[3]}
        if key not in self._effects:
            experiment = self._experiment(arm, seed)
            fitted = policy.fit(experiment.train_cache, experiment.detector)
            self._effects[key] = fitted, head_effects(experiment.model, experiment.validation, fitted)
        fitted, effects = self._effects[key]
        return fitted.select(effects, k=k or "auto")

    def _fit(self, arm: Arm, seed: int) -> Steering:
        rule, experiment = parse_heads(arm.heads), self._experiment(arm, seed)
        if rule.kind == "effective":
            return self._most_effective(arm, seed, make_policy(arm.policy, arm.policy_options), rule.number)
        if rule.kind == "recipe":
            sites = list(self._most_effective(arm, seed, recommended_policy(), rule.number).sites)
        else:
            sites = heads_by_rule(rule, experiment.detector, seed=seed)
        policy = make_policy(arm.policy, arm.policy_options, sites)
        return policy.fit(experiment.train_cache, experiment.detector)

    def _steering(self, arm: Arm, seed: int) -> Steering | str:
        """The arm's steering, or why there is nothing to edit."""
        key = repr((replace(arm, name=""), seed))
        if key not in self._fitted:
            try:
                fitted: Steering | str = self._fit(arm, seed)
            except NothingToEditError as error:
                fitted = str(error)
            self._fitted = {key: fitted}
        return self._fitted[key]

    def _controlled(self, cell: Cell, steering: Steering) -> Steering:
        experiment = self._experiment(cell.arm, cell.seed)
        if cell.control == RANDOM:
            policy = RandomDirectionPolicy(steering, seed=cell.seed)
            return policy.fit(experiment.train_cache, experiment.detector)
        if cell.control == SHUFFLED:
            policy = make_policy(cell.arm.policy, cell.arm.policy_options)
            return shuffled_labels(experiment, steering, policy, seed=1000 * cell.seed + 2 * cell.draw)
        return steering


def _without_edits(evaluation: Evaluation) -> Evaluation:
    """How many tokens the user's own hooks edit is not known."""
    return replace(evaluation, parts=evaluation.parts[evaluation.parts["metric"] != "edited_share"])


def _unmoved(evaluation: Evaluation) -> Evaluation:
    """The unsteered model as a steering that edits nothing: with a displacement, of no head."""
    text = evaluation.parts[evaluation.parts["metric"] == "edited_share"]
    nothing = text.assign(metric="displacement", numerator=0.0, denominator=0.0)
    return replace(evaluation, parts=join_parts([evaluation.parts, nothing]))


def _noted(evaluation: Evaluation, **notes: Any) -> Evaluation:
    return replace(evaluation, settings={**evaluation.settings, **notes})
