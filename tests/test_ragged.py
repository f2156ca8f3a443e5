"""Rows of different lengths in one array."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radiant_lens.ragged import Ragged


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1))))
def test_it_is_the_list_of_its_rows(rows):
    packed = Ragged(rows[:1])
    for row in rows[1:]:
        packed.append(row)
    assert [list(row) for row in packed] == rows
    assert len(packed) == len(rows)


def test_rows_beyond_the_last_and_numbers_too_large_are_refused():
    packed = Ragged([[1]])
    for i in (1, -1):
        with pytest.raises(IndexError):
            packed[i]
    with pytest.raises(OverflowError):
        packed.append([5, 2**31])
    packed.append([6])
    assert [list(row) for row in packed] == [[1], [6]]


def test_numbers_that_need_more_room_move_those_before_them():
    packed = Ragged([[1, 2**16 - 1]])
    assert packed._values.itemsize == 2
    packed.append([3, 2**16])
    packed.append([4])
    assert [list(row) for row in packed] == [[1, 2**16 - 1], [3, 2**16], [4]]


def test_it_is_small():
    rows = [[i + j for j in range(40)] for i in range(1000)]
    packed = Ragged(rows)
    mine = sys.getsizeof(packed._values) + sys.getsizeof(packed._ends)
    assert 4 * mine < sum(map(sys.getsizeof, rows))
