"""Which figures a report has, and what each of them needs."""

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
from radiant_lens.sites import HeadSite
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.steering.steering import Steering
from radiant_lens.viz.circuits import EmptyView, HtmlView


class Parts(NamedTuple):
    """What a report is made of; whatever is None is left out."""

    steering: Steering | None
    detector: RiskAwareDetector | None
    cache: HeadCache | None
    effects: HeadEffects | None
    certificate: HeldOutCertificate | None
    evaluations: Mapping[str, Evaluation]
    writes: EditWrites | None
    answer: TracedAnswer | None


class Shown(NamedTuple):
    """A figure or view; `wide` ones take the whole width."""

    drawn: go.Figure | HtmlView | EmptyView
    wide: bool


class Section(NamedTuple):
    """Figures under one heading, with a line that says how to read them."""

    heading: str
    words: str
    shown: list[Shown]


class _Figure(NamedTuple):
    needs: tuple[str, ...]
    draw: Callable[[Any], go.Figure | HtmlView | EmptyView]
    wide: bool = False


def _sites(parts: Any) -> tuple[HeadSite, ...]:
    return () if parts.steering is None else parts.steering.sites


def _strongest(parts: Any) -> HeadSite:
    """The edited head that does most, as far as that is known."""
    sites = _sites(parts)
    if parts.effects is None:
        return sites[0]
    known = dict(zip(parts.effects.sites, parts.effects.estimated.tolist()))
    return max(sites, key=lambda site: known.get(site, float("-inf")))


def _truth(parts: Any) -> str:
    """The metric where steering matters most, as far as it was measured."""
    known = {metric for e in parts.evaluations.values() for metric in e.metrics}
    return next(m for m in ("correct/after_undesirable", "correct") if m in known)


PLAN: tuple[tuple[str, str, tuple[_Figure, ...]], ...] = (
    (
        "Which heads detect, and which act",
        "Each head has a detector of undesirable content; dark cells err least. How well a head detects says little "
        "of what editing it does, so heads are chosen by their effect.",
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
        "The most effective of the edited heads, on held-out text: what its gate passes is moved over the detector's "
        "boundary, as little as possible.",
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
    (
        "What it gains, and what it costs",
        "Up is better, left is cheaper. Controls stand beside the steering: what they gain is not the method's.",
        (_Figure(("evaluations",), lambda p: viz.trade_off(p.evaluations, y=_truth(p)), wide=True),),
    ),
)


def sections(parts: Parts) -> tuple[list[Section], list[str]]:
    """The sections that can be made of the parts, and the names of parts that others would need."""
    made, missing = [], {}
    there = {name for name, part in parts._asdict().items() if part is not None and part != {}}
    if "evaluations" in there and not _has_trade_off(parts):
        there.remove("evaluations")
    for heading, words, figures in PLAN:
        shown = [Shown(f.draw(parts), f.wide) for f in figures if set(f.needs) <= there]
        if shown:
            made.append(Section(heading, words, shown))
        missing |= {name: heading for f in figures for name in f.needs if name not in there}
    return made, [f"{heading}: needs `{name}`" for name, heading in missing.items()]


def _has_trade_off(parts: Parts) -> bool:
    return any({"kl", "correct"} <= set(e.metrics) for e in parts.evaluations.values())
