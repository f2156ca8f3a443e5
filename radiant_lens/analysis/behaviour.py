"""Bounds on the behaviour of a steered model over held-out groups: KL, and questions that improve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from radiant_lens import _checks
from radiant_lens.analysis.strength import desirable_statements, measure_kl
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import DataError
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.models.identity import require_fitting
from radiant_lens.models.lengths import fit_context
from radiant_lens.notebook import card, html_table
from radiant_lens.statistics.bounds import Interval, clopper_pearson, one_per_group
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class BehaviourCertificate:
    """Bounds on the behaviour of a steered model over groups like the held-out ones.

    The two bounds hold with the confidence each, not jointly.

    Attributes:
        confidence: of each bound.
        kl: mean KL from the unsteered to the steered model on desirable text, in nats a token.
        kl_upper: one-sided upper bound of it (bootstrap over groups).
        kl_budget: budget of KL that the steering was fitted or scaled to; None if there was none.
        n_kl_groups: groups that the KL was measured on.
        n_risen: questions whose log-odds of a correct answer rise, one random question a group.
        n_questions: groups with a question that has both kinds of answers.
        risen: exact interval of their share (Clopper-Pearson).
        risen_lower: exact one-sided lower bound of the share.
        heads: certificate of the heads' own detectors; None for a steering without a detector.
    """

    confidence: float
    kl: float
    kl_upper: float
    kl_budget: float | None
    n_kl_groups: int
    n_risen: int
    n_questions: int
    risen: Interval
    risen_lower: float
    heads: HeldOutCertificate | None

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each bound."""
        return pd.DataFrame(
            [
                ("KL, nats a token", self.kl, self.kl_upper, "at most", self.n_kl_groups),
                ("share of questions that improve", self.risen.value, self.risen_lower, "at least", self.n_questions),
            ],
            columns=["quantity", "value", "bound", "direction", "groups"],
        )

    def _repr_html_(self) -> str:
        return card("BehaviourCertificate", str(self), html_table(self.to_dataframe().to_dict("records")))

    def __str__(self) -> str:
        """Both bounds as sentences, then that of the heads."""
        budget = "" if self.kl_budget is None else f" (budget {self.kl_budget:g})"
        sentences = [
            f"Desirable text changes by a KL of {self.kl:.4f} nats a token, at most {self.kl_upper:.4f}{budget}, over "
            f"{self.n_kl_groups} held-out groups.",
            f"{self.n_risen} of {self.n_questions} held-out questions improve: {self.risen:.0%}, at least "
            f"{self.risen_lower:.0%}.",
            f"Each bound has confidence {self.confidence:.0%}.",
        ]
        return " ".join(sentences + ([] if self.heads is None else [f"Heads: {self.heads}"]))


def certify_behaviour(
    model: TransformerBridge,
    steering: Steering,
    data: Dataset,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 20,
    max_tokens: int | None = None,
) -> BehaviourCertificate:
    """Measure and bound the behaviour of a steered model; `Steering.certify(model, data)` documents the arguments."""
    _checks.between("confidence", confidence, 0.5, 1)
    require_fitting(steering, model)
    _checks.disjoint_groups(steering.meta.get("seen_groups", ()), data.groups, ("the fit", "certification"))
    statements = fit_context(model, desirable_statements(data), data.on_long, stacklevel=4).records
    prompts = fit_context(model, data.prompts, data.on_long, answers=True, stacklevel=4).records
    kl = measure_kl(model, statements, steering, max_tokens=max_tokens)
    plain, steered = (score_choices(model, prompts, s, max_tokens=max_tokens) for s in (None, steering))
    if plain.empty:
        raise DataError(f"Data set {data.name!r} has no prompts with both correct and incorrect answers.")
    # MC2 is the sigmoid of the log-odds, so the one rises where the other does. Questions of one group are not
    # independent, so the exact bound counts one of each.
    chosen = one_per_group(torch.as_tensor(plain["group"].factorize()[0]), seed=seed).numpy()
    rises = (steered["mc2"] > plain["mc2"]).to_numpy()[chosen]
    n_risen, n = int(rises.sum()), len(rises)
    has_detector = bool(steering.meta.get("detector"))
    return BehaviourCertificate(
        confidence,
        kl.mean,
        kl.upper(confidence),
        steering.meta.get("kl_budget"),
        len(kl.kl),
        n_risen,
        n,
        clopper_pearson(n_risen, n, confidence=confidence),
        clopper_pearson(n_risen, n, confidence=2 * confidence - 1).low,
        # The method of the base class: with a model, the one of `radiant_lens.analysis.steering` calls this function.
        Steering.certify(steering, collect(model, data), confidence=confidence, seed=seed, draws=draws)
        if has_detector
        else None,
    )
