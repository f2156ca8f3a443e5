"""Validators: each raises one sentence that names the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor

from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, UnknownNameError

FINITE_PART = 2**22


def instance(name: str, value: object, kinds: type | tuple[type, ...], *, hint: str = "") -> None:
    """`value` is of one of `kinds`; `hint` says how to get one."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        wanted = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}" for kind in kinds)
        raise InvalidArgumentError(f"`{name}` must be {wanted}; got {_briefly(value)}{hint and ': ' + hint}.")


def _briefly(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} {value!r:.60}" if isinstance(value, (str, int, float, bool)) else kind


def seed(value: object, name: str = "seed") -> None:
    """`value` is a seed that every generator takes (NumPy's and scikit-learn's end at 2**32)."""
    whole(name, value, 0, 2**32 - 1)


def columns(name: str, value: object) -> Tensor:
    """`value` as a tensor of columns of tokens: whole numbers of at least 0."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        found = torch.tensor(math.nan)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or bool((found < 0).any()):
        raise InvalidArgumentError(f"`{name}` must be whole numbers of at least 0; got {value!r}.")
    return found


def choice(name: str, value: object, allowed: Collection[str]) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise InvalidArgumentError(f"`{name}` must be one of {options}; got {value!r}.")


def between(name: str, value: object, low: float, high: float = math.inf, *, closed: str = "neither") -> None:
    """`value` is a real number in the interval; `closed` is "neither", "low", "high" or "both"."""
    number = float(value) if isinstance(value, (int, float, Real)) and not isinstance(value, bool) else math.nan
    above = number >= low if closed in ("low", "both") else number > low
    below = number <= high if closed in ("high", "both") else number < high
    if not (above and below):
        raise InvalidArgumentError(f"`{name}` must lie {_interval(low, high, closed)}; got {value!r}.")


def _interval(low: float, high: float, closed: str) -> str:
    if math.isinf(high):
        return f"at or above {low:g}" if closed in ("low", "both") else f"strictly above {low:g}"
    ends = {"neither": "strictly between", "both": "between"}.get(closed)
    if ends:
        return f"{ends} {low:g} and {high:g}"
    left, right = ("[", ")") if closed == "low" else ("(", "]")
    return f"in {left}{low:g}, {high:g}{right}"


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """`value` is a whole number of at least `low` and, where given, at most `high`."""
    number = int(value) if isinstance(value, (int, Integral)) and not isinstance(value, bool) else low - 1
    if number < low or (high is not None and number > high):
        allowed = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidArgumentError(f"`{name}` must be a whole number {allowed}; got {value!r}.")


def known(kind: str, name: str, names: Iterable[str], *, hint: str = "") -> None:
    """`name` is one of `names`; the error offers those nearest to it."""
    names = list(names)
    if name in names:
        return
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {_listed(names)}."
    raise UnknownNameError(f"{name!r} is not a known {kind}: {offer}{' ' + hint if hint else ''}")


def _listed(names: list[str], most: int = 30) -> str:
    return ", ".join(map(repr, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def shape(name: str, value: Tensor, expected: tuple[int | None, ...], axes: str) -> None:
    """`value` has the lengths of `expected` (None: any) along the named `axes`."""
    given = tuple(value.shape)
    if len(given) != len(expected) or any(e is not None and e != g for e, g in zip(expected, given)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise InvalidArgumentError(f"`{name}` must have axes `{axes}` of lengths ({wanted}); got shape {given}.")


def finite(name: str, value: Tensor) -> None:
    """`value` holds neither NaN nor infinity; the error names the first place that does."""
    # In parts: a memory-mapped tensor may be larger than memory.
    parts = value.split(max(1, FINITE_PART * len(value) // max(value.numel(), 1))) if value.ndim else (value,)
    # NaN and infinity show in the extremes, which need no memory.
    if all(bool(torch.isfinite(torch.stack(part.aminmax())).all()) for part in parts if part.numel()):
        return
    counts = [int((~torch.isfinite(part)).sum()) for part in parts]
    part = next(i for i, count in enumerate(counts) if count)
    where = [int(i) for i in (~torch.isfinite(parts[part])).nonzero()[0]]
    if where:
        where[0] += part * len(parts[0])
    raise DataError(f"`{name}` must be finite; {sum(counts)} values are not, the first at index {tuple(where)}.")


def each(name: str, values: object, kind: type) -> None:
    """`values` is a list of which every item is of a type."""
    if not isinstance(values, (list, tuple)):
        raise InvalidArgumentError(f"`{name}` must be a list; got {values!r}.")
    for value in values:
        if not isinstance(value, kind):
            raise InvalidArgumentError(f"`{name}` must hold {kind.__name__} alone; got {value!r}.")


def some(what: str, n: int) -> None:
    """There is at least one example."""
    if n == 0:
        raise DataError(f"{what} has no examples.")


def both_classes(labels: Tensor, where: str) -> None:
    """`labels` holds zeros and ones, at least one of each."""
    some(where, labels.numel())
    values = labels.unique().tolist()
    if not set(values) <= {0, 1}:
        raise DataError(f"Labels must be 0 (desirable) or 1 (undesirable); {where} has {values}.")
    if len(values) < 2:
        missing = "undesirable (1)" if values == [0] else "desirable (0)"
        raise DataError(f"Both classes are needed; {where} has no {missing} example.")


def disjoint_groups(one: Iterable[str], other: Iterable[str], names: tuple[str, str]) -> None:
    """No group stands in both parts."""
    shared = sorted(set(one) & set(other))
    if shared:
        raise LeakageError(
            f"{names[0]} and {names[1]} must not share groups; {len(shared)} stand in both, such as {shared[0]!r}."
        )
