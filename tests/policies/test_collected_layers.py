"""Layers that were not collected hold zeros; no policy may take them for activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.policies.heads import choose_heads

POLICIES = [
    rl.MeanShiftPolicy,
    rl.MomentMatchingPolicy,
    rl.LinearActPolicy,
    rl.LEACEPolicy,
    rl.ITIPolicy,
    rl.RadiantPolicy,
    lambda heads: rl.AblationPolicy("zero", heads=heads),
    lambda heads: rl.AblationPolicy("mean", heads=heads),
    lambda heads: rl.AblationPolicy("resample", heads=heads),
    lambda heads: rl.ITIPolicy(direction="random", heads=heads),
]


def without(cache, layers):
    """Empty all but these layers, as `collect(layers=...)` leaves them."""
    z = torch.zeros_like(cache.z)
    z[:, layers] = cache.z[:, layers]
    return replace(cache, z=z, meta={**cache.meta, "layers": layers})


@pytest.fixture(scope="module")
def partial(gaussian_cache):
    """Three layers of three heads; the first was not collected."""
    shape = {"n_layers": 3}
    cache = gaussian_cache(300, **shape)
    detector = rl.RiskAwareDetector().fit(
        without(cache, [1, 2]), validation=without(gaussian_cache(200, seed=1, **shape), [1, 2])
    )
    return cache, without(cache, [1, 2]), detector


@pytest.mark.parametrize("make", POLICIES)
def test_a_head_of_a_layer_that_was_not_collected_is_refused(partial, make):
    _, cache, detector = partial
    with pytest.raises(InvalidArgumentError, match=r"Layer 0 was not collected: .* holds layers \[1, 2\]"):
        make(heads=[(0, 1), (1, 1)]).fit(cache, detector)
    assert make(heads=[(1, 2)]).fit(cache, detector).sites == ((1, 2),)


def test_a_control_of_a_steering_at_such_a_layer_is_refused(partial):
    whole, cache, detector = partial
    reference = rl.MeanShiftPolicy(heads=[(0, 1)]).fit(whole, detector)
    with pytest.raises(InvalidArgumentError, match="Layer 0 was not collected"):
        rl.RandomDirectionPolicy(reference).fit(cache, detector)
    rl.RandomDirectionPolicy(reference).fit(whole, detector)


@pytest.mark.parametrize("gate", ["head", "vote", "layer"])
def test_a_gate_needs_a_detector_of_the_layer(partial, gate):
    whole, _, detector = partial
    with pytest.raises(InvalidArgumentError, match=r"Layer 0 was not collected: the detector's data holds"):
        rl.MeanShiftPolicy(heads=[(0, 1)], gate=gate).fit(whole, detector)


@pytest.mark.parametrize("rule", ["all", "layers:2", "random:6", "least_risk:6", 6, "significant"])
def test_rules_choose_among_collected_layers(partial, rule):
    _, cache, detector = partial
    sites = choose_heads(detector, rule)
    assert sites and {site.layer for site in sites} <= {1, 2}
    if rule != "significant":
        assert len(sites) == 6
    assert rl.AblationPolicy("mean", heads=rule).fit(cache, detector).sites == sites


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("layer:0", "Layer 0 was not collected"),
        ("layers:3", "`n_layers` must be a whole number between 1 and 2; got 3"),
        ("random:7", "`heads` must be a whole number between 1 and 6; got 7"),
        ("least_risk:7", "`heads` must be a whole number between 1 and 6; got 7"),
        (7, "`heads` must be a whole number between 1 and 6; got 7"),
    ],
)
def test_rules_that_ask_for_more_than_was_collected_are_refused(partial, rule, words):
    with pytest.raises(InvalidArgumentError, match=words):
        choose_heads(partial[2], rule)


def test_draws_at_random_cover_the_collected_layers_only(partial):
    detector = partial[2]
    drawn = {site for seed in range(20) for site in choose_heads(detector.set_params(seed=seed), "random:2")}
    detector.set_params(seed=0)
    assert drawn == {(layer, head) for layer in (1, 2) for head in range(3)}


def test_the_default_of_iti_counts_collected_heads(partial):
    _, cache, detector = partial
    assert len(rl.ITIPolicy().fit(cache, detector).sites) == 6
    with pytest.raises(InvalidArgumentError, match="`n_heads` must be a whole number between 1 and 6; got 7"):
        rl.ITIPolicy(n_heads=7).fit(cache, detector)


def test_an_experiment_on_one_layer_of_a_model_edits_that_layer(model, facts):
    train, validation = facts.head(160).split((0.5, 0.5), seed=0)
    caches = [rl.collect(model, part, layers=[2]) for part in (train, validation)]
    detector = rl.RiskAwareDetector(loss="lda").fit(*caches)
    assert rl.AblationPolicy("mean", heads="all").fit(caches[0], detector).layers == (2,)
    with pytest.raises(InvalidArgumentError, match=r"Layer 1 was not collected: the training cache holds layers \[2\]"):
        rl.AblationPolicy("mean", heads=[(1, 0)]).fit(caches[0], detector)
