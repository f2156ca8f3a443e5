"""The editor of a layer: its thin matrix products agree with the maps and gates applied head by head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import random_steering

from radiant_lens.serving.batched_editor import make_batched_editor
from radiant_lens.steering.editor import LayerEdit, LayerEditor, RankOneEditor, mask_edit
from radiant_lens.steering.gates import GATES, TrustRegion


def editors(gate: str, sites, seed: int = 0):
    """The same edits by thin products, and head by head."""
    steering = random_steering(2, 5, 3, gate=gate, seed=seed, sites=sites)
    fast = steering._editor(1, torch.zeros((), dtype=torch.float64))
    assert isinstance(fast, RankOneEditor)
    names = LayerEditor.__dataclass_fields__
    return fast, LayerEditor(**{name: getattr(fast, name) for name in names})


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(GATES),
    st.sets(st.integers(0, 4), min_size=1),
    st.integers(0, 1000),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_thin_products_equal_the_maps(gate, heads, seed, batch):
    fast, slow = editors(gate, [(1, head) for head in heads], seed)
    z = torch.randn(*batch, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mine, reference = fast.compute(z), slow.compute(z)
    for name in ("heads", "flagged", "gated", "untrusted"):
        assert torch.equal(getattr(mine, name), getattr(reference, name))
    torch.testing.assert_close(mine.displacement, reference.displacement)
    torch.testing.assert_close(fast.apply(z), slow.apply(z))
    if reference.gated.any():
        assert not torch.allclose(fast.apply(z), z)
    untouched = [head for head in range(5) if head not in heads]
    assert torch.equal(fast.apply(z)[..., untouched, :], z[..., untouched, :])


@pytest.mark.parametrize("gate", ["head", "vote", "joint"])
def test_a_shut_gate_leaves_every_bit(gate):
    fast, _ = editors(gate, [(1, 0), (1, 3)])
    z = torch.randn(400, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shut = ~fast.compute(z).gated.any(-1)
    assert shut.any() and not shut.all()
    assert torch.equal(fast.apply(z)[shut], z[shut])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0, 1, 3, 9, 10])
@pytest.mark.parametrize("gate", GATES)
def test_gates_as_products_open_as_the_votes_decide(gate, threshold, dtype):
    steering = random_steering(2, 9, 3, gate=gate, sites=[(1, head) for head in (0, 2, 3)])
    scores = replace(steering.scores, thresholds=torch.full((2,), threshold), biases=torch.zeros(2, 9))
    fast = replace(steering, scores=scores)._editor(1, torch.zeros((), dtype=dtype))
    assert isinstance(fast, RankOneEditor)
    slow = LayerEditor(**{name: getattr(fast, name) for name in LayerEditor.__dataclass_fields__})
    z = torch.randn(3000, 9, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    # Scores of exactly 0, which flag; activations of every size; and heads that all flag but one.
    z[::7, ::2] = 0
    z[1::7] *= 1e-6
    z[2::7] *= 1e6
    z[3::7] *= (z[3::7] * scores.weights[1]).sum(-1, keepdim=True).sign()
    z[3::7, 2] *= -1
    edit = fast.compute(z)
    assert torch.equal(edit.gated, slow.compute(z).gated)
    written = z.index_add(-2, edit.heads, edit.displacement)
    torch.testing.assert_close(fast.apply(z), written)
    shut = ~edit.gated.any(-1)
    assert torch.equal(fast.apply(z)[shut], z[shut])
    assert shut.any() == ((gate != "none" and threshold > 0) or gate in ("head", "vote", "joint"))


@pytest.mark.parametrize("gate", GATES)
def test_gradients_through_thin_products_are_those_of_the_maps(gate):
    """A gate is a step, so it has no gradient of its own."""
    fast, slow = editors(gate, [(1, head) for head in (0, 2, 3)])
    z = torch.randn(50, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient, expected = (torch.autograd.grad(editor.apply(z).square().sum(), z)[0] for editor in (fast, slow))
    torch.testing.assert_close(gradient, expected)
    assert not torch.equal(gradient, 2 * z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["rank_one", "dense"])
@pytest.mark.parametrize("gate", GATES)
def test_in_half_precision_the_sum_is_rounded_once(gate, kind, dtype):
    steering = random_steering(2, 5, 3, gate=gate, kind=kind)
    z = torch.randn(500, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    edit = steering.displace(z, 1)
    exact = z.float().index_add(-2, edit.heads, edit.displacement.float())
    torch.testing.assert_close(steering.edit(z, 1), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    # Nearly all are the nearest number; a sum that lies between two may fall to either by its own rounding.
    assert float((steering.edit(z, 1) == exact.to(dtype)).double().mean()) > 0.99
    served = make_batched_editor([steering], 1, like=z)
    rows = served.apply(z.flatten(1), torch.zeros(len(z), dtype=torch.long), torch.ones(len(z))).z
    assert float((rows.view_as(z) == exact.to(dtype)).double().mean()) > 0.99
    twice = z + edit.displacement.to(dtype).new_zeros(z.shape).index_add(-2, edit.heads, edit.displacement.to(dtype))
    assert float((twice == exact.to(dtype)).double().mean()) < 0.99


def test_a_trust_region_is_decided_head_by_head():
    steering = random_steering(2, 5, 3, gate="head", sites=[(1, 0)])
    trust = TrustRegion(torch.zeros(1, 3), torch.eye(3)[None], torch.full((1,), 0.5))
    bound = replace(steering, trust=trust)
    assert not isinstance(bound._editor(1, torch.zeros(())), RankOneEditor)
    z = torch.randn(100, 5, 3, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(bound.edit(z, 1), steering.edit(z, 1))


def test_a_trust_region_is_an_ellipsoid_around_its_mean_with_its_edge():
    whiten = torch.diag(torch.tensor([1.0, 2.0]))[None]
    region = TrustRegion(torch.tensor([[3.0, 1.0]]), whiten, torch.tensor([4.0]))
    z = torch.tensor([[3.0, 1.0], [5.0, 1.0], [5.1, 1.0], [3.0, 2.0], [3.0, 2.1], [-3.0, -1.0]])[:, None]
    assert region.contains(z)[:, 0].tolist() == [True, True, False, True, False, False]


def test_a_masked_edit_happens_only_at_the_positions_of_the_mask():
    flags = torch.ones(1, 3, 2, dtype=torch.bool)
    edit = LayerEdit(0, torch.tensor([0, 1]), flags, flags, flags, torch.ones(1, 3, 2, 4))
    result = mask_edit(edit, torch.tensor([[False, True, False]]))
    at = torch.tensor([[[False], [True], [False]]]).expand(1, 3, 2)
    assert torch.equal(result.flagged, flags)
    assert torch.equal(result.gated, at) and torch.equal(result.untrusted, at)
    assert torch.equal(result.displacement, at[..., None].expand(1, 3, 2, 4).float())
