"""`Evaluation`: answers, verdicts and metrics of a model; judged again, compared, pooled and saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens._files import load_json, save_json
from radiant_lens.datasets.records import Prompt
from radiant_lens.errors import ArtefactError, InvalidArgumentError
from radiant_lens.evaluation import ratios
from radiant_lens.evaluation.answers import ANSWER_COLUMNS, JUDGED, as_table, extreme_parts, judge_table, verdict_parts
from radiant_lens.evaluation.judges.judge import VERDICTS, Judge, Rule
from radiant_lens.evaluation.judges.registry import get_judge
from radiant_lens.notebook import card, html_table
from radiant_lens.statistics.bounds import Interval
from radiant_lens.statistics.paired import PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate` or `pool`.

    Attributes:
        table: one row for each generated answer: prompt_index, prompt, condition, group, sample, answer, verdict,
            and if the judge gives them score and informative.
        parts: sums from which the metrics are computed: metric, group, numerator, denominator.
        prompts: the prompts with their references; `prompt_index` is the position among them.
        settings: arguments of `evaluate`.
    """

    table: pd.DataFrame
    parts: pd.DataFrame
    prompts: tuple[Prompt, ...]
    settings: dict[str, Any]

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Values with their 95% intervals over groups, by name; see `evaluate` for the names."""
        return ratios.intervals(self.parts)

    def difference(self, baseline: Evaluation, metric: str) -> PairedDifference:
        """Compare a metric with that of another evaluation of the same data, paired over groups.

        Args:
            baseline: of the same prompts and statements.
            metric: any that both have, such as "correct/bare" or "kl".

        Returns:
            This evaluation's value less the baseline's, with the 95% bootstrap interval of the difference and the
            p-value of a permutation test over groups.

        Raises:
            InvalidArgumentError: the evaluations are not of the same prompts or groups.
            UnknownNameError: one of them does not have the metric.
        """
        if self.prompts != baseline.prompts:
            raise InvalidArgumentError(
                f"Paired differences need evaluations of the same prompts; got {len(self.prompts)} and "
                f"{len(baseline.prompts)} that are not the same."
            )
        return ratios.difference(self.parts, baseline.parts, metric)

    def gain(self, baseline: Evaluation, verdict: str = "correct", condition: str | None = None) -> PairedDifference:
        """Compare the share of a verdict with that of another evaluation; see `difference`.

        Args:
            baseline: of the same data.
            verdict: "correct", "incorrect" or "other".
            condition: one condition alone; None for all prompts.
        """
        _checks.choice("verdict", verdict, VERDICTS)
        # Data of a single condition have no metrics by condition: its share is that of all prompts.
        whole = condition is None or set(self.table["condition"]) == {condition}
        return self.difference(baseline, verdict if whole else f"{verdict}/{condition}")

    def rejudge(self, judge: str | Rule | Judge) -> Evaluation:
        """Judge the same answers by another judge; nothing is generated.

        Args:
            judge: anything that `get_judge` takes.

        Raises:
            InvalidArgumentError: there are no answers.
            UnknownNameError: no judge of that name.
        """
        new_judge = get_judge(judge)
        if self.table.empty:
            raise InvalidArgumentError("There are no answers to judge: evaluate with the metrics 'answers'.")
        table = judge_table(self.table, self.prompts, new_judge)
        kinds = self.parts["metric"].str.partition("/")[0]
        # The same families as before; the new judge may give more or fewer metrics within each.
        judged = [make(table) for name, make in _JUDGED_PARTS.items() if name in set(kinds)]
        unjudged: Any = self.parts[~kinds.isin(JUDGED)]
        parts = ratios.join_parts([*judged, unjudged])
        return replace(self, table=table, parts=parts, settings=self.settings | {"judge": repr(new_judge)})

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each metric: `metric`, `value`, its interval `low` and `high`, and why it is not a number.

        `table` has the answers.
        """
        rows = [
            {"metric": name, **interval._asdict(), "note": self._unmeasured(name)}
            for name, interval in self.metrics.items()
        ]
        return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "note"])

    def _repr_html_(self) -> str:
        words = f"{len(self.table)} answers to {len(self.prompts)} prompts; 95% intervals over groups"
        # A metric that is not a number shows the reason in its place.
        rows = [
            {"metric": name, **interval._asdict(), "value": self._unmeasured(name) or interval.value}
            for name, interval in self.metrics.items()
        ]
        return card("Evaluation", words, html_table(rows, most=16, note=", in `.to_dataframe()`"))

    def to_markdown(self) -> str:
        """Write the metrics as a table; one that is not a number says why."""
        lines = ["| metric | value [95% interval] |", "|-|-|"]
        lines += [
            f"| {name} | {self._unmeasured(name) or format(interval, '.3f')} |"
            for name, interval in self.metrics.items()
        ]
        return "\n".join(lines)

    def _unmeasured(self, metric: str) -> str:
        """The reason why a metric is not a number; "" if it is one."""
        if not math.isnan(self.metrics[metric].value):
            return ""
        # A displacement is a mean over edits, and undefined without one. Any other NaN comes from NaN or no examples.
        rows = self.parts[self.parts["metric"] == metric]
        return "no edit" if metric == "displacement" and not rows["denominator"].any() else "not measured"

    def __repr__(self) -> str:
        """The main metrics, in one line."""
        main = [
            f"{name} {self._unmeasured(name) or format(interval.value, '.3f')}"
            for name, interval in self.metrics.items()
            if "/" not in name
        ]
        return f"Evaluation({len(self.table)} answers: {', '.join(main)})"

    def save(self, path: str | Path) -> Path:
        """Write everything to one JSON file, replacing an earlier file at the path; returns the path."""
        content = {
            "settings": self.settings,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "table": {name: [None if pd.isna(v) else v for v in self.table[name].tolist()] for name in self.table},
            "parts": self.parts.to_dict("list"),
        }
        return save_json(path, "evaluation", content)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read an evaluation, equal to the saved one to the last digit.

        Raises:
            ArtefactError: the file is missing, damaged, or not an evaluation.
        """
        content = load_json(path, "evaluation")
        try:
            _checks.each("settings", [content["settings"]], dict)
            prompts = tuple(_prompt(saved) for saved in content["prompts"])
            return cls(
                _table(content["table"], len(prompts)),
                ratios.read_parts(content["parts"]),
                prompts,
                content["settings"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ArtefactError(f"The saved evaluation at {str(path)!r} is damaged: {error!r}.") from error


_JUDGED_PARTS = {"correct": verdict_parts, "undesirable_probability": extreme_parts}
"""Builders of the metrics that depend on the judge, each by the name of a metric that its family always has."""


def _prompt(saved: dict[str, Any]) -> Prompt:
    # JSON has no tuples: the lists of a prompt were tuples, and must be, so that equal prompts compare equal.
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    _checks.instance("rendered", fields.get("rendered", False), bool)
    for name, value in fields.items():
        if name == "rendered":
            continue
        _checks.each(name, value if isinstance(value, tuple) else [value], str if value is not None else object)
    return Prompt(**fields)


def _table(columns: dict[str, list[Any]], n_prompts: int) -> pd.DataFrame:
    """Check the table of a file; an evaluation without answers has an empty one."""
    table = as_table(columns)
    if not table.empty:
        missing = [name for name in (*ANSWER_COLUMNS, "verdict") if name not in table]
        if missing:
            raise InvalidArgumentError(f"the table has no column {missing[0]!r}")
        for name in ("prompt", "condition", "group", "answer", "verdict"):
            _checks.each(name, table[name].tolist(), str)
        if not table["prompt_index"].between(0, n_prompts - 1).all():
            raise InvalidArgumentError(f"`prompt_index` must lie in [0, {n_prompts})")
    return table


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Pool several evaluations into one, such as those of several seeds or splits.

    Numerators and denominators of groups of the same name are added up over the evaluations; the intervals are
    over the groups, so answers to one question count as one cluster however often it was asked.

    Args:
        evaluations: with the same metrics; at least one.

    Returns:
        All answers, with a column `run` that counts the evaluations, and the settings of each under "pooled".

    Raises:
        InvalidArgumentError: there is no evaluation, or a metric that not all of them have.
    """
    if not evaluations:
        raise InvalidArgumentError("`evaluations` must hold at least one; got none.")
    names = [set(e.parts["metric"]) for e in evaluations]
    uneven = set.union(*names) - set.intersection(*names)
    if uneven:
        raise InvalidArgumentError(f"`evaluations` must have the same metrics; not all have {sorted(uneven)}.")
    tables, n_prompts = [], 0
    for run, evaluation in enumerate(evaluations):
        # Each run has its own prompts, so that the indices of later runs are shifted past those of earlier ones.
        table = evaluation.table.assign(run=run, prompt_index=evaluation.table["prompt_index"] + n_prompts)
        tables.append(table[["run", *(name for name in table if name != "run")]])
        n_prompts += len(evaluation.prompts)
    return Evaluation(
        as_table(pd.concat(tables, ignore_index=True).to_dict("list")),
        ratios.join_parts(e.parts for e in evaluations),
        tuple(prompt for e in evaluations for prompt in e.prompts),
        {"pooled": [e.settings for e in evaluations]},
    )
