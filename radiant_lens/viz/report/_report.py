"""`report`: a steering, its figures and its answers on one page that needs no network."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from radiant_lens._files import write_text
from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.analysis.restored import restored_detector
from radiant_lens.analysis.traced import TracedAnswer
from radiant_lens.analysis.writes import EditWrites
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.side_effects import SideEffects
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.steering.steering import Steering
from radiant_lens.viz.report import tables, tiles, words
from radiant_lens.viz.report.again import again
from radiant_lens.viz.report.answers import answers
from radiant_lens.viz.report.content import ReportInputs, sections, trade_off
from radiant_lens.viz.report.page import render

PACKAGES = ("radiant-lens", "transformer-lens", "transformers", "torch", "plotly", "circuitsvis")


@dataclass(frozen=True, repr=False)
class Report:
    """A page; `save` writes it.

    Attributes:
        title: heading of the page.
        html: the whole page, self-contained.
    """

    title: str
    html: str

    def save(self, path: str | Path) -> Path:
        """Write the page as one file, in place of any file at `path`; returns the path."""
        return write_text(path, self.html)

    def __repr__(self) -> str:
        """Title and size."""
        return f"Report({self.title!r}, {len(self.html.encode()) / 1e6:.1f} MB; .save('report.html') writes it)"


def report(
    steering: Steering | None = None,
    *,
    detector: RiskAwareDetector | None = None,
    cache: HeadCache | None = None,
    effects: HeadEffects | None = None,
    certificate: HeldOutCertificate | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
    steered: str | None = None,
    writes: EditWrites | None = None,
    answer: TracedAnswer | None = None,
    side_effects: SideEffects | None = None,
    n_examples: int = 12,
    title: str = "What the steering does",
) -> Report:
    """Put all measurements of a steering on one page; the page names those that are missing.

    Args:
        steering: fitted or loaded.
        detector: fitted; default the steering's own, measured on `cache`.
        cache: activations of groups that took no part in the fit.
        effects: from `head_effects`.
        certificate: from `steering.certify`; default computed from `cache`.
        evaluations: by name, the unsteered model first, controls among them; of the same prompts.
        steered: name of the steering's evaluation; default the second.
        writes: from `edit_writes`.
        answer: from `trace_answer`.
        side_effects: of the function of this name.
        n_examples: prompts with their answers that each filter of the table shows, at least 0; 0 for no answers.
        title: heading of the page.

    Returns:
        The page; `.save("report.html")` writes it.

    Raises:
        InvalidArgumentError: nothing to report on, or `steered` is none of the evaluations.
        LeakageError: a group of `cache` took part in the fit.

    Example:
        >>> report(steering, cache=rl.collect(model, test)).save("report.html")  # doctest: +SKIP
    """
    # A cache alone says nothing: its activations need a detector or a steering.
    required = (steering, detector, effects, certificate, writes, answer, side_effects)
    if all(value is None for value in required) and not evaluations:
        raise InvalidArgumentError("There is nothing to report on: give a steering, a detector, or evaluations.")
    evaluations = dict(evaluations or {})
    steered = tables.steered_name(evaluations, steered)
    if steering is not None and cache is not None:
        certificate = steering.certify(cache) if certificate is None else certificate
        detector = restored_detector(steering, cache) if detector is None else detector
    inputs = ReportInputs(steering, detector, cache, effects, certificate, evaluations, writes, answer, side_effects)
    drawn, missing = sections(inputs)
    return Report(
        title,
        render(
            title=title,
            tiles=tiles.tiles(inputs, steered),
            summary=words.summary(inputs, steered),
            trade_off=trade_off(inputs),
            answers=answers(evaluations, steered, n_examples),
            sections=drawn,
            again=again(inputs, steered),
            comparison=tables.comparison(evaluations),
            side_effects=tables.side_effects(side_effects),
            certificate=None if certificate is None else tables.frame(certificate.to_dataframe()),
            certificate_words=None if certificate is None else str(certificate),
            settings=tables.settings(inputs),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            missing=missing,
        ),
    )
