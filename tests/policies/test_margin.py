"""Calibration: the least margin that held-out activations confirm, and every documented error."""

from __future__ import annotations

import math

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, GuaranteeError, InvalidArgumentError, LeakageError
from radiant_lens.policies.margin import RELATIVE_STEP, Calibration
from radiant_lens.statistics.bounds import binomial_upper, groups_needed

SHAPE = {"n_layers": 1, "n_heads": 2, "shift": 1.0}


@pytest.fixture(scope="module")
def problem(gaussian_cache):
    cache = gaussian_cache(2000, **SHAPE)
    detector = rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(500, seed=1, **SHAPE))
    return cache, detector, gaussian_cache(600, seed=2, **SHAPE), gaussian_cache(4000, seed=3, **SHAPE)


@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_bound_holds_on_the_calibration_part_and_beyond(problem, geometry):
    cache, detector, part, held_out = problem
    policy = rl.RadiantPolicy(gamma=0.05, geometry=geometry, heads=[(0, 1)])
    plain, calibrated = policy.fit(cache, detector), policy.fit(cache, detector, calibrate=part)
    # Flagged activations are truncated, so the Gaussian margin does not confirm itself.
    assert plain.certify(part).overall.upper > 0.05
    report = calibrated.meta["calibration"]
    assert report["upper"] <= 0.05
    assert report["margin"] > policy.kappa
    assert {c.margin for c in calibrated.certificates} == {report["margin"]}
    assert calibrated.certify(held_out).overall.interval.low <= 0.05
    assert plain.certify(held_out).overall.interval.low > 0.05


def test_no_smaller_margin_meets_the_bound(problem):
    """Of a transport an activation is still flagged where its standardised score is at least kappa."""
    cache, detector, part, _ = problem
    calibrated = rl.RadiantPolicy(gamma=0.05, heads=[(0, 1)]).fit(cache, detector, calibrate=part)
    report = calibrated.meta["calibration"]
    # Two steps of the search below the result: one step is its resolution.
    smaller = rl.RadiantPolicy(margin=report["margin"] / (1 + 2 * RELATIVE_STEP), heads=[(0, 1)]).fit(cache, detector)
    assert smaller.certify(part).overall.upper > 0.05
    shares = calibrated.events(part)
    assert int(shares.gated.sum()) > report["n_groups"]


def test_a_margin_that_meets_the_bound_does_not_change(problem):
    cache, detector, part, _ = problem
    policy = rl.RadiantPolicy(gamma=0.2, margin=6.0, heads=[(0, 1)])
    calibrated = policy.fit(cache, detector, calibrate=part)
    assert calibrated.meta["calibration"]["margin"] == 6.0
    assert calibrated.meta["gamma"] == 0.2
    assert torch.equal(calibrated.head_maps.matrices()[0], policy.fit(cache, detector).head_maps.matrices()[0])


def test_margin_groups_count_as_seen_by_the_fit(problem):
    cache, detector, part, held_out = problem
    calibrated = rl.RadiantPolicy(gamma=0.05, heads=[(0, 1)]).fit(cache, detector, calibrate=part)
    with pytest.raises(LeakageError, match="the fit and certification must not share groups"):
        calibrated.certify(part)
    assert calibrated.certify(held_out).gamma == 0.05
    with pytest.raises(LeakageError, match="the fit and calibration must not share groups"):
        rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector, calibrate=cache)


def test_too_few_groups_for_any_margin(problem, gaussian_cache):
    cache, detector, *_ = problem
    few = gaussian_cache(40, seed=4, **SHAPE)
    assert groups_needed(0.01) == 299
    with pytest.raises(GuaranteeError, match=r"takes 299 flagged calibration groups without a failure; there are \d\d"):
        rl.RadiantPolicy(gamma=0.01, heads=[(0, 1)]).fit(cache, detector, calibrate=few)
    assert binomial_upper(0, 298) > 0.01 >= binomial_upper(0, 299)


def test_no_margin_up_to_the_largest(problem):
    cache, detector, part, _ = problem
    policy = rl.RadiantPolicy(gamma=0.01, heads=[(0, 1)])
    largest = policy.kappa * 1.01
    with pytest.raises(GuaranteeError, match=rf"No margin up to {largest:g} does it: .* above gamma = 0.01"):
        policy.fit(cache, detector, calibrate=part, max_margin=largest)


def test_a_trust_region_that_refuses_too_much_cannot_be_confirmed(problem):
    cache, detector, part, _ = problem
    with pytest.raises(GuaranteeError, match="No margin up to 1000 does it"):
        rl.RadiantPolicy(gamma=0.05, heads=[(0, 1)], trust=0.8).fit(cache, detector, calibrate=part)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": 1.0}, "`confidence` must lie strictly between 0 and 1; got 1.0"),
        ({"max_margin": 0.1}, "`max_margin` must lie at or above"),
        ({"max_margin": math.nan}, "`max_margin` must lie at or above"),
    ],
)
def test_refusals(problem, options, words):
    cache, detector, part, _ = problem
    with pytest.raises(InvalidArgumentError, match=words):
        rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector, calibrate=part, **options)


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_the_bound_has_the_confidence_that_was_asked_for(problem, confidence):
    cache, detector, part, _ = problem
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(0, 1)]).fit(cache, detector)
    share = steering.certify(part).overall
    upper, n_groups = Calibration(part, 0.05, confidence, 1000.0).upper(steering)
    assert upper == pytest.approx(binomial_upper(share.n_still_flagged, share.n_groups, confidence=confidence))
    assert n_groups == share.n_groups and upper != pytest.approx(share.upper)


def test_activations_to_calibrate_on_must_be_finite(problem, gaussian_cache):
    cache, detector, *_ = problem
    part = gaussian_cache(100, seed=5, **SHAPE)
    part.z[4, 0, 1, 2] = math.inf
    with pytest.raises(DataError, match=r"`calibrate.z` must be finite; 1 values are not, .* at index \(4, 0, 1,"):
        rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector, calibrate=part)


def test_the_error_for_too_few_groups_names_the_confidence(problem, gaussian_cache):
    cache, detector, *_ = problem
    few = gaussian_cache(40, seed=4, **SHAPE)
    with pytest.raises(GuaranteeError, match=r"a share of at most 0.01 with confidence 0.9 takes 230 flagged"):
        rl.RadiantPolicy(gamma=0.01, heads=[(0, 1)]).fit(cache, detector, calibrate=few, confidence=0.9)
