"""Results of a study: tidy, pooled over seeds, as a table and as a figure.

Every interval answers one of two questions, and the results say which:

- *given these fits*: the detectors and steerings are kept fixed and test groups are resampled. All intervals of an
  `Evaluation` are of this kind, and they are too narrow for a claim about a method.
- *over seeds*: the variation between the fits of the seeds is added (see `radiant_lens.studies.seeds.widen`).
  `StudyResult.pooled` and `to_markdown` do so from three seeds on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.evaluation import ratios
from radiant_lens.evaluation.products import PRODUCTS
from radiant_lens.evaluation.result import Evaluation, pool
from radiant_lens.notebook import card, html_table
from radiant_lens.statistics.bounds import Interval
from radiant_lens.studies.seeds import MIN_SEEDS, widen

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARES = ("correct", "incorrect", "other", "undesirable_probability", "edited_share")
"""Metrics printed in percent."""
_TITLES = {"mc1": "MC1", "mc2": "MC2", "true_times_informative": "True*Info"}


@dataclass(frozen=True)
class Row:
    """One steering or control of a study, with its evaluations.

    Attributes:
        name: of the row.
        baseline: name of the unsteered row on the same prompts; None for that row itself.
        settings: the arm's settings, flat.
        evaluations: runs by seed; several runs of a seed are its shuffles, or its folds.
    """

    name: str
    baseline: str | None
    settings: Mapping[str, Any]
    evaluations: Mapping[int, Sequence[Evaluation]]

    @property
    def runs(self) -> list[Evaluation]:
        """The evaluations of all seeds in one list."""
        return [evaluation for runs in self.evaluations.values() for evaluation in runs]

    @cached_property
    def by_seed(self) -> dict[int, Evaluation]:
        """One evaluation a seed; several runs are pooled."""
        return {seed: pool(runs) if len(runs) > 1 else runs[0] for seed, runs in self.evaluations.items()}

    @cached_property
    def pooled(self) -> Evaluation:
        """All runs as one evaluation; the same group on several seeds is one group.

        Its intervals hold given these fits; `StudyResult.pooled` adds the variation between seeds.
        """
        # A question that several seeds test is one cluster: `pool` adds up the sums of groups of the same name, so the
        # bootstrap does not take repeated questions for new ones.
        return self.runs[0] if len(self.runs) == 1 else pool(self.runs)

    @property
    def notes(self) -> list[str]:
        """Reasons why runs edited nothing, without repetitions."""
        return sorted({note for note in self._notes if note})

    @property
    def mark(self) -> str:
        """Suffix of the row's name in tables: the number of runs that edited nothing."""
        n, n_runs = sum(map(bool, self._notes)), len(self.runs)
        if n == 0:
            return ""
        return " (nothing to edit)" if n == n_runs else f" (nothing to edit in {n} of {n_runs} runs)"

    @property
    def _notes(self) -> list[str]:
        return [evaluation.settings.get("note") or "" for evaluation in self.runs]


@dataclass(frozen=True)
class StudyResult:
    """Result of a study.

    Attributes:
        name: of the study.
        rows: no steering first, then the arms, then their controls.
        n_computed: number of cells computed in this run; the others were kept from earlier ones.
    """

    name: str
    rows: tuple[Row, ...]
    n_computed: int = field(default=0, compare=False)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of each row by its name, all runs pooled; intervals hold given these fits."""
        return {row.name: row.pooled for row in self.rows}

    @property
    def n_seeds(self) -> int:
        """Number of seeds."""
        return len(self.rows[0].evaluations)

    def __getitem__(self, name: str) -> Row:
        """A row by its name."""
        _checks.known("row", name, [row.name for row in self.rows])
        return next(row for row in self.rows if row.name == name)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each row, seed and metric.

        Columns: `row`, the settings, `seed`, `metric`, `value` with its interval `low` and `high`, `difference` to no
        steering with `difference_low`, `difference_high` and permutation `p_value`, `heads` and `note`. Intervals and
        p-values hold given the seed's own fit.
        """
        lines = []
        for row in self.rows:
            for seed, evaluation in row.by_seed.items():
                first = row.evaluations[seed][0].settings
                head = {"row": row.name, **row.settings, "seed": seed}
                tail = {"heads": " ".join(first.get("heads", [])), "note": first.get("note", "")}
                lines += [{**head, **line, **tail} for line in _lines(evaluation, self._unsteered(row, [seed]))]
        return pd.DataFrame(lines)

    def pooled(self) -> pd.DataFrame:
        """One line for each row and metric, over all seeds.

        From three seeds on, `low` to `high` and `difference_low` to `difference_high` include the variation between
        the seeds' fits (see `radiant_lens.studies.seeds.widen`). With fewer seeds they hold given these fits.

        Columns: `row`, `metric`, `value`, `low`, `high`; `difference` to no steering, `difference_low`,
        `difference_high`; the four ends once more with the suffix `_given_fits`; `p_value`, a permutation test over
        groups given these fits; `least` and `largest` value of a run (a seed, or a seed's shuffle or fold).
        """
        return pd.DataFrame([line for row in self.rows for line in self._pooled_lines(row)])

    def _pooled_lines(self, row: Row, *, compare: bool = True) -> list[dict[str, Any]]:
        """Lines of a row over all seeds; `compare=False` leaves the differences out, whose tests take a while."""
        # The component between seeds needs each seed's own value and its difference to the same seed's baseline: test
        # groups that are hard on one split are hard for both, and cancel.
        seeds = list(row.evaluations)
        baseline = self._unsteered(row, seeds) if compare else None
        baselines = [self._unsteered(row, [seed]) if compare else None for seed in seeds]
        lines = []
        for line in _lines(row.pooled, baseline):
            metric = line["metric"]
            line |= _over_seeds(line, "", [e.metrics[metric].value for e in row.by_seed.values()])
            if "difference" in line:
                pairs = zip(row.by_seed.values(), baselines)
                differences = [e.metrics[metric].value - b.metrics[metric].value for e, b in pairs if b is not None]
                line |= _over_seeds(line, "difference", differences)
            # A run that edits nothing has no displacement (NaN); pandas leaves it out of the range.
            values = pd.Series([run.metrics[metric].value for run in row.runs])
            lines.append({"row": row.name, **line, "least": float(values.min()), "largest": float(values.max())})
        return lines

    def _unsteered(self, row: Row, seeds: Sequence[int]) -> Evaluation | None:
        """The baseline of a row, repeated once for each of the row's runs.

        A paired difference needs the same prompts in the same order on both sides.
        """
        if row.baseline is None:
            return None
        # A baseline may have fewer runs than the row (one against three shuffles), so it is taken in turn.
        plain = self[row.baseline].evaluations
        repeated = [plain[seed][i % len(plain[seed])] for seed in seeds for i in range(len(row.evaluations[seed]))]
        return pool(repeated) if len(repeated) > 1 else repeated[0]

    def metrics(self) -> list[str]:
        """Names of the metrics, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.pooled.metrics))

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """A line for each row with `value [95% interval]`, and below the table what the intervals include.

        A row with several runs shows their range as `(least to largest)`.

        Args:
            metrics: which; default correct answers (or, of several samples looked at together, the probability that
                one is undesirable) under each condition, other ones, KL and share of tokens edited.
        """
        chosen = list(metrics) if metrics is not None else _main_metrics(self.metrics())
        for name in chosen:
            _checks.known("metric", name, self.metrics())
        table = [["steering", *map(_title, chosen)]]
        for row in self.rows:
            lines = {line["metric"]: line for line in self._pooled_lines(row, compare=False)}
            cells = [_cell(m, lines[m], len(row.runs)) if m in lines else "-" for m in chosen]
            table.append([row.name + row.mark, *cells])
        head, *body = ["| " + " | ".join(cells) + " |" for cells in table]
        return "\n".join([head, "|" + "-|" * (len(chosen) + 1), *body, "", self._caption()])

    def _caption(self) -> str:
        n = self.n_seeds
        if n >= MIN_SEEDS:
            caption = f"95% intervals over groups and over the fits of {n} seeds."
        else:
            fits = "this one split and fit" if n == 1 else f"these fits of {n} seeds"
            caption = f"95% intervals over groups, given {fits}; from {MIN_SEEDS} seeds on they include other fits."
        if any(len(row.runs) > 1 for row in self.rows):
            caption += " In parentheses: least and largest value of a run."
        return caption

    def plot(self, x: str = "kl", y: str | None = None) -> go.Figure:
        """Gain against cost, a point for each row (see `radiant_lens.viz.study`)."""
        # Plotly takes a while to import; a study without a figure does not need it.
        from radiant_lens.viz.results import study

        return study(self, x=x, y=y)

    def _repr_html_(self) -> str:
        return card(repr(self), html_table(table_rows(self.to_markdown()), most=16), self._caption())

    def __repr__(self) -> str:
        """Counts, in one line."""
        counts = f"{len(self.rows)} rows, {self.n_seeds} seeds, {self.n_computed} cells computed"
        return f"StudyResult({self.name!r}: {counts})"


def table_rows(markdown: str) -> list[dict[str, str]]:
    r"""Return the rows of a table in Markdown, without the text below it.

    Example:
        >>> table_rows("| a | b |\n|-|-|\n| 1 | 2 |\n\nA caption.")
        [{'a': '1', 'b': '2'}]
    """
    head, _, *lines = markdown.split("\n\n")[0].splitlines()
    columns, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    return [dict(zip(columns, row)) for row in rows]


def _lines(evaluation: Evaluation, against: Evaluation | None) -> list[dict[str, Any]]:
    lines = []
    for metric, interval in evaluation.metrics.items():
        line = {"metric": metric, **interval._asdict()}
        if against is not None and metric in against.metrics:
            difference = evaluation.difference(against, metric)
            line |= {
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p_value": difference.p_value,
            }
        lines.append(line)
    return lines


def _over_seeds(line: Mapping[str, Any], prefix: str, seed_values: Sequence[float]) -> dict[str, float]:
    """The interval of a pooled value or difference with the variation between seeds, and the one given these fits."""
    low, high = (f"{prefix}_low", f"{prefix}_high") if prefix else ("low", "high")
    given_fits = interval = Interval(line[prefix or "value"], line[low], line[high])
    if len(seed_values) >= MIN_SEEDS:
        # Differences of shares may be negative, so they have no limits.
        limits = (-math.inf, math.inf) if prefix else _limits(line["metric"])
        interval = widen(given_fits, seed_values, limits=limits)
    ends = {low: interval.low, high: interval.high}
    return ends | {f"{low}_given_fits": given_fits.low, f"{high}_given_fits": given_fits.high}


def _limits(metric: str) -> tuple[float, float]:
    # Names may have a condition ("correct/bare").
    kind = metric.partition("/")[0]
    if kind in ratios.SHARES or kind in PRODUCTS:
        return 0.0, 1.0
    return (0.0, math.inf) if kind in ("kl", "displacement") else (-math.inf, math.inf)


def _main_metrics(metrics: Sequence[str]) -> list[str]:
    # Where samples of one prompt were looked at together, what counts is that one of them is undesirable.
    kind = "undesirable_probability" if "undesirable_probability" in metrics else "correct"
    by_condition = [m for m in metrics if m.startswith(f"{kind}/")]
    names = [*(by_condition or [kind]), "other", "kl", "edited_share"]
    return [m for m in names if m in metrics]


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " ").replace("/", ", "))


def _cell(metric: str, line: Mapping[str, Any], n_runs: int) -> str:
    spec = ".0%" if metric.partition("/")[0] in SHARES else ".3f"
    interval = format(Interval(line["value"], line["low"], line["high"]), spec)
    return interval if n_runs == 1 else f"{interval} ({line['least']:{spec}} to {line['largest']:{spec}})"
