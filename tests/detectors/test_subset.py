"""Fitting from part of a cache at a time gives what fitting from all of it gives."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens import linalg
from radiant_lens.detectors import subset as parts
from radiant_lens.detectors.subset import Part, head_chunks


@pytest.fixture
def cache(gaussian_cache):
    return gaussian_cache(60)


def test_a_part_is_what_select_gives(cache):
    part, selected = Part(cache, torch.tensor([3, 0, 70])), cache.select([3, 0, 70])
    assert torch.equal(part.labels, selected.labels)
    assert part.group_names == tuple(sorted(set(selected.group_names)))
    assert torch.equal(part.groups.unique(return_inverse=True)[1], selected.groups)
    assert torch.equal(part.sample(slice(1, 5)).x, selected.z.flatten(1, 2)[:, 1:5].transpose(0, 1))


def test_splits_are_those_of_the_cache(cache):
    ours, theirs = Part.whole(cache).split((0.3, 0.7), seed=4), cache.split((0.3, 0.7), seed=4)
    assert [torch.equal(p.cache.z[p.index], c.z) for p, c in zip(ours, theirs)] == [True, True]
    halves = zip(ours[1].split((0.5, 0.5), seed=1), theirs[1].split((0.5, 0.5), seed=1))
    assert all(torch.equal(p.cache.z[p.index], c.z) for p, c in halves)
    assert len(Part.whole(cache).split((0.3, 0.7), seed=5)[0].index) == len(ours[0].index)
    assert not torch.equal(Part.whole(cache).split((0.3, 0.7), seed=5)[0].index, ours[0].index)


def test_head_chunks_by_hand(monkeypatch):
    monkeypatch.setattr(parts, "HEADS_BYTES", 4 * 100 * 8 * 3)
    assert head_chunks(7, 100, 8) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert head_chunks(2, 1000, 8) == [slice(0, 1), slice(1, 2)]
    assert head_chunks(3, 1, 8) == [slice(0, 3)]


@pytest.mark.parametrize("loss", ["risk", "cross_entropy", "mass_mean", "lda"])
def test_chunks_of_heads_and_examples_change_nothing_but_rounding(cache, gaussian_cache, monkeypatch, loss):
    validation = gaussian_cache(40, seed=1)
    whole = rl.RiskAwareDetector(loss=loss, max_iterations=5).fit(cache, validation=validation)
    monkeypatch.setattr(parts, "HEADS_BYTES", 1)
    monkeypatch.setattr(linalg, "CHUNK_BYTES", 8 * cache.z[0].numel() * 7)
    chunked = rl.RiskAwareDetector(loss=loss, max_iterations=5).fit(cache, validation=validation)
    torch.testing.assert_close(chunked.weights_, whole.weights_, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(chunked.decision_function(cache), whole.decision_function(cache), rtol=1e-3, atol=1e-3)
    assert torch.equal(chunked.flags(cache), chunked.decision_function(cache) >= 0)


def test_policies_from_parts_equal_those_from_the_whole(cache, gaussian_cache, monkeypatch):
    detector = rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(40, seed=1))
    for options in ({}, {"geometry": "procrustes"}, {"trust": 0.9}):
        policy = rl.RadiantPolicy(gamma=0.1, heads=3, **options)
        whole = policy.fit(cache, detector)
        with monkeypatch.context() as patched:
            patched.setattr(linalg, "CHUNK_BYTES", 8 * 3 * 4 * 7)
            part = policy.fit(cache, detector)
        z = cache.z[:, 1].double()
        torch.testing.assert_close(part.edit(z, 1), whole.edit(z, 1), rtol=1e-8, atol=1e-8)
        assert not torch.allclose(part.edit(z, 1), z)
