"""`Evaluation`: answers, verdicts and metrics of a model; judged again, compared, pooled and kept on disk."""

from __future__ import annotations

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
from radiant_lens.evaluation.judges.lookup import get_judge
from radiant_lens.statistics.bounds import Interval
from radiant_lens.statistics.paired import PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate` or `pool`.

    Attributes:
        table: one row for each generated answer: prompt_index, prompt, condition, group, sample, answer, verdict,
            and where the judge gives them score and informative.
        parts: what the metrics are made of: metric, group, numerator, denominator.
        prompts: what was answered, with its references; `prompt_index` counts in it.
        settings: what was asked for.
    """

    table: pd.DataFrame
    parts: pd.DataFrame
    prompts: tuple[Prompt, ...]
    settings: dict[str, Any]

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Name to value with the ends of its 95% interval (bootstrap over groups); see `evaluate` for the names."""
        return ratios.intervals(self.parts)

    def difference(self, baseline: Evaluation, metric: str) -> PairedDifference:
        """How much more of a metric than another evaluation of the same data, paired over groups.

        Args:
            baseline: of the same prompts and statements.
            metric: any that both have, such as "correct/bare" or "kl".

        Returns:
            The difference with its 95% bootstrap interval and the p-value of a permutation test over groups.

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
        """`difference` of a verdict's share.

        Args:
            baseline: of the same data.
            verdict: "correct", "incorrect" or "other".
            condition: one condition alone; None for all prompts.
        """
        _checks.choice("verdict", verdict, VERDICTS)
        # Where there is one condition only, its share is that of all prompts.
        whole = condition is None or set(self.table["condition"]) == {condition}
        return self.difference(baseline, verdict if whole else f"{verdict}/{condition}")

    def rejudge(self, judge: str | Rule | Judge) -> Evaluation:
        """The same answers with the verdicts of another judge; nothing is generated.

        Args:
            judge: whatever `get_judge` takes.

        Raises:
            InvalidArgumentError: there are no answers.
            UnknownNameError: no judge of that name.
        """
        judged = get_judge(judge)
        if self.table.empty:
            raise InvalidArgumentError("There are no answers to judge: evaluate with the metrics 'answers'.")
        table = judge_table(self.table, self.prompts, judged)
        kinds = self.parts["metric"].str.partition("/")[0]
        # The same families as before; the new judge may say more or less within each.
        made = [part(table) for name, part in _JUDGED_PARTS.items() if name in set(kinds)]
        parts = ratios.join_parts([*made, self.parts[~kinds.isin(JUDGED)]])
        return replace(self, table=table, parts=parts, settings=self.settings | {"judge": repr(judged)})

    def to_markdown(self) -> str:
        """The metrics as a table."""
        lines = ["| metric | value [95% interval] |", "|-|-|"]
        lines += [f"| {name} | {interval:.3f} |" for name, interval in self.metrics.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The main metrics, in one line."""
        main = ", ".join(f"{name} {m.value:.3f}" for name, m in self.metrics.items() if "/" not in name)
        return f"Evaluation({len(self.table)} answers: {main})"

    def save(self, path: str | Path) -> Path:
        """Write everything as one JSON file, which replaces whatever file is there; returns its path."""
        content = {
            "settings": self.settings,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "table": {name: [None if pd.isna(v) else v for v in self.table[name].tolist()] for name in self.table},
            "parts": self.parts.to_dict("list"),
        }
        return save_json(path, "evaluation", content)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read an evaluation, the same to the last digit.

        Raises:
            ArtefactError: the file is missing, damaged, or no evaluation.
        """
        found = load_json(path, "evaluation")
        try:
            _checks.each("settings", [found["settings"]], dict)
            prompts = tuple(_prompt(saved) for saved in found["prompts"])
            return cls(
                _table(found["table"], len(prompts)), ratios.read_parts(found["parts"]), prompts, found["settings"]
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ArtefactError(f"The saved evaluation at {str(path)!r} is damaged: {error!r}.") from error


_JUDGED_PARTS = {"correct": verdict_parts, "undesirable_probability": extreme_parts}
"""What makes the metrics that a judge decides, by the name of one that is always among them."""


def _prompt(saved: dict[str, Any]) -> Prompt:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    _checks.instance("rendered", fields.get("rendered", False), bool)
    for name, value in fields.items():
        if name == "rendered":
            continue
        _checks.each(name, value if isinstance(value, tuple) else [value], str if value is not None else object)
    return Prompt(**fields)


def _table(columns: dict[str, list[Any]], n_prompts: int) -> pd.DataFrame:
    """The table of a file, if it is one; an evaluation without answers has an empty one."""
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
    """One evaluation of several, such as those of several seeds or splits.

    Numerators and denominators of groups of the same name are added up over the evaluations; the intervals are
    over the groups, so answers to one question count as one cluster however often it was asked.

    Args:
        evaluations: with the same metrics; at least one.

    Returns:
        All answers, with a column `run` that counts the evaluations, and the settings of each under "pooled".

    Raises:
        InvalidArgumentError: no evaluation, or metrics that not all of them have.
    """
    if not evaluations:
        raise InvalidArgumentError("`evaluations` must hold at least one; got none.")
    names = [set(e.parts["metric"]) for e in evaluations]
    uneven = set.union(*names) - set.intersection(*names)
    if uneven:
        raise InvalidArgumentError(f"`evaluations` must have the same metrics; not all have {sorted(uneven)}.")
    tables, n_prompts = [], 0
    for run, evaluation in enumerate(evaluations):
        table = evaluation.table.assign(run=run, prompt_index=evaluation.table["prompt_index"] + n_prompts)
        tables.append(table[["run", *(name for name in table if name != "run")]])
        n_prompts += len(evaluation.prompts)
    return Evaluation(
        as_table(pd.concat(tables, ignore_index=True).to_dict("list")),
        ratios.join_parts(e.parts for e in evaluations),
        tuple(prompt for e in evaluations for prompt in e.prompts),
        {"pooled": [e.settings for e in evaluations]},
    )
