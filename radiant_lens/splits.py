"""Splitting groups: the one place where a split is drawn."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError


def split_groups(
    groups: Iterable[str],
    fractions: Sequence[float],
    *,
    seed: int = 0,
    strata: Mapping[str, Hashable] | None = None,
) -> tuple[frozenset[str], ...]:
    """Split the distinct groups at random into sets of about these fractions, none of them empty.

    Args:
        groups: names of groups, repetitions allowed.
        fractions: shares of the groups, positive, adding up to 1.
        seed: the same seed gives the same parts, in any order of `groups`.
        strata: kind of each group, such as its classes; every part gets about its fraction of each kind.

    Raises:
        InvalidArgumentError: fractions that are no list or do not add up to 1, or fewer groups than parts.

    Example:
        >>> [len(part) for part in split_groups("abcdefghij", (0.6, 0.2, 0.2))]
        [6, 2, 2]
    """
    _checks.seed(seed)
    _check_fractions(fractions)
    names = sorted(set(groups))
    if len(names) < len(fractions):
        raise InvalidArgumentError(f"{len(fractions)} parts need as many groups; the data has {len(names)}.")
    random.Random(seed).shuffle(names)
    if strata is not None:
        names = _interleaved(names, strata)
    ends = [round(len(names) * sum(fractions[: i + 1])) for i in range(len(fractions))]
    for i in range(len(ends)):
        # Every part gets a group, however small its fraction.
        ends[i] = min(max(ends[i], (ends[i - 1] if i else 0) + 1), len(names) - (len(ends) - 1 - i))
    starts = [0, *ends[:-1]]
    return tuple(frozenset(names[a:b]) for a, b in zip(starts, ends))


def classes_by_group(groups: Iterable[str], labels: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Classes that each group holds, by its name: (0,), (1,), (0, 1), or () without examples.

    Args:
        groups: names of all groups.
        labels: group and label of each example.
    """
    classes: dict[str, set[int]] = {name: set() for name in groups}
    for name, label in labels:
        classes[name].add(label)
    return {name: tuple(sorted(held)) for name, held in classes.items()}


def _check_fractions(fractions: Sequence[float]) -> None:
    _checks.instance(
        "fractions", fractions, (tuple, list), hint="the share of each part, such as (0.5, 0.5) for two equal ones"
    )
    for fraction in fractions:
        _checks.instance("fractions", fraction, (float, int))
    if not fractions or any(not f > 0 for f in fractions) or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise InvalidArgumentError(f"`fractions` must be positive and add up to 1; got {tuple(fractions)}.")


def _interleaved(names: Sequence[str], strata: Mapping[str, Hashable]) -> list[str]:
    """Names in an order where each stratum is spread evenly, so that every slice has its share of each."""
    members: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        members[strata[name]].append(name)
    # One stratum alone keeps its order: splits of data without strata do not change.
    places = {name: (i + 0.5) / len(m) for m in members.values() for i, name in enumerate(m)}
    return sorted(names, key=places.__getitem__)
