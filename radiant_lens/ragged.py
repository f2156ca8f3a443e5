"""Rows of different lengths, side by side in one array."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class Ragged(Sequence[Sequence[int]]):
    """A list of rows of whole numbers in a fraction of the memory, to which rows can be appended.

    Numbers take two bytes each until one needs four.

    Args:
        rows: to begin with.

    Example:
        >>> rows = Ragged([[3, 4], []])
        >>> rows.append(range(2))
        >>> [list(row) for row in rows]
        [[3, 4], [], [0, 1]]
    """

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._values, self._ends = array("H"), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[int]) -> None:
        """Add a row at the end."""
        try:
            self._values.extend(row)
        except OverflowError:
            del self._values[self._ends[-1] :]
            if self._values.typecode == "i":
                raise
            self._values = array("i", self._values)
            self.append(row)
            return
        self._ends.append(len(self._values))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> Sequence[int]:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        """One row; counted from 0."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._values[self._ends[i] : self._ends[i + 1]]
