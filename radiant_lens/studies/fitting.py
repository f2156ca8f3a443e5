"""`fit`: from a model and labelled data to a certified steering, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from radiant_lens import _checks
from radiant_lens._files import check_target, write_text
from radiant_lens.analysis.behaviour import BehaviourCertificate, certify_behaviour
from radiant_lens.analysis.effects import HeadEffects, head_effects
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE, UNDESIRABLE
from radiant_lens.detectors.artefact import save_detector
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.detectors.display import detector_card
from radiant_lens.errors import DataError, InvalidArgumentError, NothingToEditError
from radiant_lens.models.identity import require_bridge
from radiant_lens.notebook import Fragment, card
from radiant_lens.policies.heads import check_heads
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.policies.least_kl import LeastKLPolicy
from radiant_lens.policies.policy import Policy, needs_joint
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.steering.gates import require_joint
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.studies.experiment import Experiment, prepare
from radiant_lens.viz.report import Report, report

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

REPORT, HEADS = "report.html", "heads.csv"


class Splits(NamedTuple):
    """The parts of the data; they share no group."""

    train: Dataset
    validation: Dataset
    test: Dataset


@dataclass(frozen=True, repr=False)
class Fitted:
    """Result of `fit`.

    Attributes:
        experiment: the model, the parts of the data with their activations, and the detector.
        held_out: activations of the test part.
        result: the steering, or the reason why there is none.
        certificate: of the steering on the test part: the share that is still flagged and, of a least-KL steering,
            the KL and the questions that improve; None without a steering.
        effects: by which heads were chosen; None if they were not chosen by effects.
    """

    experiment: Experiment
    held_out: HeadCache
    result: Steering | NothingToEditError
    certificate: HeldOutCertificate | BehaviourCertificate | None = None
    effects: HeadEffects | None = None

    @property
    def detector(self) -> RiskAwareDetector:
        """The fitted detector."""
        return self.experiment.detector

    @property
    def splits(self) -> Splits:
        """The parts of the data."""
        return Splits(self.experiment.train, self.experiment.validation, self.experiment.test)

    @property
    def steering(self) -> Steering:
        """The fitted steering.

        Raises:
            NothingToEditError: there is none; says why, with numbers where the data have too few groups.
        """
        if isinstance(self.result, NothingToEditError):
            raise self.result
        return self.result

    def report(self, title: str = "What the fit shows") -> Report:
        """Put detector, heat map, effects and certificate on one page, with or without a steering."""
        certificate = self.certificate
        return report(
            None if isinstance(self.result, NothingToEditError) else self.result,
            detector=self.detector,
            cache=self.held_out,
            effects=self.effects,
            certificate=certificate.heads if isinstance(certificate, BehaviourCertificate) else certificate,
            title=title,
        )

    def save(self, path: str | Path) -> Path:
        """Write a folder with the steering or, where there is none, the detector; with a report and a table of heads.

        Returns:
            The folder. `report.html` has the heat map of all heads, `heads.csv` a line for each head.

        Raises:
            ArtefactError: `path` exists and is not a saved steering, or this fit has none to put in its place.
        """
        if isinstance(self.result, NothingToEditError):
            folder = save_detector(self.detector, path)
        else:
            folder = self.result.save(path)
        self.report().save(folder / REPORT)
        write_text(folder / HEADS, self.detector.to_dataframe().to_csv(index=False))
        return folder

    def __repr__(self) -> str:
        """The detector, the steering and its certificate, or the reason why there is none."""
        lines = [str(self.detector), str(self.result), *([] if self.certificate is None else [str(self.certificate)])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        certificate = "" if self.certificate is None else str(self.certificate)
        return card(
            "Fitted",
            str(self.result),
            certificate,
            Fragment(detector_card(str(self.detector), self.detector.head_risk_)),
        )


def fit(
    model: TransformerBridge,
    data: Dataset,
    policy: Policy | LeastKLPolicy | None = None,
    *,
    detector: RiskAwareDetector | None = None,
    select: str | int | None = "auto",
    positions: str = "answer",
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
) -> Fitted:
    """Fit detectors and a steering on one part of the data, choose heads on a second, and certify on a third.

    Where the data show no head that detects, such as data of too few groups, the detector and the parts are returned
    without a steering, and `Fitted.steering` raises the reason.

    Args:
        model: from `load_model`.
        data: statements and, to choose heads by their effect, prompts with correct and incorrect answers.
        policy: unfitted; default `RadiantPolicy()`.
        detector: unfitted; default `RiskAwareDetector(seed=seed)`, with joint scores for a policy that needs them.
        select: for `RadiantPolicy(heads="significant")` and data with prompts: the heads to keep by their effect on
            the validation part, "auto" or a number as for `Steering.select`; None keeps all.
        positions: tokens to detect at (see `collect`).
        fractions: of groups for training, validation and test.
        seed: of the split.
        out: of a `LeastKLPolicy`: folder for what it measures; the same call after an interruption measures what is
            missing.
        progress: show progress bars.

    Raises:
        InvalidArgumentError: a policy or an option out of its range, or `out` with another policy; nothing is run
            before.
        OutputError: `out` cannot be written.
        DataError: a part of the data with too few groups of a class.

    Example:
        >>> fitted = rl.fit(model, rl.load_dataset("tiny-facts"))  # doctest: +SKIP
        >>> fitted.steering, fitted.certificate  # doctest: +SKIP
    """
    _checks.instance("data", data, Dataset, hint="`load_dataset` makes one")
    policy = RadiantPolicy() if policy is None else policy
    _check_policy(policy, model)
    if out is not None:
        if not isinstance(policy, LeastKLPolicy):
            raise InvalidArgumentError("`out` keeps what a `LeastKLPolicy` measures; leave it out for other policies.")
        check_target(Path(out) / "any")
    _check_classes(Splits(*data.split(fractions, seed=seed)))
    if detector is None:
        detector = RiskAwareDetector(seed=seed, joint=needs_joint(policy))
    require_joint(policy.gate, getattr(detector, "joint", False), evidence=needs_joint(policy))
    experiment = prepare(
        model, data, detector=detector, positions=positions, fractions=fractions, seed=seed, progress=progress
    )
    held_out = experiment.test_cache()
    try:
        if isinstance(policy, LeastKLPolicy):
            steering = policy.fit(
                model,
                experiment.train,
                validation=experiment.validation,
                detector=experiment.detector,
                out=out,
                progress=progress,
            )
            return Fitted(experiment, held_out, steering, certify_behaviour(model, steering, experiment.test))
        steering = experiment.fit(policy)
        effects = None
        if select is not None and _chooses_by_effect(policy, experiment.validation):
            effects = head_effects(model, experiment.validation, steering)
            steering = steering.select(effects, k=select)
    except NothingToEditError as reason:
        return Fitted(experiment, held_out, reason)
    return Fitted(experiment, held_out, steering, steering.certify(held_out), effects)


def _check_policy(policy: object, model: TransformerBridge) -> None:
    # A class has the attributes of the protocol, too.
    if isinstance(policy, type) or not isinstance(policy, (Policy, LeastKLPolicy)):
        got = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
        raise InvalidArgumentError(
            f"`policy` must be an unfitted policy, such as RadiantPolicy() or ITIPolicy(); got {got}."
        )
    policy.check()
    require_bridge(model)
    shape = int(model.cfg.n_layers), int(model.cfg.n_heads)
    if policy.heads is not None:
        check_heads(policy.heads, *shape)
    if isinstance(policy, ITIPolicy) and policy.n_heads is not None:
        _checks.whole("n_heads", policy.n_heads, 1, shape[0] * shape[1])
    if isinstance(policy, LeastKLPolicy) and policy.family == "strength":
        raise InvalidArgumentError(
            "`family` 'strength' sets the strengths of another steering's maps: use `policy.fit(model, train, "
            "validation=..., base=steering)`."
        )


def _check_classes(splits: Splits) -> None:
    """Refuse data whose parts lack a class, before activations are collected."""
    # One half of the validation groups chooses, the other one tests: each class is needed in both.
    for name, part, least in (("training", splits.train, 1), ("validation", splits.validation, 2)):
        for label, word in ((DESIRABLE, "a desirable (0)"), (UNDESIRABLE, "an undesirable (1)")):
            n = len({statement.group for statement in part.atoms if statement.label == label})
            if n < least:
                raise DataError(
                    f"The {name} part needs at least {least} of its {len(part.groups)} groups with {word} example; "
                    f"{n} have one. Give more groups of that class, or this part a larger share."
                )


def _chooses_by_effect(policy: Policy, validation: Dataset) -> bool:
    # Heads that were named stay. Effects are measured on the log-odds of correct against incorrect answers.
    answered = any(prompt.has_choices for prompt in validation.prompts)
    return isinstance(policy, RadiantPolicy) and policy.heads == "significant" and answered
