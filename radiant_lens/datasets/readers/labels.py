"""Labels: from the values of a column to 0 (desirable) and 1 (undesirable), in a sense that is never guessed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from radiant_lens.datasets.readers.columns import Several, is_missing
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.errors import DataError, InvalidArgumentError

Label: TypeAlias = str | int | float | bool

# Numbers have the documented sense; words are read only if they name the sense themselves. "true" does not: it may
# mean that the text is true, or that it is what the column's name says.
_KNOWN = {
    "0": 0, "desirable": 0, "harmless": 0, "nontoxic": 0, "non-toxic": 0,
    "1": 1, "undesirable": 1, "harmful": 1, "toxic": 1,
}  # fmt: skip
# Values that come in pairs: if one of them alone is undesirable, only the other is desirable, and a typo is a bad row.
_PAIRS = (frozenset({"0", "1"}), frozenset({"true", "false"}))
# Names of columns in which 1 usually is the good class, and the column of texts that true-or-false data sets have.
_GOOD_NAMES = (
    "true", "is_true", "truth", "truthful", "is_truthful", "correct", "is_correct", "factual", "is_factual", "good",
    "safe", "is_safe", "harmless", "desirable",
)  # fmt: skip
_TRUE_FALSE_COLUMNS = ("statement", "label")
SIDES = ("above", "below")


def canonical(value: Any) -> str:
    """Return a label as text in one form: 1, 1.0 and "1.0" are "1", True and "TRUE" are "true"."""
    # Not by `==`: True equals 1 in Python, but "true" and "1" are labels of different senses.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().casefold()
    return text.removesuffix(".0") if text.removesuffix(".0").lstrip("-").isdigit() else text


@dataclass
class LabelRule:
    """Reads labels; `undesirable` and `threshold` are those of `load_dataset`.

    Attributes:
        undesirable: canonical values that mean label 1; None for the documented sense (1 = undesirable).
        pair: the only labels that may occur; empty for any.
        threshold: scores at or above it are undesirable.
        below: scores below the threshold are undesirable instead.
        seen: canonical labels of the rows read so far, in the order of their appearance.
    """

    undesirable: frozenset[str] | None = None
    pair: frozenset[str] = frozenset()
    threshold: float | None = None
    below: bool = False
    seen: dict[str, None] = field(default_factory=dict[str, None])

    def read(self, row: Row) -> int:
        """Return the label of a row: 0 or 1.

        Raises:
            DataError: the value is missing or has no known sense.
        """
        value = row["label"]
        if isinstance(value, Several):
            return max(self._one(v, name) for name, v in value.items())
        return self._one(value, "label")

    def _one(self, value: Any, name: str) -> int:
        if is_missing(value):
            raise DataError(f"`{name}` must be 0 (desirable) or 1 (undesirable); it is empty.")
        if self.threshold is not None:
            return self._by_threshold(value, name, self.threshold)
        word = canonical(value)
        label = _KNOWN.get(word) if self.undesirable is None else int(word in self.undesirable)
        if label is None or (self.pair and word not in self.pair):
            raise DataError(_refusal(value, name, self.pair))
        self.seen[word] = None
        return label

    def _by_threshold(self, value: Any, name: str, threshold: float) -> int:
        try:
            score = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            score = float("nan")
        # NaN compares as False with every threshold and would be desirable in silence.
        if score != score:
            raise DataError(f"`{name}` must be a number to be compared with `threshold`; got {_briefly(value)}.")
        return int((score < threshold) if self.below else (score >= threshold))

    def check_seen(self, source: str) -> None:
        """Check that every value of `undesirable` is a label of some row.

        Raises:
            DataError: a value that no row has, such as a typo.
        """
        missing = sorted((self.undesirable or frozenset()) - set(self.seen))
        if missing:
            raise DataError(
                f"`undesirable` names {', '.join(map(repr, missing))}, but no row of {source} has this label; labels "
                f"are: {_listed(self.seen) or 'none'}."
            )

    def sense(self, column: str) -> str:
        """Return the meaning of label 1, for the data set's repr; `column` is the label's name in the file."""
        if self.threshold is not None:
            return f"{column} {'below' if self.below else 'at or above'} {self.threshold:g}"
        if self.undesirable is None:
            return "undesirable" if column == "label" else column
        # The other labels are listed as well: a misspelled word among them became desirable.
        others = [word for word in self.seen if word not in self.undesirable]
        rest = "" if self.pair else f" (0 = {_listed(others)})"
        return f"{column} is {' or '.join(sorted(self.undesirable))}{rest}"


def make_rule(undesirable: Label | Sequence[Label] | None, threshold: float | None) -> LabelRule:
    """Return the rule for the arguments of `load_dataset`.

    Raises:
        InvalidArgumentError: a threshold that is no number, or an `undesirable` that does not fit it.
    """
    if threshold is not None:
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold):
            raise InvalidArgumentError(f"`threshold` must be a finite number, such as 0.5; got {threshold!r}.")
        side = "above" if undesirable is None else undesirable
        if side not in SIDES:
            raise InvalidArgumentError(
                f"With `threshold`, `undesirable` must be 'above' (the default) or 'below'; got {undesirable!r}."
            )
        return LabelRule(threshold=float(threshold), below=side == "below")
    if undesirable is None:
        return LabelRule()
    several = isinstance(undesirable, list | tuple | set | frozenset)
    values: list[Any] = list(undesirable) if several else [undesirable]
    if not values or not all(isinstance(value, str | int | float) for value in values):
        raise InvalidArgumentError(
            f"`undesirable` must be a label, such as 0, or a list of labels; got {undesirable!r:.60}."
        )
    labels = frozenset(map(canonical, values))
    # A list says that all other labels are desirable, however many there are.
    pairs = [] if several else [pair for pair in _PAIRS if labels <= pair]
    return LabelRule(labels, pair=pairs[0] if pairs else frozenset())


def check_sense(text_column: str, label_column: str, *, ambiguous: bool = False) -> None:
    """Refuse a label column whose 1 usually is the good class; called if the caller did not state the sense.

    Args:
        text_column, label_column: names in the source.
        ambiguous: the format leaves the sense open, whatever the names.

    Raises:
        InvalidArgumentError: such a column.
    """
    good = label_column.casefold().replace(" ", "_") in _GOOD_NAMES
    if ambiguous or good or (text_column.casefold(), label_column.casefold()) == _TRUE_FALSE_COLUMNS:
        raise InvalidArgumentError(
            f"Label 1 of column {label_column!r} of {text_column!r} usually means the good class (a true statement), "
            "and here 1 means undesirable: say undesirable=0 (label 0 is undesirable) or undesirable=1, and for labels "
            "True and False undesirable=False or undesirable=True."
        )


def _refusal(value: Any, name: str, pair: frozenset[str]) -> str:
    if pair:
        return (
            f"`{name}` must be one of the two labels that go with `undesirable`, {' or '.join(sorted(pair))}; got "
            f"{_briefly(value)}: for more labels give `undesirable` as a list."
        )
    return (
        f"`{name}` must be 0 (desirable) or 1 (undesirable); got {_briefly(value)}: name the undesirable ones of other "
        "labels, undesirable=[...], or compare scores, threshold=0.5."
    )


def _listed(words: Any, most: int = 5) -> str:
    names = [repr(word) for word in words]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _briefly(value: Any) -> str:
    return f"{value!r:.60}"
