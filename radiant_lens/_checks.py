"""Validators: each raises an error whose one sentence names the value and the allowed values."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor

from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, UnknownNameError

# Elements that are checked at a time.
FINITE_CHUNK = 2**22
LONGEST = 80
"""Characters of a wrong value that a message shows."""


def instance(name: str, value: object, kinds: type | tuple[type, ...], *, hint: str = "") -> None:
    """Check that `value` is an instance of one of `kinds`; `hint` tells how to get one."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        # "u" is left out: a name such as UserDict starts with a consonant when spoken.
        names = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}" for kind in kinds)
        raise InvalidArgumentError(f"`{name}` must be {names}; got {_briefly(value)}{hint and ': ' + hint}.")


def _briefly(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} {value!r:.60}" if isinstance(value, (str, int, float, bool)) else kind


def shown(value: object) -> str:
    """Return the repr of a wrong value for a message; a whole text or table would hide the sentence."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def seed(value: object, name: str = "seed") -> None:
    """Check that `value` is a seed for every generator (those of NumPy and scikit-learn end at 2**32)."""
    whole(name, value, 0, 2**32 - 1)


def columns(name: str, value: object) -> Tensor:
    """Return token columns as a tensor, after checking that they are whole numbers of at least 0."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        # Any tensor that the next check refuses.
        tensor = torch.tensor(math.nan)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or bool((tensor < 0).any()):
        raise InvalidArgumentError(f"`{name}` must be whole numbers of at least 0; got {shown(value)}.")
    return tensor


def choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Check that `value` is one of `allowed`."""
    if value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise InvalidArgumentError(f"`{name}` must be one of {options}; got {shown(value)}.")


def between(name: str, value: object, low: float, high: float = math.inf, *, closed: str = "neither") -> None:
    """Check that `value` is a real number in an interval; `closed` is "neither", "low", "high" or "both"."""
    # `bool` is a subclass of `int`. NaN fails every comparison, so it replaces anything that is not a number.
    number = float(value) if isinstance(value, (int, float, Real)) and not isinstance(value, bool) else math.nan
    above = number >= low if closed in ("low", "both") else number > low
    below = number <= high if closed in ("high", "both") else number < high
    if not (above and below):
        raise InvalidArgumentError(f"`{name}` must lie {_interval(low, high, closed)}; got {shown(value)}.")


def _interval(low: float, high: float, closed: str) -> str:
    if math.isinf(high):
        return f"at or above {low:g}" if closed in ("low", "both") else f"strictly above {low:g}"
    ends = {"neither": "strictly between", "both": "between"}.get(closed)
    if ends:
        return f"{ends} {low:g} and {high:g}"
    left, right = ("[", ")") if closed == "low" else ("(", "]")
    return f"in {left}{low:g}, {high:g}{right}"


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check that `value` is a whole number of at least `low` and, unless `high` is None, at most `high`."""
    number = int(value) if isinstance(value, (int, Integral)) and not isinstance(value, bool) else low - 1
    if number < low or (high is not None and number > high):
        allowed = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidArgumentError(f"`{name}` must be a whole number {allowed}; got {shown(value)}.")


def known(kind: str, name: str, names: Iterable[str], *, hint: str = "") -> None:
    """Check that `name` is one of `names`; the error suggests similar names."""
    names = list(names)
    if name in names:
        return
    # In other capital letters it is the same name: the nearest to "radiant" is "RADIANT".
    by_folded = {known_name.casefold(): known_name for known_name in names}
    near = [by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
    offer = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {_listed(names)}."
    raise UnknownNameError(f"{shown(name)} is not a known {kind}: {offer}{' ' + hint if hint else ''}")


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(map(repr, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def shape(name: str, value: Tensor, expected: tuple[int | None, ...], axes: str) -> None:
    """Check that `value` has the lengths `expected` (None: any) along the named `axes`."""
    lengths = tuple(value.shape)
    if len(lengths) != len(expected) or any(e is not None and e != n for e, n in zip(expected, lengths)):
        allowed = ", ".join("any" if e is None else str(e) for e in expected)
        raise InvalidArgumentError(f"`{name}` must have axes `{axes}` of lengths ({allowed}); got shape {lengths}.")


def finite(name: str, value: Tensor) -> None:
    """Check that `value` has neither NaN nor infinity; the error names the first index that has."""
    # In chunks, because a memory-mapped tensor may be larger than memory.
    chunks = value.split(max(1, FINITE_CHUNK * len(value) // max(value.numel(), 1))) if value.ndim else (value,)
    # NaN and infinity show in the extremes, which take no memory of the tensor's size.
    if all(bool(torch.isfinite(torch.stack(chunk.aminmax())).all()) for chunk in chunks if chunk.numel()):
        return
    counts = [int((~torch.isfinite(chunk)).sum()) for chunk in chunks]
    first = next(i for i, count in enumerate(counts) if count)
    index = [int(i) for i in (~torch.isfinite(chunks[first])).nonzero()[0]]
    if index:
        index[0] += first * len(chunks[0])
    raise DataError(f"`{name}` must be finite; {sum(counts)} values are not, the first at index {tuple(index)}.")


def each(name: str, values: object, kind: type) -> None:
    """Check that `values` is a list, or a tuple, of instances of one type."""
    if not isinstance(values, (list, tuple)):
        raise InvalidArgumentError(f"`{name}` must be a list; got {shown(values)}.")
    for value in values:
        if not isinstance(value, kind):
            raise InvalidArgumentError(f"`{name}` must hold {kind.__name__} alone; got {shown(value)}.")


def some(what: str, n: int) -> None:
    """Check that there is at least one example."""
    if n == 0:
        raise DataError(f"{what} has no examples.")


def both_classes(labels: Tensor, where: str) -> None:
    """Check that `labels` holds zeros and ones, at least one of each."""
    some(where, labels.numel())
    values = labels.unique().tolist()
    if not set(values) <= {0, 1}:
        raise DataError(f"Labels must be 0 (desirable) or 1 (undesirable); {where} has {values}.")
    if len(values) < 2:
        missing = "undesirable (1)" if values == [0] else "desirable (0)"
        raise DataError(f"Both classes are needed; {where} has no {missing} example.")


def disjoint_groups(one: Iterable[str], other: Iterable[str], names: tuple[str, str]) -> None:
    """Check that no group is in both parts."""
    shared = sorted(set(one) & set(other))
    if shared:
        raise LeakageError(
            f"{names[0]} and {names[1]} must not share groups; {len(shared)} are in both, such as {shared[0]!r}."
        )
