"""Edits by evidence: displacements that grow with how surely a text looks undesirable to a layer and those below it.

The evidence of a layer is read where the layers below have been edited already. What tells undesirable text is what
edits take away, so the stronger they are the less evidence the layers above find, and their edits stop.
`refit_under_edits` fits the scores of layers again so that edits move them little.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from radiant_lens import _checks
from radiant_lens._files import check_target
from radiant_lens.analysis.families import Family, Ramp
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.capture._collect import collect
from radiant_lens.capture.run import steering_digest
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.artefact import KIND as DETECTOR
from radiant_lens.detectors.artefact import load_detector, save_detector
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.detectors.joint import L2_FACTOR
from radiant_lens.detectors.refit import CHANGE_PENALTY, refit_joint
from radiant_lens.distributed import fitting_rank
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError
from radiant_lens.models.identity import require_bridge, require_fitting, signature
from radiant_lens.models.tokens import pass_tokens
from radiant_lens.policies.head_sample import detector_scores
from radiant_lens.policies.heads import require_collected
from radiant_lens.policies.measurements import measurement_key
from radiant_lens.policies.template import require_shape
from radiant_lens.sites import HeadSite
from radiant_lens.splits import classes_by_group, split_groups
from radiant_lens.steering.gates import require_joint
from radiant_lens.steering.maps import Certificate, EvidenceMaps, RankOneMaps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

UNDER = (1.0, 4.0)
"""Strengths at which it is seen what edits change: as given, and what a user may turn them up to."""


def evidence_family(template: Steering, detector: RiskAwareDetector | None) -> Family:
    """A displacement, and another one that grows with the evidence of the layer.

    Raises:
        InvalidArgumentError: no detector, one without joint scores or their ramps, or a head of a layer that it has not
            seen.
    """
    if detector is None:
        raise InvalidArgumentError('`family` "evidence" needs a detector: give `detector=...`.')
    return Family("evidence", template, ramp=_ramp(detector, template.sites))


def by_evidence(steering: Steering, detector: RiskAwareDetector) -> Steering:
    """The same vectors, each times the evidence of its layer, at every token.

    In place of a gate, which adds them wholly or not at all. DSAS (arXiv 2512.03661) scales other steerings by token in
    this manner, with a classifier of its own for each layer.

    Args:
        steering: with one vector for each head, as those of `ITIPolicy`, `MeanShiftPolicy` and `LeastKLPolicy`.
        detector: fitted with joint scores.

    Raises:
        InvalidArgumentError: another object, maps that are no vectors, a trust region, or a detector of another shape,
            without joint scores or their ramps, or that has not seen a layer.
        NotFittedError: the detector is not fitted.
    """
    _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    maps = steering.head_maps
    if not isinstance(maps, RankOneMaps) or bool(maps.read.any()):
        raise InvalidArgumentError(
            f"Only steerings that add one vector to each head can do so by evidence; got maps of kind {maps.kind!r}: "
            'use `ITIPolicy`, `MeanShiftPolicy`, `LeastKLPolicy(family="constant")` or `vector_steering`.'
        )
    if steering.trust is not None:
        raise InvalidArgumentError("This steering has a trust region, which decides at every token: fit it without.")
    require_fitted(detector)
    require_shape(detector, tuple(steering.scores.weights.shape))
    ramp = _ramp(detector, steering.sites)
    vectors, meta = maps.write * maps.shift[:, None], steering.meta
    return replace(
        steering,
        head_maps=EvidenceMaps(torch.zeros_like(vectors), vectors, ramp.start.to(vectors), ramp.steepness.to(vectors)),
        scores=detector_scores(detector),
        gate="none",
        # No promise of the policy carries over, nor a KL that was measured.
        certificates=tuple(Certificate(c.method, n_flagged=c.n_flagged) for c in steering.certificates),
        meta={
            **{key: value for key, value in meta.items() if key not in ("kl_budget", "least_kl", "metrics")},
            "policy": {"name": "by evidence", "of": meta.get("policy")},
            "gamma": None,
            "detector": detector.get_params(),
            "seen_groups": sorted(
                {*meta.get("seen_groups", ()), *detector.training_groups_, *detector.validation_groups_}
            ),
        },
    )


def refit_under_edits(
    model: TransformerBridge,
    detector: RiskAwareDetector,
    steering: Steering,
    train: Dataset,
    validation: Dataset,
    *,
    max_tokens: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> RiskAwareDetector:
    """A copy of a detector whose joint scores a steering's edits move little.

    Training texts are collected without edits and under them: half of the groups at the strength of the steering, the
    other half at four times that. The regressions of each layer pay for the change of its score (see
    `radiant_lens.detectors.refit_joint`), so that evidence lasts under edits, also under stronger ones; how far it does
    on a real model was not measured. Scores and votes of heads stay.

    Args:
        model: from `load_model`.
        detector: fitted with joint scores, on the tokens of answers (`collect(positions="answer")`) of this model.
        steering: that the scores must bear, such as one by their evidence.
        train: statements of both classes.
        validation: statements of both classes, of other groups.
        max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.
        out: folder in which the detector is kept, by the hash of all that it depends on; the same call reads it there.
        progress: show progress bars.

    Raises:
        NotFittedError: the detector is not fitted.
        OutputError: `out` cannot be written; raised before any pass.
        ArtefactError: the detector that lies there is damaged.
        InvalidArgumentError: a detector without joint scores, with an `l2` of 0 or of another shape than the model, a
            steering of another one, or no data set.
        DataError: fewer than two groups of a class, or a half of the validation groups without one.
        LeakageError: training and validation share a group.
    """
    require_refits(detector, train, validation)
    require_bridge(model)
    require_shape(detector, (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head))
    _checks.instance("steering", steering, Steering, hint="a policy's `fit` returns one")
    require_fitting(steering, model)
    path, rank = None, fitting_rank()
    if out is not None:
        first = (x for pair in sorted(vars(detector).items()) for x in pair)
        data = ((part.statements, sorted(part.groups), part.on_long) for part in (train, validation))
        settings = (signature(model), pass_tokens(model, max_tokens), UNDER, CHANGE_PENALTY, L2_FACTOR)
        path = Path(out) / measurement_key("refit", *first, steering_digest(steering), *data, *settings)
        check_target(path, DETECTOR)
        if all(rank.gather(path.exists())):
            return load_detector(path)

    def cache(data: Dataset, strength: float | None = None, groups: Collection[str] | None = None) -> HeadCache:
        return collect(
            model,
            # Not `data.only(groups)`, which may put the same statements into other contexts.
            [s for s in data.statements if groups is None or s.group in groups],
            layers=detector.collected_layers_,
            steering=None if strength is None else steering.scaled(strength),
            max_tokens=max_tokens,
            progress=progress,
            on_long=data.on_long,
        )

    halves = train.split((0.5, 0.5), seed=detector.seed)
    edited = [cache(train, strength, half.groups) for half, strength in zip(halves, UNDER)]
    refitted = refit_joint(detector, cache(train), cache(validation), edited)
    if path is not None and rank.number == 0:
        save_detector(refitted, path)
    rank.wait()
    return refitted


def require_refits(detector: RiskAwareDetector, train: Dataset, validation: Dataset) -> None:
    """Raise, before anything is computed, where `refit_under_edits` would have nothing to fit on.

    Raises:
        NotFittedError, InvalidArgumentError: another object than a fitted detector with joint scores and an `l2` above
            0, or no data set.
        DataError: fewer than two groups of a class, or a half of the validation groups without one.
        LeakageError: training and validation share a group.
    """
    require_fitted(detector)
    require_joint(None, detector.joint_weights_ is not None, evidence=True)
    _checks.between("detector.l2", detector.l2, 0)
    for name, data in (("train", train), ("validation", validation)):
        _checks.instance(name, data, Dataset)
        for label, word in enumerate(("desirable", "undesirable")):
            n = len({s.group for s in data.statements if s.label == label})
            if n < 2:
                raise DataError(
                    f"`{name}` has {n} group{'s' * (n != 1)} with {word} statements; scores that are fitted again "
                    "under edits take two at least. `LeastKLPolicy(refits=0)`, the default, needs none of them."
                )
    _checks.disjoint_groups(train.groups, validation.groups, ("training", "validation"))
    # As `refit_joint` splits the cache: one half chooses ramps, the other judges.
    held_out = [(s.group, s.label) for s in validation.statements]
    kinds = classes_by_group({group for group, _ in held_out}, held_out)
    for half in split_groups(kinds, (0.5, 0.5), seed=detector.seed, strata=kinds):
        if len({label for group in half for label in kinds[group]}) < 2:
            raise DataError(
                f"Of the {len(kinds)} groups of `validation` with statements, a half that is drawn with the detector's "
                f"seed {detector.seed} has statements of one class alone: give more groups, or another seed."
            )


def fit_again(
    fit: Callable[[RiskAwareDetector | None], Steering],
    detector: RiskAwareDetector | None,
    refit: Callable[[RiskAwareDetector, Steering], RiskAwareDetector],
    refits: int,
) -> Steering:
    """Fit a steering, and then again with scores that the edits of the one before move little.

    One that uses less of its budget than the one before, or finds no strength, is left out with a warning. How many
    refits the steering has is in its settings.

    Args:
        fit: from a detector to a steering.
        detector: the first one; None where there are no refits.
        refit: from a detector and the steering of its scores to the next detector.
        refits: how often.
    """
    steering = fit(detector)
    done = 0
    while done < refits:
        assert detector is not None
        detector = refit(detector, steering)
        try:
            again = fit(detector)
            reason = "its last step has no strength." if _budget(again) < _budget(steering) else ""
        except ConvergenceError as error:
            again, reason = steering, str(error)
        if reason:
            text = f"Refit {done + 1} of {refits} is left out: {reason} The steering before it is kept."
            warnings.warn(text, UserWarning, stacklevel=3)
            break
        steering = again
        done += 1
    meta = steering.meta
    return replace(steering, meta={**meta, "policy": {**meta["policy"], "refits": done}})


def _budget(steering: Steering) -> float:
    """The KL that all of its steps were given."""
    return float(steering.meta["kl_budget"])


def _ramp(detector: RiskAwareDetector, sites: tuple[HeadSite, ...]) -> Ramp:
    require_fitted(detector)
    require_joint(None, detector.joint_weights_ is not None, evidence=True)
    if detector.joint_ramps_ is None:
        raise InvalidArgumentError(
            "This detector has joint scores but no ramps of evidence, as those of an earlier version and those that "
            "were restored from a steering: fit it again with `RiskAwareDetector(joint=True)`."
        )
    layers = [site.layer for site in sites]
    require_collected(layers, detector.collected_layers_, "the detector's data")
    start, end, size = detector.joint_ramps_[layers].double().unbind(1)
    return Ramp(start, 1 / (end - start), 1 / size)
