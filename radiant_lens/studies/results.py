"""Results of a study: tidy, pooled over seeds, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.evaluation.result import Evaluation, pool
from radiant_lens.statistics.bounds import Interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARES = ("correct", "incorrect", "other", "undesirable_probability", "edited_share")


@dataclass(frozen=True)
class Row:
    """One steering or control of a study, with its evaluations.

    Attributes:
        name: of the row.
        baseline: name of the unsteered row on the same prompts; None for that row itself.
        settings: the arm's settings, flat.
        evaluations: by seed, in order of draws (shuffles).
    """

    name: str
    baseline: str | None
    settings: Mapping[str, Any]
    evaluations: Mapping[int, Sequence[Evaluation]]

    @cached_property
    def by_seed(self) -> dict[int, Evaluation]:
        """One evaluation a seed; several draws are pooled."""
        return {seed: pool(draws) if len(draws) > 1 else draws[0] for seed, draws in self.evaluations.items()}

    @cached_property
    def pooled(self) -> Evaluation:
        """All seeds and draws in one; the same group on several seeds is one group."""
        evaluations = [e for draws in self.evaluations.values() for e in draws]
        return evaluations[0] if len(evaluations) == 1 else pool(evaluations)

    @property
    def notes(self) -> list[str]:
        """Why nothing was edited, for each seed on which nothing was."""
        given = [e.settings.get("note") for draws in self.evaluations.values() for e in draws]
        return sorted({note for note in given if note})


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        name: of the study.
        rows: no steering first, then the arms, then their controls.
        n_computed: how many cells were computed in this run; the others were there already.
    """

    name: str
    rows: tuple[Row, ...]
    n_computed: int = field(default=0, compare=False)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of each row by its name, all seeds and draws pooled."""
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
        steering with `difference_low`, `difference_high` and permutation `p_value`, `heads` and `note`.
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
        """One line for each row and metric, over all seeds, with the least and the largest value of a seed."""
        lines = []
        for row in self.rows:
            baseline = self._unsteered(row, list(row.evaluations))
            for line in _lines(row.pooled, baseline):
                values = [e.metrics[line["metric"]].value for e in row.by_seed.values()]
                lines.append({"row": row.name, **line, "least": min(values), "largest": max(values)})
        return pd.DataFrame(lines)

    def _unsteered(self, row: Row, seeds: Sequence[int]) -> Evaluation | None:
        """What a row is compared with: as often as the row has draws, so that answers stand beside answers."""
        if row.baseline is None:
            return None
        plain = self[row.baseline].evaluations
        repeated = [plain[seed][i % len(plain[seed])] for seed in seeds for i in range(len(row.evaluations[seed]))]
        return pool(repeated) if len(repeated) > 1 else repeated[0]

    def metrics(self) -> list[str]:
        """Names of the metrics, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.pooled.metrics))

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """A line for each row: value [95% interval] over all seeds; `pooled` has the range over seeds beside it.

        Args:
            metrics: which; default correct answers (or, of several samples looked at together, the probability that
                one is undesirable) under each condition, other ones, KL and share of tokens edited.
        """
        chosen = list(metrics) if metrics is not None else _main(self.metrics())
        for name in chosen:
            _checks.known("metric", name, self.metrics())
        lines = ["| " + " | ".join(["steering", *(m.replace("_", " ").replace("/", ", ") for m in chosen)]) + " |"]
        lines.append("|" + "-|" * (len(chosen) + 1))
        for row in self.rows:
            measured = row.pooled.metrics
            cells = [_cell(m, measured[m]) if m in measured else "-" for m in chosen]
            mark = " (nothing to edit)" if row.notes else ""
            lines.append("| " + " | ".join([row.name + mark, *cells]) + " |")
        return "\n".join(lines)

    def plot(self, x: str = "kl", y: str | None = None) -> go.Figure:
        """What each row gains against what it costs (see `radiant_lens.viz.study`)."""
        # Plotly takes a while to import; a study without a figure does not need it.
        from radiant_lens.viz.results import study

        return study(self, x=x, y=y)

    def __repr__(self) -> str:
        """Counts, in one line."""
        counts = f"{len(self.rows)} rows, {self.n_seeds} seeds, {self.n_computed} cells computed"
        return f"StudyResult({self.name!r}: {counts})"


def _lines(evaluation: Evaluation, against: Evaluation | None) -> list[dict[str, Any]]:
    lines = []
    for metric, interval in evaluation.metrics.items():
        line = {"metric": metric, **interval._asdict()}
        if against is not None and metric in against.metrics:
            found = evaluation.difference(against, metric)
            line |= {
                "difference": found.value,
                "difference_low": found.low,
                "difference_high": found.high,
                "p_value": found.p_value,
            }
        lines.append(line)
    return lines


def _main(metrics: Sequence[str]) -> list[str]:
    # Where samples of one prompt were looked at together, what counts is that one of them is undesirable.
    kind = "undesirable_probability" if "undesirable_probability" in metrics else "correct"
    by_condition = [m for m in metrics if m.startswith(f"{kind}/")]
    wanted = [*(by_condition or [kind]), "other", "kl", "edited_share"]
    return [m for m in wanted if m in metrics]


def _cell(metric: str, interval: Interval) -> str:
    return f"{interval:.0%}" if metric.split("/")[0] in SHARES else f"{interval:.3f}"
