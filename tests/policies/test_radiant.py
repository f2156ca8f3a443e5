"""`RadiantPolicy`: the guarantee on data where it must hold, and every documented error."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

import radiant_lens as rl
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError, NotFittedError, NothingToEditError
from radiant_lens.linalg import masked_moments
from radiant_lens.policies import radiant
from radiant_lens.policies.head_sample import prepare
from radiant_lens.policies.heads import choose_heads
from radiant_lens.sites import HeadSite
from radiant_lens.solvers.problem import UncertifiedError


@pytest.fixture(scope="module")
def problem(gaussian_cache):
    """Untruncated Gaussians of two classes: many groups, one head that tells them apart."""
    cache = gaussian_cache(3000, n_layers=1, n_heads=2, shift=1.0)
    detector = rl.RiskAwareDetector().fit(
        cache, validation=gaussian_cache(1000, n_layers=1, n_heads=2, shift=1.0, seed=1)
    )
    return cache, detector, gaussian_cache(3000, n_layers=1, n_heads=2, shift=1.0, seed=2)


def undesirable(cache: rl.HeadCache) -> rl.HeadCache:
    return cache.select(cache.labels == 1)


@pytest.mark.parametrize("gamma", [0.02, 0.1])
@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_certified_interval_contains_gamma_on_gaussian_data(problem, gamma, geometry):
    """Gate "none" on one Gaussian class leaves the moved activations Gaussian: gamma is exact."""
    cache, detector, held_out = problem
    both = replace(cache, z=cache.z.clone())
    # The desirable class gets the activations of the undesirable one, so that the fitted moments are of one Gaussian.
    both.z[both.labels == 0] = undesirable(cache).z
    policy = rl.RadiantPolicy(gamma=gamma, geometry=geometry, gate="none", heads=[(0, 1)], floor="desirable")
    steering = policy.fit(both, detector)
    share = steering.certify(undesirable(held_out), confidence=0.999).overall
    assert share.n_groups == 3000
    assert share.interval.low <= gamma <= share.interval.high
    assert share.upper >= share.interval.value


def test_cantelli_holds_for_truncated_data(problem):
    cache, detector, held_out = problem
    steering = rl.RadiantPolicy(gamma=0.05, tail="cantelli", heads=[(0, 1)]).fit(cache, detector)
    assert steering.certify(held_out).overall.upper <= 0.05


@pytest.mark.parametrize(
    ("geometry", "solver"), [("mahalanobis", "solve_transport"), ("procrustes", "solve_procrustes")]
)
def test_a_solution_that_is_not_certified_is_refused_with_its_head(problem, geometry, solver, monkeypatch):
    cache, detector, _ = problem

    def failing(*args, **kwargs):
        raise UncertifiedError("the solver failed", [(1,)])

    monkeypatch.setattr(radiant, solver, failing)
    with pytest.raises(ConvergenceError, match=r"^L0H1: the solver failed$"):
        rl.RadiantPolicy(geometry=geometry, heads=[(0, 0), (0, 1)]).fit(cache, detector)


def test_the_ridge_is_recorded(problem):
    cache, detector, _ = problem
    (certificate,) = rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector).certificates
    z = cache.z[detector.flags(cache)[:, 0, 1], 0, 1].double()
    assert (certificate.n_flagged, certificate.shrunk) == (len(z), False)
    assert certificate.ridge == pytest.approx(1e-6 * float(z.var(0, correction=0).mean()), rel=1e-4)


def test_a_stronger_promise_moves_further_and_leaves_less(problem):
    cache, detector, held_out = problem
    results = []
    for gamma in (0.3, 0.1, 0.01):
        steering = rl.RadiantPolicy(gamma=gamma, heads=[(0, 1)]).fit(cache, detector)
        moved = steering.displace(cache.z[:, 0], 0).displacement.norm(dim=-1).mean()
        results.append((float(moved), steering.certify(held_out).overall.token_share.value))
    moves, shares = zip(*results)
    assert moves[0] < moves[1] < moves[2]
    assert shares[0] > shares[1] > shares[2]


def test_margin_replaces_gamma(problem):
    cache, detector, _ = problem
    by_gamma = rl.RadiantPolicy(gamma=0.05).fit(cache, detector)
    by_margin = rl.RadiantPolicy(margin=float(stats.norm.ppf(0.95))).fit(cache, detector)
    assert torch.allclose(by_gamma.head_maps.shift, by_margin.head_maps.shift)
    assert rl.RadiantPolicy(gamma=0.1, tail="cantelli").kappa == pytest.approx(3.0)
    assert by_margin.meta["gamma"] is None


def test_image_moments_meet_the_constraint(problem):
    cache, detector, _ = problem
    for geometry in ("mahalanobis", "wasserstein", "procrustes"):
        for floor in ("desirable", None):
            steering = rl.RadiantPolicy(gamma=0.05, geometry=geometry, floor=floor).fit(cache, detector)
            for certificate in steering.certificates:
                assert certificate.slack >= -1e-8
                assert certificate.gap <= 1e-6
                assert certificate.value > 0


def test_moments_are_those_of_the_activations_the_gate_passes(problem):
    cache, detector, _ = problem
    steering = rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector)
    flagged = int((detector.decision_function(cache)[:, 0, 1] >= 0).sum())
    assert steering.certificates[0].n_flagged == flagged
    assert rl.RadiantPolicy(heads=[(0, 1)], gate="none").fit(cache, detector).certificates[0].n_flagged == len(cache)


def test_a_head_without_flagged_examples_is_left_alone(problem):
    cache, detector, _ = problem
    shy = rl.RiskAwareDetector()
    shy.__dict__.update(detector.__dict__)
    shy.biases_ = detector.biases_.clone()
    shy.biases_[0, 0] = -1e6
    steering = rl.RadiantPolicy(heads=[(0, 0), (0, 1)]).fit(cache, shy)
    assert [c.method for c in steering.certificates] == ["identity", "mahalanobis"]
    left = steering.certificates[0]
    assert (left.value, left.gap, left.n_flagged) == (0.0, 0.0, 0) and math.isnan(left.slack)
    assert torch.equal(steering.edit(cache.z[:, 0], 0)[:, 0], cache.z[:, 0, 0])
    with pytest.raises(NothingToEditError, match="No training activation passes the gate"):
        rl.RadiantPolicy(heads=[(0, 0)]).fit(cache, shy)


@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_a_single_flagged_example_is_moved_to_where_the_floor_is_met(problem, geometry):
    cache, detector, _ = problem
    lone = rl.RiskAwareDetector()
    lone.__dict__.update(detector.__dict__)
    scores = torch.einsum("nd,d->n", cache.z[:, 0, 1].double(), detector.weights_[0, 1].double())
    top = scores.sort(descending=True).values[:2]
    lone.biases_ = detector.biases_.clone()
    lone.biases_[0, 1] = -top.mean()
    steering = rl.RadiantPolicy(gamma=0.1, geometry=geometry, heads=[(0, 1)]).fit(cache, lone)
    certificate = steering.certificates[0]
    assert certificate.n_flagged == 1 and certificate.shrunk
    edited = steering.edit(cache.z[:, 0], 0)[:, 1].double()
    after = torch.einsum("nd,d->n", edited, detector.weights_[0, 1].double()) + lone.biases_[0, 1]
    assert after.max() < 0
    assert int((edited != cache.z[:, 0, 1]).any(dim=-1).sum()) == 1


def test_a_weight_of_zero_is_named(problem):
    cache, detector, _ = problem
    blind = rl.RiskAwareDetector()
    blind.__dict__.update(detector.__dict__)
    blind.weights_ = detector.weights_.clone()
    blind.weights_[0, 0] = 0
    with pytest.raises(InvalidArgumentError, match="weight is zero at L0H0"):
        rl.RadiantPolicy(heads=[(0, 0), (0, 1)]).fit(cache, blind)
    assert rl.MeanShiftPolicy(heads=[(0, 0)]).fit(cache, blind).sites == (rl.HeadSite(0, 0),)


def test_a_policy_whose_maps_are_all_identities_is_refused(problem):
    cache, detector, _ = problem
    easy = rl.RiskAwareDetector()
    easy.__dict__.update(detector.__dict__)
    easy.biases_ = detector.biases_ - 1e3
    with pytest.raises(NothingToEditError, match="Every map is the identity"):
        rl.RadiantPolicy(gate="none", heads=[(0, 1)]).fit(cache, easy)


def test_trust_region_leaves_far_activations_alone(problem):
    cache, detector, held_out = problem
    free = rl.RadiantPolicy(heads=[(0, 1)]).fit(cache, detector)
    bound = rl.RadiantPolicy(heads=[(0, 1)], trust=0.9).fit(cache, detector)
    z = cache.z[:, 0]
    edits = free.displace(z, 0), bound.displace(z, 0)
    assert not (edits[1].gated & ~edits[0].gated).any()
    assert float(edits[1].gated.sum() / edits[0].gated.sum()) == pytest.approx(0.9, abs=0.01)
    assert bound.certify(held_out).overall.token_share.value > free.certify(held_out).overall.token_share.value + 0.05


def test_paper_recipe(problem):
    cache, detector, _ = problem
    steering = rl.RadiantPolicy.paper().fit(cache, detector)
    assert steering.gate == "vote"
    assert len(steering.layers) == 1
    assert len(steering.sites) == cache.n_heads
    assert {c.margin for c in steering.certificates} == {10.0}


def test_head_choices(problem):
    cache, detector, _ = problem
    assert rl.RadiantPolicy(heads=1).fit(cache, detector).sites == (rl.HeadSite(0, 1),)
    assert rl.RadiantPolicy().fit(cache, detector).sites == (rl.HeadSite(0, 1),)
    assert len(rl.RadiantPolicy(heads="layer").fit(cache, detector).sites) == 2


def test_no_significant_head_is_an_error(gaussian_cache):
    cache = gaussian_cache(100, shift=0.0)
    detector = rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(100, shift=0.0, seed=1))
    with pytest.raises(NothingToEditError, match="No head detects better"):
        rl.RadiantPolicy().fit(cache, detector)


def test_too_few_groups_for_any_significant_head_is_an_error_of_its_own(gaussian_cache):
    cache, few = gaussian_cache(100, shift=3.0), gaussian_cache(6, shift=3.0, seed=1)
    detector = rl.RiskAwareDetector().fit(cache, validation=few)
    with pytest.raises(NothingToEditError, match="^6 validation groups cannot show that a head is .* are enough"):
        rl.RadiantPolicy().fit(cache, detector)
    assert rl.RadiantPolicy(heads=2).fit(cache, detector).sites
    enough = rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(60, shift=3.0, seed=1))
    assert rl.RadiantPolicy().fit(cache, enough).sites


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": 0.7}, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
        ({"gamma": 0}, "`gamma` must lie strictly between 0 and 0.5; got 0"),
        ({"gamma": float("nan")}, "`gamma` must lie"),
        ({"margin": -1.0}, "`margin` must lie strictly above 0"),
        ({"geometry": "euclid"}, "`geometry` must be one of"),
        ({"floor": "ceiling"}, "`floor` must be 'desirable' or None"),
        ({"tail": "cauchy"}, "`tail` must be one of"),
        ({"gate": "open"}, "`gate` must be one of"),
        ({"trust": 1.5}, "`trust` must lie strictly between 0 and 1"),
        ({"heads": "best"}, "`heads` must be .*'significant', .*got 'best'"),
        ({"heads": 99}, "`heads` must be a whole number between 1 and 2"),
        ({"heads": [(3, 0)]}, "`layer` must be a whole number between 0 and 0"),
        ({"heads": "layer", "n_layers": 0}, "`n_layers` must be"),
        ({"heads": "layer", "n_layers": 2}, "`n_layers` must be a whole number between 1 and 1; got 2"),
    ],
)
def test_refusals(problem, options, words):
    cache, detector, _ = problem
    with pytest.raises(InvalidArgumentError, match=words):
        rl.RadiantPolicy(**options).fit(cache, detector)


def test_a_steering_records_the_gamma_of_its_policy_unless_a_margin_replaced_it(problem):
    cache, detector, _ = problem
    for options, gamma in (({"gamma": 0.1}, 0.1), ({"margin": 2.0}, None)):
        assert rl.RadiantPolicy(**options).fit(cache, detector).meta["gamma"] == gamma


def test_refusals_of_data(problem):
    cache, detector, _ = problem
    with pytest.raises(NotFittedError, match="not fitted"):
        rl.RadiantPolicy().fit(cache, rl.RiskAwareDetector())
    broken = cache.z.clone()
    broken[3, 0, 1, 2] = math.nan
    with pytest.raises(DataError, match=r"not, the first at index \(3, 0, 1, 2\)"):
        rl.RadiantPolicy().fit(replace(cache, z=broken), detector)
    with pytest.raises(DataError, match="no undesirable"):
        rl.RadiantPolicy().fit(cache.select(cache.labels == 0), detector)


def test_a_gate_is_checked_before_anything_is_fitted():
    with pytest.raises(InvalidArgumentError, match="`gate` must be one of"):
        rl.RadiantPolicy(gate="always").check()


def test_gated_moments_are_those_of_a_pass_of_their_own_for_heads_of_few_and_of_many(problem):
    cache, detector, _ = problem
    sample = prepare(cache, detector, lambda d: choose_heads(d, "all"), "head")
    few = torch.arange(len(sample.sites)) % 3 == 0
    some = torch.arange(len(cache)) < 5
    mixed = replace(sample, gated=torch.where(few, some[:, None], torch.ones_like(sample.gated)))
    assert len(cache) >= radiant.SHRINK_BELOW * sample.weights.shape[1] > 5
    for one in (sample, mixed):
        expected = masked_moments(one.rows, one.gated, shrink_below=radiant.SHRINK_BELOW)
        moments = one.gated_moments()
        for name in ("count", "mean", "covariance"):
            torch.testing.assert_close(getattr(moments, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    # The scatters of the same pass are those of a pass without them.
    torch.testing.assert_close(mixed.within_class_covariance(), sample.within_class_covariance())


def test_displacements_go_along_the_weight_in_the_metric_of_the_geometry(problem):
    cache, detector, _ = problem
    sample = prepare(cache, detector, lambda _: (HeadSite(0, 1),), "head")
    for geometry, metric in {
        "wasserstein": torch.eye(sample.weights.shape[1], dtype=torch.float64),
        "mahalanobis": sample.within_class_covariance()[0],
    }.items():
        maps = rl.RadiantPolicy(geometry=geometry, heads=[(0, 1)]).fit(cache, detector).head_maps
        along = maps.write[0] / maps.write[0].norm()
        expected = metric @ sample.weights[0].double()
        assert abs(float(along @ expected / expected.norm())) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_without_a_floor_images_end_a_thousandth_of_a_deviation_inside(problem, geometry):
    cache, detector, _ = problem
    policy = rl.RadiantPolicy(margin=2.0, geometry=geometry, heads=[(0, 1)], floor=None)
    m = policy.fit(cache, detector).maps()[0, 1]
    sample = prepare(cache, detector, lambda _: (HeadSite(0, 1),), "head")
    moments = masked_moments(sample.rows, sample.gated, shrink_below=radiant.SHRINK_BELOW).ridged(radiant.RIDGE)
    weight = sample.weights[0].double()
    mean = weight @ (m.G @ moments.mean[0] + m.g) + sample.biases[0]
    deviation = (weight @ m.G @ moments.covariance[0] @ m.G.T @ weight).clamp_min(0).sqrt()
    spread = (weight @ sample.class_moments(undesirable=False).covariance[0] @ weight).sqrt()
    assert float((mean + 2 * deviation) / spread) == pytest.approx(-1e-3, rel=1e-2)


def test_a_transport_becomes_its_map():
    """`a + direction ((scale - 1) (theta'a + bias) + offset)`."""
    draw = torch.Generator().manual_seed(0)
    theta, direction, a = torch.randn(3, 2, 4, dtype=torch.float64, generator=draw)
    scale, bias, offset = torch.rand(3, 2, dtype=torch.float64, generator=draw)
    solution = SimpleNamespace(theta=theta, direction=direction, scale=scale, bias=bias, offset=offset)
    expected = direction * ((scale - 1) * ((theta * a).sum(-1) + bias) + offset)[:, None]
    torch.testing.assert_close(radiant.rank_one(solution).displacement(a), expected)


def test_a_trust_region_has_the_quantile_of_gated_distances_and_nothing_without_them(problem):
    cache, detector, _ = problem
    shy = rl.RiskAwareDetector()
    shy.__dict__.update(detector.__dict__)
    shy.biases_ = detector.biases_.clone()
    shy.biases_[0, 0] = -1e6
    trust = rl.RadiantPolicy(heads=[(0, 0), (0, 1)], trust=0.5).fit(cache, shy).trust
    # No activation of the first head passes its gate: there is no distance to take a quantile of.
    assert float(trust.radius2[0]) == 0
    z = cache.z[detector.flags(cache)[:, 0, 1], 0, 1].double()
    centred = z - z.mean(0)
    distance2 = (centred @ torch.linalg.inv(torch.cov(z.T, correction=0)) * centred).sum(-1)
    assert float(trust.radius2[1]) == pytest.approx(float(distance2.median()), rel=1e-2)


def test_the_papers_recipe_is_one_voted_layer_and_procrustes():
    paper = rl.RadiantPolicy.paper(margin=3.0)
    assert (paper.margin, paper.geometry, paper.heads, paper.n_layers, paper.gate) == (
        3.0,
        "procrustes",
        "layer",
        1,
        "vote",
    )
