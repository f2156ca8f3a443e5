"""Metrics as ratios of sums: a numerator and a denominator for each group.

The interval of a metric, its paired difference and its pooling over seeds all come from one table, the parts, with the
columns `metric`, `group`, `numerator`, `denominator`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation.products import factors, product_difference, product_interval, with_products
from radiant_lens.statistics.bounds import Interval, bootstrap_ratio, share_interval
from radiant_lens.statistics.paired import GroupSums, Link, PairedDifference, paired_difference

COLUMNS = ("metric", "group", "numerator", "denominator")
LINKS: dict[str, Link] = {"perplexity": np.exp}
"""Metrics that are a function of their ratio: perplexity is the exponential of nats per token."""
SHARES = {
    *("correct", "incorrect", "other", "informative", "true_informative", "undesirable_probability"),
    *("mc1", "mc2", "dist_1", "dist_2", "dist_3", "edited_share"),
}
"""Metrics that lie in [0, 1] by definition, in every group."""


def make_parts(groups: Sequence[str], sums: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Build the parts of several metrics.

    Args:
        groups: of each example.
        sums: for each metric a numerator and a denominator for each example; a single number holds for all.
    """
    return join_parts(
        pd.DataFrame({"metric": metric, "group": list(groups), "numerator": top, "denominator": bottom}).sort_values(
            "group", kind="stable"
        )
        for metric, (top, bottom) in sums.items()
    )


def condition_parts(rows: pd.DataFrame, sums: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Build the parts of metrics over all rows and, where there are several conditions, over each condition.

    Args:
        rows: examples, with a `group` and a `condition`.
        sums: for each metric a numerator and a denominator for each row; a single number holds for all.
    """
    columns = {name: pd.DataFrame({"top": t, "bottom": b}, index=rows.index) for name, (t, b) in sums.items()}
    conditions = rows["condition"].unique()
    subsets = {"": rows.index}
    if len(conditions) > 1:
        subsets |= {f"/{c}": rows.index[rows["condition"] == c] for c in conditions}
    return join_parts(
        make_parts(
            rows.loc[index, "group"].tolist(),
            {name + suffix: tuple(c.loc[index].to_numpy(float).T) for name, c in columns.items()},
        )
        for suffix, index in subsets.items()
    )


def join_parts(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join tables of parts, adding up the sums of the same metric and group; a sum with NaN is NaN."""
    tables = list(tables)
    if not tables:
        return pd.DataFrame({"metric": [], "group": [], "numerator": [], "denominator": []})
    together = pd.concat(tables, ignore_index=True)
    keys = list(COLUMNS[:2])
    codes = together.groupby(keys, sort=False).ngroup().to_numpy()
    joined: Any = together[keys].drop_duplicates(ignore_index=True)
    # Not by `groupby(...).sum()`: pandas leaves NaN out of a sum, and a metric that failed would look like a number.
    for side in COLUMNS[2:]:
        joined[side] = np.bincount(codes, together[side].to_numpy(float), len(joined))
    return joined


def read_parts(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Check parts that were read from a file.

    Raises:
        InvalidArgumentError: a column is missing or unknown, or a denominator is negative or not a number.
    """
    _checks.each("columns", list(columns), str)
    if set(columns) != set(COLUMNS):
        raise InvalidArgumentError(f"parts have the columns {', '.join(COLUMNS)}; got {', '.join(columns)}")
    for name in COLUMNS[:2]:
        _checks.each(name, columns[name], str)
    # Empty columns would become columns of objects, which do not compare equal to the empty parts that were saved.
    parts = pd.DataFrame(columns).astype(dict.fromkeys(COLUMNS[2:], float) if columns["metric"] else {})
    for denominator in parts["denominator"]:
        _checks.between("denominator", denominator, 0, closed="low")
    return parts


def intervals(parts: pd.DataFrame) -> dict[str, Interval]:
    """Compute each metric with its 95% interval over groups.

    Shares have the interval of `share_interval`, which has a width where all groups agree and covers at least 93% in
    simulation, near 0 and 1 more than 95%; other metrics have a percentile bootstrap. Products such as
    "true_times_informative" follow the last of their factors.
    """
    sums = {str(metric): _sums(rows) for metric, rows in parts.groupby("metric", sort=False)}
    names = with_products(list(sums))
    return {name: product_interval(parts, name) if factors(name) else _interval(name, sums) for name in names}


def difference(parts: pd.DataFrame, baseline: pd.DataFrame, metric: str) -> PairedDifference:
    """Compute the paired difference of a metric.

    Raises:
        UnknownNameError: a side does not have the metric.
        InvalidArgumentError: the sides are not of the same groups.
    """
    tables: list[Any] = []
    for whose, table in (("this evaluation", parts), ("the baseline", baseline)):
        _checks.known(f"metric of {whose}", metric, with_products(list(table["metric"].unique())))
        tables.append(table[table["metric"].isin(factors(metric) or (metric,))])
    unpaired = set(tables[0]["group"]) ^ set(tables[1]["group"])
    if unpaired:
        raise InvalidArgumentError(
            "Paired differences need evaluations of the same prompts and statements; "
            f"{len(unpaired)} groups are in one alone, such as {min(unpaired)!r}."
        )
    if factors(metric):
        return product_difference(tables[0], tables[1], metric)
    return paired_difference(_sums(tables[0]), _sums(tables[1]), link=_link(metric))


def _interval(metric: str, sums: Mapping[str, GroupSums]) -> Interval:
    ends = np.array(share_interval(*sums[metric]) if _is_share(metric, sums) else bootstrap_ratio(*sums[metric]))
    # A link is monotone, so the ends of the ratio's interval map to the ends of the metric's.
    return Interval(*map(float, _link(metric)(ends)))


def _is_share(metric: str, sums: Mapping[str, GroupSums]) -> bool:
    # By name, not by the numbers alone: a KL divergence of 0 in all groups lies in [0, 1] too, but is not a share.
    kind = metric.partition("/")[0]
    # Without a steering no token is edited, by definition and not by chance: that 0 has no uncertainty.
    if kind not in SHARES or (kind == "edited_share" and "displacement" not in sums):
        return False
    top, bottom = sums[metric]
    # Parts read from a file may hold anything; NaN fails both comparisons and stays NaN.
    return bool(((top >= 0) & (top <= bottom * (1 + 1e-9))).all())


def _link(metric: str) -> Link:
    return LINKS.get(metric.partition("/")[0], np.asarray)


def _sums(rows: pd.DataFrame) -> GroupSums:
    ordered = rows.sort_values("group")
    return GroupSums(*(torch.tensor(ordered[side].to_numpy(float)) for side in ("numerator", "denominator")))
