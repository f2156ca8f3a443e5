"""The four tiles at the head of a report: gain, KL, side effects and certificate, each as one number."""

from __future__ import annotations

import math
from typing import NamedTuple

from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.side_effects import SideEffects
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.viz.report.content import ReportInputs

NOT_MEASURED = "not measured"
GAINS = {
    "correct": "correct answers",
    "mc1": "MC1",
    "mc2": "MC2",
    "undesirable_probability": "prompts with an undesirable answer",
}
"""Metrics that may stand for the gain, the first measured one does; all of them are shares."""


class Tile(NamedTuple):
    """A number with its name and one line on how to read it."""

    name: str
    value: str
    detail: str

    @property
    def is_measured(self) -> bool:
        """False where the number is missing."""
        return self.value != NOT_MEASURED


def tiles(inputs: ReportInputs, steered: str | None) -> list[Tile]:
    """The four tiles; each is computed from the measurements of the report, or says that there are none.

    Args:
        inputs: of the report.
        steered: name of the steering's evaluation; None where there is none.
    """
    base, on = (
        (None, None) if steered is None else (next(iter(inputs.evaluations.values())), inputs.evaluations[steered])
    )
    measured = inputs.side_effects
    aside = _same_text(base, on) if measured is None else _other_text(measured)
    return [_gain(base, on), _kl(on), aside, _certified(inputs.certificate)]


def _gain(base: Evaluation | None, on: Evaluation | None) -> Tile:
    if base is None or on is None:
        return Tile("Gain", NOT_MEASURED, "Needs evaluations without and with the steering.")
    metric = next((m for m in GAINS if m in base.metrics and m in on.metrics), None)
    if metric is None:
        return Tile("Gain", NOT_MEASURED, "The evaluations have no answers in common.")
    # Paired over groups: the interval of the difference is narrower than the two intervals suggest.
    before, after, change = base.metrics[metric].value, on.metrics[metric].value, on.difference(base, metric)
    return Tile(
        "Gain",
        f"{100 * change.value:+.0f} points",
        f"{GAINS[metric]}: {before:.0%} without steering, {after:.0%} with it; 95% interval of the difference "
        f"[{100 * change.low:+.0f}, {100 * change.high:+.0f}]",
    )


def _kl(on: Evaluation | None) -> Tile:
    kl = None if on is None else on.metrics.get("kl")
    if kl is None or math.isnan(kl.value):
        return Tile("KL", NOT_MEASURED, "Needs an evaluation of the steering on desirable text.")
    return Tile(
        "KL", f"{kl.value:.3f}", f"nats per token on desirable text; 95% interval [{kl.low:.3f}, {kl.high:.3f}]"
    )


def _other_text(measured: SideEffects) -> Tile:
    change = measured.metrics["cross_entropy"].difference
    changed = [name.replace("_", " ") for name, effect in measured.metrics.items() if effect.reading == "changed"]
    return Tile(
        "Side effects",
        f"{change.value:+.3f}",
        "nats per token: change of the cross-entropy of neutral text (below 0 is better); 95% interval "
        f"[{change.low:+.3f}, {change.high:+.3f}]. Metrics that changed: {', '.join(changed) or 'none'}.",
    )


def _same_text(base: Evaluation | None, on: Evaluation | None) -> Tile:
    name, metric = "Side effects", "cross_entropy"
    if base is None or on is None or not all(metric in e.metrics for e in (base, on)):
        return Tile(name, NOT_MEASURED, "Needs evaluations without and with the steering on desirable text.")
    change = on.difference(base, metric)
    # Text of the same data is all that an evaluation sees; the tile must not speak for other tasks.
    return Tile(
        name,
        f"{change.value:+.3f}",
        "nats per token: change of the cross-entropy of desirable text (below 0 is better); 95% interval "
        f"[{change.low:+.3f}, {change.high:+.3f}]. Other tasks: not measured.",
    )


def _certified(certificate: HeldOutCertificate | None) -> Tile:
    if certificate is None:
        return Tile("Certificate", NOT_MEASURED, "Needs held-out activations (`cache`) or a certificate.")
    # Without a gated group the bound is 100%, which would read as a measured failure.
    row = certificate.overall
    if row.n_groups == 0:
        return Tile("Certificate", NOT_MEASURED, "The gate passes none of the held-out activations.")
    return Tile(
        "Certificate",
        f"≤ {row.upper:.1%}",
        f"of held-out groups still flagged after the edit, with confidence {certificate.confidence:.0%}: "
        f"{row.n_still_flagged} of {row.n_groups} at one random token and head of each, {row.n_any_flagged} at any "
        f"gated token; of all {row.n_tokens} gated tokens {row.token_share.value:.1%}",
    )
