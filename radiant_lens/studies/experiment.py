"""Experiments: data split by group, activations and a detector, prepared once; and the heads that act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from radiant_lens.analysis.effects import HeadEffects, head_effects
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.policies.fisher import fit_with_model
from radiant_lens.policies.policy import Policy
from radiant_lens.policies.radiant import RadiantPolicy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Experiment:
    """A model and a data set, split by group, with activations and a detector.

    The training, validation and test parts share no group.
    """

    model: TransformerBridge
    train: Dataset
    validation: Dataset
    test: Dataset
    train_cache: HeadCache
    validation_cache: HeadCache
    detector: RiskAwareDetector

    def with_detector(self, detector: RiskAwareDetector) -> Experiment:
        """The same data and activations with another detector, fitted here."""
        return replace(self, detector=detector.fit(self.train_cache, self.validation_cache))

    def fit(self, policy: Policy) -> Steering:
        """Fit a policy on the training part."""
        return fit_with_model(policy, self.model, self.train, self.train_cache, self.detector)

    def test_cache(self) -> HeadCache:
        """Collect the activations of the test part."""
        return collect(self.model, self.test, positions=self.train_cache.meta["positions"])


@dataclass(frozen=True)
class Recipe:
    """A steering on its effective heads, and the effects by which they were chosen."""

    steering: Steering
    effects: HeadEffects


def prepare(
    model: TransformerBridge,
    data: Dataset,
    *,
    detector: RiskAwareDetector | None = None,
    positions: str = "answer",
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    progress: bool = False,
) -> Experiment:
    """Split the data, collect activations, fit a detector.

    Args:
        model: from `load_model`.
        data: statements and prompts.
        detector: unfitted; default `RiskAwareDetector(seed=seed)`.
        positions: tokens to detect at (see `collect`).
        fractions: of groups for training, validation and test.
        seed: of the split.
        progress: show progress bars.
    """
    train, validation, test = data.split(fractions, seed=seed)
    # The test part's activations are collected later, and by certificates alone: nothing here may see them.
    train_cache = collect(model, train, positions=positions, progress=progress)
    validation_cache = collect(model, validation, positions=positions, progress=progress)
    detector = (RiskAwareDetector(seed=seed) if detector is None else detector).fit(train_cache, validation_cache)
    return Experiment(model, train, validation, test, train_cache, validation_cache, detector)


def effective(experiment: Experiment, policy: RadiantPolicy | None = None, *, k: str | int = "auto") -> Recipe:
    """Fit the recipe: all significant heads, reduced to those with most effect on the validation part's prompts.

    Args:
        experiment: from `prepare`.
        policy: default `RadiantPolicy()`.
        k: number of heads to keep, or "auto" for the fewest that carry 90% of the effect.
    """
    # Detecting is not doing: a head's risk says little of the effect of editing it, so heads are chosen by measured
    # effects, on prompts that are neither fitted nor tested on.
    steering = experiment.fit(policy or RadiantPolicy())
    effects = head_effects(experiment.model, experiment.validation, steering)
    return Recipe(steering.select(effects, k=k), effects)
