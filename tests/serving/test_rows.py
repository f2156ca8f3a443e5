"""Rows: from the last prompt token on, whatever the passes a request comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radiant_lens.serving.rows import UNSTEERED, Rows, SteeredRequest


def fill(rows: Rows, *requests: tuple[str, int, int]) -> list[int]:
    """Rows of a pass, given (id, tokens scheduled, tokens computed before)."""
    names, scheduled, computed = zip(*requests)
    rows.fill(names, np.array(scheduled), np.array(computed))
    return rows.steering[: sum(scheduled)].tolist()


def make_rows() -> Rows:
    rows = Rows(32, 2)
    rows.add("a", SteeredRequest(0, 0.5, first=4))
    rows.add("b", SteeredRequest(1, 2.0, first=0))
    rows.add("plain", None)
    return rows


def test_edits_begin_at_the_last_prompt_token():
    rows = make_rows()
    assert fill(rows, ("a", 5, 0), ("plain", 2, 0), ("b", 1, 0)) == [-1, -1, -1, -1, 0, -1, -1, 1]
    assert rows.strength[:8].tolist() == [0, 0, 0, 0, 0.5, 0, 0, 2.0]
    assert rows.n_steered.tolist() == [1, 1]
    places, steering, strength = rows.steered
    assert (places.tolist(), steering.tolist(), strength.tolist()) == ([4, 7], [0, 1], [0.5, 2.0])
    # One token each: the answer.
    assert fill(rows, ("b", 1, 1), ("a", 1, 5)) == [1, 0]
    assert rows.n_steered.tolist() == [2, 2]
    assert rows.steered.places is None and rows.steered.steering.tolist() == [1, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_chunks_of_any_size_edit_the_same_tokens(size):
    rows, edited = make_rows(), []
    for start in range(0, 10, size):
        edited += fill(rows, ("plain", 3, 0), ("a", min(size, 10 - start), start))[3:]
    assert edited == [-1] * 4 + [0] * 6


def test_a_request_that_was_preempted_is_edited_at_the_same_tokens_again():
    rows = make_rows()
    fill(rows, ("a", 5, 0))
    fill(rows, ("a", 1, 5))
    # Computed again from the start, with the answer as far as it goes; a cached prefix shortens the pass.
    assert fill(rows, ("a", 7, 0)) == [-1] * 4 + [0] * 3
    assert fill(rows, ("a", 4, 3)) == [-1, 0, 0, 0]


def test_rows_of_an_earlier_pass_are_cleared():
    rows = make_rows()
    fill(rows, ("b", 20, 0))
    fill(rows, ("a", 5, 0))
    assert rows.steered is not None
    assert (rows.steering[5:] == UNSTEERED).all() and not rows.strength[5:].any()
    fill(rows, ("plain", 9, 0))
    assert rows.steered is None and (rows.steering == UNSTEERED).all() and not rows.strength.any()


def test_requests_that_ended_are_forgotten():
    rows = make_rows()
    assert len(rows) == 2
    rows.remove(["a", "plain", "never seen"])
    assert len(rows) == 1 and fill(rows, ("a", 6, 0)) == [-1] * 6
    # An id that is used again, without a steering.
    rows.add("b", None)
    assert len(rows) == 0 and fill(rows, ("b", 1, 0)) == [-1]


def test_the_tensors_stay_where_they_are():
    rows = make_rows()
    addresses = rows.steering.data_ptr(), rows.strength.data_ptr()
    fill(rows, ("a", 5, 0), ("b", 1, 0))
    assert addresses == (rows.steering.data_ptr(), rows.strength.data_ptr())
    assert isinstance(rows.steering, torch.Tensor)
