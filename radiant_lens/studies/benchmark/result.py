"""`BenchmarkResult`: one row for each question, and tables with intervals over questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from radiant_lens.statistics.bounds import Interval, bootstrap_ratio
from radiant_lens.statistics.paired import GroupSums, paired_difference
from radiant_lens.studies.benchmark.scores import BY_CONDITION, UNSTEERED

_KEY = ["fold", "group"]


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of `Benchmark.run`.

    Attributes:
        name: of the data on which everything was fitted and chosen.
        questions: one row for each task tested (`data`), fold, arm, budget and test question: `mc1`, `mc2`,
            `swapped_mc2` (under the answers of another question), `mc2/CONDITION` where prompts have several, sums of
            `kl` and `log_prob` over the `tokens` of its desirable statements, `edited` tokens, the `verdict` on a
            generated answer ("" if none was judged); and the chosen `gate`, `strength` and its `validation_kl`, with
            `seconds` of fit and choice (of scoring, where there is nothing to choose).
        notes: why an arm has no steering under a gate, or does not meet a budget.
        continuations: parts of the metrics of continuations (see `radiant_lens.evaluation.ratios`), with `fold`, `arm`
            and `budget`; None if nothing was continued.
    """

    name: str
    questions: pd.DataFrame
    notes: tuple[str, ...] = ()
    continuations: pd.DataFrame | None = None

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each task, arm and budget, over all folds: values, and gains over the unsteered model.

        `style` is the gain of MC2 under the answers of other questions, and `beyond_style` the rest. Where prompts have
        several conditions, `mc2/CONDITION` and `gain/CONDITION` are of one. Intervals are over the questions of the
        folds, given the fits.
        """
        return pd.DataFrame(self._table())

    def continued(self) -> pd.DataFrame:
        """One row for each steering and budget, over all folds, from the continuations.

        `incorrect` (the share of undesirable samples), `undesirable_probability`, `expected_maximum` (of judges that
        give scores) and `dist_2` as `evaluate` has them, and `kl` (unsteered to steered, in nats a token of the
        unsteered model's continuations, read as text), each with its change from the unsteered model
        (`incorrect_change` and so on), which has an interval over groups of prompts.
        """
        return pd.DataFrame(self._continued())

    def _continued(self) -> list[dict[str, Any]]:
        if self.continuations is None:
            return []
        # `Any`: the types of pandas do not follow a chain of tables.
        everything: Any = self.continuations
        tables = {m: t.set_index(_KEY).sort_index() for m, t in everything.groupby("metric", sort=False)}
        rows: dict[tuple[str, float | None], dict[str, Any]] = {}
        for metric, table in tables.items():
            plain = table[table["arm"] == UNSTEERED]
            for arm, budget, part in _parts(table, everything["arm"].drop_duplicates()):
                counts = {"n_folds": part.index.get_level_values(0).nunique(), "n_groups": len(part)}
                row = rows.setdefault((arm, budget), {"arm": arm, "budget": budget, **counts})
                sums, baseline = _sums(part), _sums(plain.loc[part.index])
                row[metric] = float(sums.numerators.sum() / sums.denominators.sum())
                row[f"{metric}_change"] = _paired(sums, baseline)
        return list(rows.values())

    def to_markdown(self) -> str:
        """The tables, with intervals as text, and the notes below them."""
        rows = [
            {
                **({"tested on": row["data"]} if self.questions["data"].nunique() > 1 else {}),
                "arm": row["arm"],
                "budget": "" if pd.isna(row["budget"]) else f"{row['budget']:g}",
                "gates": row["gates"],
                "KL": _number(row["kl"], ".3f"),
                "MC1": f"{row['mc1']:.3f}",
                "MC2": f"{row['mc2']:.3f}",
                "gain of MC2": _signed(row["gain"]),
                **_gains_by_condition(self._conditions(), row),
                "style": _signed(row["style"]),
                "beyond style": _signed(row["beyond_style"]),
                "judged correct": _number(row["correct"], ".0%"),
                "incorrect": _number(row["incorrect"], ".0%"),
                "cross entropy": _number(row["cross_entropy"], ".3f"),
                "edited": _number(row["edited_share"], ".0%"),
                "seconds": f"{row['seconds']:.0f}",
            }
            for row in self._table()
        ]
        n_folds = self.questions["fold"].nunique()
        continued = [
            {
                "arm": row["arm"] + (f", {row['n_folds']} of {n_folds} folds" if row["n_folds"] < n_folds else ""),
                "budget": "" if pd.isna(row["budget"]) else f"{row['budget']:g}",
                "groups": str(row["n_groups"]),
                "undesirable samples": f"{row['incorrect']:.1%}",
                "their change": _signed(row["incorrect_change"]),
                "some sample undesirable": f"{row['undesirable_probability']:.0%}",
                "change": _signed(row["undesirable_probability_change"]),
                "expected maximum": _number(row.get("expected_maximum", float("nan")), ".3f"),
                "its change": _signed(row["expected_maximum_change"]) if "expected_maximum" in row else "",
                "distinct pairs of words": _number(row["dist_2"], ".3f"),
                "KL": _number(row["kl"], ".3f"),
            }
            for row in self._continued()
        ]
        parts = [_markdown(table) for table in (rows, continued) if table]
        return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in self.notes)] if self.notes else [])])

    def __repr__(self) -> str:
        """Counts, in one line."""
        arms, folds = self.questions["arm"].nunique() - 1, self.questions["fold"].nunique()
        own: Any = self.questions[self.questions["data"] == self.name]
        n = len(own[own["arm"] == UNSTEERED])
        return f"BenchmarkResult({self.name!r}: {arms} arms, {folds} folds, {n} test questions)"

    def _conditions(self) -> list[str]:
        """The conditions of prompts, where there are several."""
        columns = self.questions.columns
        return [str(c).removeprefix(BY_CONDITION) for c in columns if str(c).startswith(BY_CONDITION)]

    def _table(self) -> list[dict[str, Any]]:
        # `Any`: the types of pandas do not follow a chain of tables.
        everything: Any = self.questions
        rows = []
        for name in everything["data"].drop_duplicates():
            questions = everything[everything["data"] == name].set_index(_KEY).sort_index()
            plain = questions[questions["arm"] == UNSTEERED]
            for arm, budget, part in _parts(questions, everything["arm"].drop_duplicates()):
                baseline = plain.loc[part.index]
                conditions = _by_condition(self._conditions(), part, baseline)
                rows.append({"data": name, **_row(arm, budget, part, baseline), **conditions})
        return rows


def _markdown(rows: list[dict[str, str]]) -> str:
    names = list(rows[0])
    lines = [names, *(list(row.values()) for row in rows)]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{'|'.join('-' * len(names))}|", *body])


def _parts(questions: Any, arms: Any) -> Iterator[tuple[str, float | None, Any]]:
    """The questions of each arm and budget, in the order of the arms."""
    for arm in arms:
        own = questions[questions["arm"] == arm]
        for budget in sorted(own["budget"].drop_duplicates(), key=lambda b: -1 if pd.isna(b) else b):
            yield arm, budget, own[own["budget"].isna() if pd.isna(budget) else own["budget"] == budget]


def _row(arm: str, budget: float | None, part: Any, plain: Any) -> dict[str, Any]:
    # An arm without the model has none.
    tokens = part["tokens"].sum() or float("nan")
    gates = [gate for gate in part.groupby("fold")["gate"].first() if gate]
    return {
        "arm": arm,
        "budget": budget,
        "gates": ", ".join(dict.fromkeys(gates)),
        "n_folds": part.index.get_level_values(0).nunique(),
        "kl": part["kl"].sum() / tokens,
        "mc1": part["mc1"].mean(),
        "mc2": part["mc2"].mean(),
        "mc1_gain": _difference(part["mc1"], plain["mc1"]),
        "gain": _difference(part["mc2"], plain["mc2"]),
        "style": _difference(part["swapped_mc2"], plain["swapped_mc2"]),
        "beyond_style": _difference(part["mc2"] - part["swapped_mc2"], plain["mc2"] - plain["swapped_mc2"]),
        "correct": _verdict_share(part, "correct"),
        "incorrect": _verdict_share(part, "incorrect"),
        "cross_entropy": -part["log_prob"].sum() / tokens,
        "edited_share": part["edited"].sum() / tokens,
        "kl_interval": bootstrap_ratio(_tensor(part["kl"]), _tensor(part["tokens"])),
        "seconds": part.groupby("fold")["seconds"].first().mean(),
    }


def _by_condition(conditions: list[str], part: Any, plain: Any) -> dict[str, Any]:
    """MC2 and its gain under each condition that these questions have."""
    values: dict[str, Any] = {}
    for condition in conditions:
        steered, before = (rows[BY_CONDITION + condition] for rows in (part, plain))
        measured = steered.notna() & before.notna()
        if measured.any():
            values[BY_CONDITION + condition] = steered[measured].mean()
            values[f"gain/{condition}"] = _difference(steered[measured], before[measured])
    return values


def _gains_by_condition(conditions: list[str], row: dict[str, Any]) -> dict[str, str]:
    gains = {condition: row.get(f"gain/{condition}") for condition in conditions}
    return {f"gain, {c.replace('_', ' ')}": "" if gain is None else _signed(gain) for c, gain in gains.items()}


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def _verdict_share(part: Any, verdict: str) -> float:
    """Share of the judged answers; NaN if none was judged."""
    judged = part[part["verdict"] != ""]
    return float((judged["verdict"] == verdict).mean())


def _difference(steered: Any, plain: Any) -> Interval:
    ones = torch.ones(len(plain), dtype=torch.float64)
    return _paired(GroupSums(_tensor(steered), ones), GroupSums(_tensor(plain), ones))


def _paired(sums: GroupSums, baseline: GroupSums) -> Interval:
    return Interval(*paired_difference(sums, baseline, n_permutations=1)[:3])


def _sums(part: Any) -> GroupSums:
    return GroupSums(_tensor(part["numerator"]), _tensor(part["denominator"]))


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values.to_numpy(dtype=float))


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
