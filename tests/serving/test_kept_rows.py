"""Which rows of a pass are kept, and where."""

from __future__ import annotations

import numpy as np
import torch

from radiant_lens.serving.kept_rows import KEEP, Keep, KeptRows, keep_key, read_keep


def make_z(positions: list[int], text: int) -> torch.Tensor:
    """Activations that name their text and position."""
    return torch.tensor([[100.0 * text + p] * 6 for p in positions])


def test_chunks_and_recomputed_prompts_give_one_activation_for_each_position():
    rows = KeptRows((1, 2, 3), torch.zeros(()))
    rows.begin(5)
    rows.add("a", Keep(0, np.array([1, 3, 4])))
    rows.add("b", Keep(3, np.array([0, 2])))
    rows.add("c", None)
    steps = [
        (["a", "c"], [2, 3], [0, 0], [make_z([0, 1], 1), make_z([0, 1, 2], 3)]),
        (["b", "a"], [3, 2], [0, 2], [make_z([0, 1, 2], 2), make_z([2, 3], 1)]),
        # Preempted, and computed again in one chunk.
        (["a"], [5], [0], [make_z([0, 1, 2, 3, 4], 1)]),
    ]
    for ids, n, computed, z in steps:
        rows.fill(ids, np.array(n), np.array(computed))
        rows.keep(0, torch.cat(z))
    assert rows.z[:, 0, 0, 0].tolist() == [101, 103, 104, 200, 202]
    assert rows.z.shape == (5, 1, 2, 3) and torch.equal(rows.z, rows.z[..., :1, :1].expand_as(rows.z))


def test_what_is_not_kept_is_nan_and_ended_requests_keep_nothing():
    rows = KeptRows((1, 2, 3), torch.zeros(()))
    rows.begin(2)
    rows.add("a", Keep(0, np.array([0, 1])))
    rows.fill(["a"], np.array([1]), np.array([0]))
    rows.keep(0, make_z([0], 1)[None])
    assert rows.z[:, 0, 0, 0].isnan().tolist() == [False, True]
    rows.remove(["a", "never began"])
    rows.fill(["a"], np.array([1]), np.array([1]))
    rows.keep(0, make_z([1], 1))
    assert rows.z[1].isnan().all()
    rows.begin(2)
    assert rows.z.isnan().all()


def test_blocks_with_kept_tokens_have_a_key_of_their_own():
    keep = {KEEP: Keep(7, np.array([32, 40]))}
    assert keep_key(keep, "a", 32) is None
    assert keep_key(keep, "a", 33) == keep_key(keep, "a", 64) != keep_key(keep, "b", 64) is not None
    assert keep_key(None, "a", 64) is None and keep_key({KEEP: Keep(7, np.array([]))}, "a", 64) is None


def test_what_a_client_sends_under_the_name_is_no_matter():
    for value in ("x", [1, 2], None):
        assert read_keep({KEEP: value}) is None and keep_key({KEEP: value}, "a", 64) is None
    assert read_keep({KEEP: Keep(0, np.array([1]))}) == Keep(0, np.array([1]))
