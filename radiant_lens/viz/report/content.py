"""The sections of a report: their figures, and the inputs that each figure needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go

from radiant_lens import viz
from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.analysis.traced import TracedAnswer
from radiant_lens.analysis.writes import EditWrites
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.side_effects import SideEffects
from radiant_lens.sites import HeadSite
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.steering.steering import Steering
from radiant_lens.viz.circuits import EmptyView, HtmlView


class ReportInputs(NamedTuple):
    """The arguments of `report` that figures are drawn from; None where one is missing."""

    steering: Steering | None
    detector: RiskAwareDetector | None
    cache: HeadCache | None
    effects: HeadEffects | None
    certificate: HeldOutCertificate | None
    evaluations: Mapping[str, Evaluation]
    writes: EditWrites | None
    answer: TracedAnswer | None
    side_effects: SideEffects | None = None


class Panel(NamedTuple):
    """A figure or view; `wide` ones take the whole width."""

    drawn: go.Figure | HtmlView | EmptyView
    wide: bool


class Section(NamedTuple):
    """Figures under one heading, with a line on how to read them."""

    heading: str
    words: str
    panels: list[Panel]


class _Figure(NamedTuple):
    """A figure of the plan: the inputs that it needs, and the function that draws it from them."""

    needs: tuple[str, ...]
    draw: Callable[[Any], go.Figure | HtmlView | EmptyView]
    wide: bool = False


def _sites(inputs: Any) -> tuple[HeadSite, ...]:
    return () if inputs.steering is None else inputs.steering.sites


def _strongest(inputs: Any) -> HeadSite:
    """The edited head of largest estimated effect; without effects, the first."""
    sites = _sites(inputs)
    if inputs.effects is None:
        return sites[0]
    # Effects may be of other heads than the steering edits: those without an estimate come last.
    estimates = dict(zip(inputs.effects.sites, inputs.effects.estimated.tolist()))
    return max(sites, key=lambda site: estimates.get(site, float("-inf")))


def _gain_metric(inputs: Any) -> str:
    """Correct answers after undesirable context, where steering matters most; else over all prompts."""
    known = {metric for e in inputs.evaluations.values() for metric in e.metrics}
    return next(m for m in ("correct/after_undesirable", "correct") if m in known)


PLAN: tuple[tuple[str, str, tuple[_Figure, ...]], ...] = (
    (
        "Which heads detect, and which act",
        "Each head has a detector of undesirable content; darker heads err more. A head that detects well need not "
        "change the answer, so heads are chosen by the effect of editing them.",
        (
            _Figure(("detector",), lambda p: viz.head_risk(p.detector, p.steering)),
            _Figure(("effects",), lambda p: viz.head_effects(p.effects, p.detector, selected=_sites(p))),
            _Figure(("detector",), lambda p: viz.layer_risk(p.detector)),
            _Figure(("detector", "cache"), lambda p: viz.roc(p.detector, p.cache, heads=_sites(p)[:7] or None)),
            _Figure(("detector", "cache"), lambda p: viz.vote_curves(p.detector, p.cache), wide=True),
        ),
    ),
    (
        "What the edit does to activations",
        "The most effective of the edited heads, on held-out text: activations that its gate passes are moved over the "
        "detector's boundary.",
        (
            _Figure(
                ("steering", "cache"),
                lambda p: viz.score_histogram(p.steering, p.cache, _strongest(p), certificate=p.certificate),
            ),
            _Figure(("steering", "cache"), lambda p: viz.activation_scatter(p.steering, p.cache, _strongest(p))),
        ),
    ),
    (
        "What the edit writes",
        "Each head's displacement on its direct way into the output.",
        (_Figure(("writes",), lambda p: viz.edit_writes(p.writes), wide=True),),
    ),
    (
        "One answer, token by token",
        "Filled marks are edits, open ones votes that did not open the gate.",
        (
            _Figure(("answer",), lambda p: viz.vote_timeline(p.answer.trace, p.answer.tokens), wide=True),
            _Figure(("answer",), lambda p: viz.colored_tokens(p.answer.trace, p.answer.tokens), wide=True),
            _Figure(
                ("answer",),
                lambda p: viz.colored_tokens(p.answer.trace, p.answer.tokens, by="displacement"),
                wide=True,
            ),
            _Figure(("answer",), lambda p: viz.attention(p.answer.patterns), wide=True),
        ),
    ),
)


def sections(inputs: ReportInputs) -> tuple[list[Section], list[str]]:
    """Draw the sections that the inputs allow, and name the inputs that the others need."""
    drawn: list[Section] = []
    missing: dict[str, str] = {}
    available = {name for name, value in inputs._asdict().items() if value is not None and value != {}}
    for heading, words, figures in PLAN:
        panels = [Panel(f.draw(inputs), f.wide) for f in figures if set(f.needs) <= available]
        if panels:
            drawn.append(Section(heading, words, panels))
        missing |= {name: heading for f in figures for name in f.needs if name not in available}
    if not inputs.evaluations:
        missing["evaluations"] = "What it gains, and what it costs"
    if inputs.side_effects is None:
        missing["side_effects"] = "Side effects"
    return drawn, [f"{heading}: needs `{name}`" for name, heading in missing.items()]


def trade_off(inputs: ReportInputs) -> go.Figure | None:
    """Draw gain against cost; None where no evaluation has both, such as one without answers."""
    if not any({"kl", "correct"} <= set(e.metrics) for e in inputs.evaluations.values()):
        return None
    return viz.trade_off(inputs.evaluations, y=_gain_metric(inputs), height=420)
