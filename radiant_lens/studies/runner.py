"""Computing the cells of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from radiant_lens._typing import HookFunction
from radiant_lens.analysis.effects import HeadEffects, head_effects
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import NothingToEditError
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.evaluation.ratios import join_parts
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.models.loading import load_model
from radiant_lens.policies.heads import BY_EFFECT, HeadChoice, parse_heads
from radiant_lens.policies.policy import Policy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.policies.registry import make_policy
from radiant_lens.studies._controls import RANDOM_METRICS, random_direction, shuffled_labels
from radiant_lens.studies.arms import Arm, DetectorKey
from radiant_lens.studies.cells import SHUFFLED, UNSTEERED, Cell
from radiant_lens.studies.experiment import Experiment, prepare

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hooks = Sequence[tuple[str, HookFunction]]


@dataclass(frozen=True)
class Sources:
    """Models, data and hooks that the cells of a study are computed from.

    Attributes:
        models: models that were given as objects, by name; others are loaded by name.
        data: data sets by name.
        hooks: the user's own hook functions by name.
        fractions: of groups for training, validation and test.
    """

    models: Mapping[str, TransformerBridge]
    data: Mapping[str, Dataset]
    hooks: Mapping[str, Hooks]
    fractions: tuple[float, float, float]

    def test_part(self, arm: Arm, seed: int) -> Dataset:
        """The prompts and statements that an arm is evaluated on."""
        assert arm.test_data is not None
        train, _, test = self.data[arm.test_data].split(self.fractions, seed=seed)
        separator = test.contexts.separator if test.contexts else "\n\n"
        return test.with_few_shot(train, arm.few_shot, seed=seed, separator=separator) if arm.few_shot else test


class RankedHeads(NamedTuple):
    """A policy fitted on all its heads, and the effect of editing each of them."""

    steering: Steering
    effects: HeadEffects


class ArmFit(NamedTuple):
    """The steering of an arm, or None and the reason why there is nothing to edit."""

    steering: Steering | None
    reason: str = ""


class CellRunner:
    """Computes cells one after another.

    A cell takes five steps: load the model, collect activations, fit the detector, rank heads by their effect (for arms
    that choose heads so), fit the policy. Each step caches its last results, since neighbouring cells share them.

    Args:
        sources: of models and data.
        options: of `evaluate`.
    """

    def __init__(self, sources: Sources, options: Mapping[str, Any]) -> None:
        self._sources, self._options = sources, options
        # Caches of the instance, not of the class: they hold models, and end with the runner. Sizes follow the order
        # of `Study.cells`, seed by seed and arm by arm. A cache that is too small costs time and changes no result.
        self._load = lru_cache(maxsize=1)(load_model)
        self._prepared = lru_cache(maxsize=2)(self._prepare)
        self._detected = lru_cache(maxsize=8)(self._detect)
        self._ranked = lru_cache(maxsize=8)(self._rank)
        self._fitted = lru_cache(maxsize=1)(self._fit)

    def run(self, cell: Cell) -> Evaluation:
        """Evaluate one cell; the settings of the result say which heads were edited."""
        arm, test = cell.arm, self._sources.test_part(cell.arm, cell.seed)
        assert arm.model is not None
        model = self._model(arm.model)
        options: dict[str, Any] = {**self._options, "seed": cell.seed}
        if cell.control == UNSTEERED:
            return evaluate(model, test, **options)
        if arm.hooks is not None:
            return _without_edits(evaluate(model, test, fwd_hooks=self._sources.hooks[arm.hooks], **options))
        fit = self.fit(arm, cell.seed)
        if fit.steering is None:
            return _noted(_unmoved(evaluate(model, test, **options)), heads=[], note=fit.reason)
        steering = self._controlled(cell, fit.steering)
        evaluation = evaluate(model, test, steering, **options)
        return _noted(evaluation, heads=[str(s) for s in steering.sites], note=_idle_note(evaluation))

    def fit(self, arm: Arm, seed: int) -> ArmFit:
        """The steering of an arm on the split of a seed."""
        # Without its name, so that arms with the same settings share one fit.
        return self._fitted(replace(arm, name=""), seed)

    def _model(self, name: str) -> TransformerBridge:
        return self._sources.models[name] if name in self._sources.models else self._load(name)

    def _prepare(self, model: str, data: str, positions: str, seed: int) -> Experiment:
        fractions = self._sources.fractions
        return prepare(
            self._model(model), self._sources.data[data], positions=positions, fractions=fractions, seed=seed
        )

    def _detect(self, key: DetectorKey) -> Experiment:
        prepared, detector = self._prepared(key.model, key.data, key.positions, key.seed), key.make_detector()
        # `prepare` fits the default detector, which most arms use.
        same = detector.get_params() == prepared.detector.get_params()
        return prepared if same else prepared.with_detector(detector)

    def _rank(self, key: DetectorKey, policy: Policy) -> RankedHeads:
        experiment = self._detected(key)
        steering = experiment.fit(policy)
        return RankedHeads(steering, head_effects(experiment.model, experiment.validation, steering))

    def _fit(self, arm: Arm, seed: int) -> ArmFit:
        key, rule = arm.detector_key(seed), parse_heads(arm.heads)
        experiment = self._detected(key)
        heads: HeadChoice = arm.heads
        try:
            if rule.kind in BY_EFFECT:
                # "effective" ranks heads under the arm's own policy, "recipe" under RADIANT's.
                own = rule.kind == "effective"
                policy = make_policy(arm.policy, arm.policy_options) if own else RadiantPolicy()
                ranked = self._ranked(key, policy)
                steering = ranked.steering.select(ranked.effects, k=rule.number or "auto")
                if own:
                    return ArmFit(steering)
                heads = steering.sites
            policy = make_policy(arm.policy, arm.policy_options, heads)
            return ArmFit(experiment.fit(policy))
        except NothingToEditError as error:
            return ArmFit(None, str(error))

    def _controlled(self, cell: Cell, steering: Steering) -> Steering:
        """The steering itself, or its control if the cell is one."""
        if cell.control is None:
            return steering
        experiment = self._detected(cell.arm.detector_key(cell.seed))
        if cell.control in RANDOM_METRICS:
            return random_direction(experiment, steering, cell.control, seed=cell.seed)
        assert cell.control == SHUFFLED
        policy = make_policy(cell.arm.policy, cell.arm.policy_options)
        # Each shuffle takes two seeds (training and validation labels), so draws are two apart.
        return shuffled_labels(experiment, steering, policy, seed=1000 * cell.seed + 2 * cell.draw)


def _idle_note(evaluation: Evaluation) -> str:
    """A note where a steering or control edited no position: its row is the unsteered model's."""
    share = evaluation.metrics.get("edited_share")
    return "nothing to edit: no position of the test part passed the gate" if share and share.value == 0 else ""


def _without_edits(evaluation: Evaluation) -> Evaluation:
    """The evaluation without `edited_share`: the positions that a user's own hooks edit are unknown."""
    return replace(evaluation, parts=evaluation.parts[evaluation.parts["metric"] != "edited_share"])


def _unmoved(evaluation: Evaluation) -> Evaluation:
    """The unsteered model as a steering that edits nothing: its displacement is NaN, a mean over no head."""
    # Pooling needs the same metrics in every run, and other seeds of this arm may edit.
    text = evaluation.parts[evaluation.parts["metric"] == "edited_share"]
    nothing = text.assign(metric="displacement", numerator=0.0, denominator=0.0)
    return replace(evaluation, parts=join_parts([evaluation.parts, nothing]))


def _noted(evaluation: Evaluation, **notes: Any) -> Evaluation:
    return replace(evaluation, settings={**evaluation.settings, **notes})
