"""Number of heads and random directions of inference-time intervention, jointly and layer by layer."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.policies import sequential


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    cache = gaussian_cache(300, n_layers=4, n_heads=3, d_head=8)
    detector = rl.RiskAwareDetector().fit(cache, gaussian_cache(100, n_layers=4, n_heads=3, d_head=8, seed=1))
    return cache, detector


@pytest.fixture
def by_depth(fitted, monkeypatch):
    """Fit layer by layer, without a model: every layer gets the same activations."""
    cache, detector = fitted
    monkeypatch.setattr(sequential, "collect", lambda *args, **options: cache)
    return lambda policy: rl.fit_sequential(None, [], detector, policy)


@pytest.mark.parametrize("n_heads", [1, 3, 12])
def test_fitting_by_depth_edits_as_many_heads_as_the_joint_fit(fitted, by_depth, n_heads):
    policy = rl.ITIPolicy(n_heads=n_heads)
    fit = by_depth(policy)
    assert len(fit.steering.sites) == len(fit.moved) == n_heads
    assert fit.steering.sites == policy.fit(*fitted).sites


@pytest.mark.parametrize("rule", [3, "least_risk:3", "random:3"])
def test_other_policies_count_heads_over_all_layers_too(fitted, by_depth, rule):
    policy = rl.MeanShiftPolicy(heads=rule)
    assert by_depth(policy).steering.sites == policy.fit(*fitted).sites
    assert len(policy.fit(*fitted).sites) == 3


def directions(steering):
    shifts = torch.stack([steering.maps()[site].g for site in steering.sites])
    return shifts / shifts.norm(dim=-1, keepdim=True)


def test_no_two_heads_share_a_random_direction(fitted, by_depth):
    policy = rl.ITIPolicy(direction="random")
    for steering in (policy.fit(*fitted), by_depth(policy).steering):
        assert len(steering.layers) == 4
        cosines = [abs(float(a @ b)) for a, b in combinations(directions(steering), 2)]
        assert max(cosines) < 0.99
    torch.testing.assert_close(directions(policy.fit(*fitted)), directions(by_depth(policy).steering))


def test_a_random_direction_does_not_depend_on_the_other_heads(fitted):
    both = rl.ITIPolicy(direction="random", heads=[(1, 0), (3, 2)]).fit(*fitted)
    alone = rl.ITIPolicy(direction="random", heads=[(3, 2)]).fit(*fitted)
    assert torch.equal(both.maps()[3, 2].g, alone.maps()[3, 2].g)


@pytest.mark.parametrize("n_heads", [13, 999])
def test_more_heads_than_the_model_has_are_refused(fitted, n_heads):
    with pytest.raises(InvalidArgumentError, match=f"`n_heads` must be .* between 1 and 12; got {n_heads}"):
        rl.ITIPolicy(n_heads=n_heads).fit(*fitted)
    with pytest.raises(InvalidArgumentError, match=f"got {n_heads}"):
        rl.ITIPolicy(n_heads=n_heads).sites(fitted[1])


def test_the_default_is_24_heads_or_all_of_a_small_model(fitted, gaussian_cache):
    assert len(rl.ITIPolicy().fit(*fitted).sites) == 12
    cache = gaussian_cache(60, n_layers=5, n_heads=6)
    detector = rl.RiskAwareDetector(loss="lda").fit(cache, gaussian_cache(40, n_layers=5, n_heads=6, seed=1))
    assert len(rl.ITIPolicy().fit(cache, detector).sites) == 24
    assert len(rl.ITIPolicy(n_heads=30).fit(cache, detector).sites) == 30
