"""What every metric is made of: a numerator and a denominator for each group.

A metric is a ratio of sums over groups, so its interval, its paired difference and its pooling over seeds all
come from one table with the columns `metric`, `group`, `numerator`, `denominator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.statistics.bounds import Interval, bootstrap_ratio
from radiant_lens.statistics.paired import GroupSums, Link, PairedDifference, paired_difference

COLUMNS = ("metric", "group", "numerator", "denominator")
LINKS: dict[str, Link] = {"perplexity": np.exp}
"""Metrics that are a function of their ratio: perplexity is the exponential of nats per token."""


def make_parts(groups: Sequence[str], sums: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Parts of several metrics.

    Args:
        groups: of each example.
        sums: for each metric a numerator and a denominator for each example; one number stands for all.
    """
    return join_parts(
        pd.DataFrame({"metric": metric, "group": list(groups), "numerator": top, "denominator": bottom}).sort_values(
            "group", kind="stable"
        )
        for metric, (top, bottom) in sums.items()
    )


def condition_parts(rows: pd.DataFrame, sums: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Parts of metrics over rows with a `group` and a `condition`; under each condition too where there are several.

    Args:
        rows: examples.
        sums: for each metric a numerator and a denominator for each row; one number stands for all.
    """
    columns = {name: pd.DataFrame({"top": t, "bottom": b}, index=rows.index) for name, (t, b) in sums.items()}
    conditions = rows["condition"].unique()
    chosen = {"": rows.index}
    if len(conditions) > 1:
        chosen |= {f"/{c}": rows.index[rows["condition"] == c] for c in conditions}
    return join_parts(
        make_parts(
            rows.loc[index, "group"].tolist(),
            {name + suffix: tuple(c.loc[index].to_numpy(float).T) for name, c in columns.items()},
        )
        for suffix, index in chosen.items()
    )


def join_parts(frames: Any) -> pd.DataFrame:
    """Several tables of parts as one; what belongs to the same metric and group is added up.

    A sum with NaN is NaN; pandas would leave it out.
    """
    frames = list(frames)
    if not frames:
        return pd.DataFrame({"metric": [], "group": [], "numerator": [], "denominator": []})
    together = pd.concat(frames, ignore_index=True)
    keys = list(COLUMNS[:2])
    codes = together.groupby(keys, sort=False).ngroup().to_numpy()
    joined = together[keys].drop_duplicates(ignore_index=True)
    for side in COLUMNS[2:]:
        joined[side] = np.bincount(codes, together[side].to_numpy(float), len(joined))
    return joined


def read_parts(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Parts from a file.

    Raises:
        InvalidArgumentError: columns that parts do not have, or that lack; denominators below 0 or no numbers.
    """
    _checks.each("columns", list(columns), str)
    if set(columns) != set(COLUMNS):
        raise InvalidArgumentError(f"parts have the columns {', '.join(COLUMNS)}; got {', '.join(columns)}")
    for name in COLUMNS[:2]:
        _checks.each(name, columns[name], str)
    found = pd.DataFrame(columns).astype(dict.fromkeys(COLUMNS[2:], float) if columns["metric"] else {})
    for denominator in found["denominator"]:
        _checks.between("denominator", denominator, 0, closed="low")
    return found


def intervals(parts: pd.DataFrame) -> dict[str, Interval]:
    """Each metric with its 95% interval (bootstrap over groups)."""
    return {
        str(metric): Interval(*map(float, _link(str(metric))(np.array(bootstrap_ratio(*_sums(rows))))))
        for metric, rows in parts.groupby("metric", sort=False)
    }


def difference(parts: pd.DataFrame, baseline: pd.DataFrame, metric: str) -> PairedDifference:
    """Paired difference of a metric.

    Raises:
        UnknownNameError: a side does not have the metric.
        InvalidArgumentError: the sides are not of the same groups.
    """
    sides: list[Any] = []
    for whose, table in (("this evaluation", parts), ("the baseline", baseline)):
        _checks.known(f"metric of {whose}", metric, table["metric"].unique())
        sides.append(table[table["metric"] == metric])
    alone = set(sides[0]["group"]) ^ set(sides[1]["group"])
    if alone:
        raise InvalidArgumentError(
            "Paired differences need evaluations of the same prompts and statements; "
            f"{len(alone)} groups are in one alone, such as {min(alone)!r}."
        )
    return paired_difference(_sums(sides[0]), _sums(sides[1]), link=_link(metric))


def _link(metric: str) -> Link:
    return LINKS.get(metric.partition("/")[0], np.asarray)


def _sums(rows: pd.DataFrame) -> GroupSums:
    ordered = rows.sort_values("group")
    return GroupSums(*(torch.tensor(ordered[side].to_numpy(float)) for side in ("numerator", "denominator")))
