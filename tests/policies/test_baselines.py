"""Baselines: their effect on the moments that they were fitted on, against textbook formulas and other packages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, MissingPackageError
from radiant_lens.policies.head_sample import HeadRows
from radiant_lens.policies.matching import quantiles

SITE = (1, 2)
POLICIES = [
    rl.MeanShiftPolicy(),
    rl.MomentMatchingPolicy(),
    rl.LinearActPolicy(),
    rl.LEACEPolicy(),
    rl.AblationPolicy("zero"),
    rl.AblationPolicy("mean"),
    rl.AblationPolicy("resample"),
    rl.ITIPolicy(),
]


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    cache = gaussian_cache(600)
    # Classes that differ in spread as well, and features that are correlated.
    mix = torch.tensor([[1.0, 0.3, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.2], [0.4, 0, 0, 1]])
    cache.z[cache.labels == 1] = cache.z[cache.labels == 1] @ mix
    return cache, rl.RiskAwareDetector().fit(cache, validation=gaussian_cache(200, seed=1))


def classes(cache, site=SITE):
    z = cache.z[:, site[0], site[1]].double()
    return z[cache.labels == 1], z[cache.labels == 0]


def moved(policy, fitted, z=None, site=SITE):
    cache, detector = fitted
    steering = policy.fit(cache, detector)
    layer = cache.z[:, site[0]].double() if z is None else z
    return steering.edit(layer, site[0])[:, site[1]]


def test_mean_shift_moves_one_mean_onto_the_other(fitted):
    undesirable, desirable = classes(fitted[0])
    after = moved(rl.MeanShiftPolicy(heads=[SITE]), fitted)[fitted[0].labels == 1]
    torch.testing.assert_close(after.mean(0), desirable.mean(0))
    torch.testing.assert_close(after - undesirable, (after - undesirable)[:1].expand_as(after))
    half = moved(rl.MeanShiftPolicy(0.5, heads=[SITE]), fitted)[fitted[0].labels == 1]
    torch.testing.assert_close(half, (undesirable + after) / 2)


def test_directions_of_inference_time_intervention(fitted):
    """Against the detector's weight, or drawn; as long as `alpha` deviations of the training activations along it."""
    cache, detector = fitted
    z, weight = cache.z[:, SITE[0], SITE[1]].double(), detector.weights_[SITE].double()
    shifts = {}
    for direction in ("probe", "random", "mass_mean"):
        mapped = rl.ITIPolicy(alpha=2.0, heads=[SITE], direction=direction).fit(cache, detector).maps()
        shifts[direction] = mapped[rl.HeadSite(*SITE)].g
    unit = -weight / weight.norm()
    torch.testing.assert_close(shifts["probe"], 2 * (z @ unit).std() * unit)
    drawn = shifts["random"] / shifts["random"].norm()
    torch.testing.assert_close(shifts["random"].norm(), 2 * (z @ drawn).std())
    again = rl.ITIPolicy(alpha=2.0, heads=[SITE], direction="random", seed=1).fit(cache, detector).maps()
    assert not torch.allclose(again[rl.HeadSite(*SITE)].g, shifts["random"])
    assert not torch.allclose(shifts["probe"], shifts["mass_mean"])


def test_moment_matching_gives_the_desirable_moments_by_the_textbook_map(fitted):
    undesirable, desirable = classes(fitted[0])
    after = moved(rl.MomentMatchingPolicy(heads=[SITE]), fitted)[fitted[0].labels == 1]
    torch.testing.assert_close(after.mean(0), desirable.mean(0))
    np.testing.assert_allclose(np.cov(after.T), np.cov(desirable.T), rtol=2e-4, atol=2e-4)
    assert np.abs(np.cov(undesirable.T) - np.cov(desirable.T)).max() > 0.1
    matrix = rl.MomentMatchingPolicy(heads=[SITE]).fit(*fitted).maps()[rl.HeadSite(*SITE)].G.numpy()
    source, target = (np.cov(x.numpy().T, bias=True) for x in (undesirable, desirable))
    root = scipy.linalg.sqrtm(source).real
    expected = np.linalg.inv(root) @ scipy.linalg.sqrtm(root @ target @ root).real @ np.linalg.inv(root)
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)


def test_linear_transport_is_the_least_squares_line_through_sorted_pairs(fitted):
    undesirable, desirable = classes(fitted[0])
    mapped = rl.LinearActPolicy(heads=[SITE]).fit(*fitted).maps()[rl.HeadSite(*SITE)]
    for axis in range(4):
        x, y = np.sort(undesirable[:, axis].numpy()), np.sort(desirable[:, axis].numpy())
        line = LinearRegression().fit(x[:, None], y)
        assert float(mapped.G[axis, axis]) == pytest.approx(line.coef_[0], rel=1e-9)
        assert float(mapped.g[axis]) == pytest.approx(line.intercept_, rel=1e-9)
    assert (mapped.G - torch.diag(mapped.G.diagonal())).abs().max() == 0
    half = rl.LinearActPolicy(0.5, heads=[SITE]).fit(*fitted).maps()[rl.HeadSite(*SITE)]
    torch.testing.assert_close(half.G, (mapped.G + torch.eye(4)) / 2)
    torch.testing.assert_close(half.g, mapped.g / 2)


@given(st.integers(1, 40), st.integers(1, 40))
def test_quantiles_of_a_straight_line_are_on_it(n, n_quantiles):
    values = torch.arange(n, dtype=torch.float64)[:, None]
    middles = quantiles(values, n_quantiles)[:, 0]
    expected = np.clip((np.arange(n_quantiles) + 0.5) * n / n_quantiles - 0.5, 0, n - 1)
    np.testing.assert_allclose(middles.numpy(), expected, atol=1e-12)
    if n_quantiles == n:
        assert torch.equal(middles, values[:, 0])


def test_unequal_classes_are_paired_by_quantiles(fitted):
    cache, detector = fitted
    few = cache.select(torch.tensor([i for i in range(len(cache)) if cache.labels[i] == 0 or i % 6 == 1]))
    mapped = rl.LinearActPolicy(heads=[SITE]).fit(few, detector).maps()[rl.HeadSite(*SITE)]
    whole = rl.LinearActPolicy(heads=[SITE]).fit(cache, detector).maps()[rl.HeadSite(*SITE)]
    torch.testing.assert_close(mapped.G, whole.G, rtol=0.15, atol=0.15)


def test_erased_labels_cannot_be_read_by_a_linear_classifier(fitted):
    from concept_erasure import LeaceEraser

    cache, _ = fitted
    after = moved(rl.LEACEPolicy(heads=[SITE]), fitted)
    erased = after[cache.labels == 1].mean(0) - after[cache.labels == 0].mean(0)
    assert erased.abs().max() < 1e-6
    labels = cache.labels.numpy()
    before = cache.z[:, SITE[0], SITE[1]].numpy()
    assert LogisticRegression().fit(before, labels).score(before, labels) > 0.85
    assert LogisticRegression(C=1e6).fit(after.numpy(), labels).score(after.numpy(), labels) < 0.56
    eraser = LeaceEraser.fit(cache.z[:, SITE[0], SITE[1]].double(), cache.labels.double()[:, None])
    torch.testing.assert_close(after, eraser(cache.z[:, SITE[0], SITE[1]].double()))


def test_erasure_names_the_missing_package(fitted, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "concept_erasure", None)
    with pytest.raises(MissingPackageError, match=r"radiant-lens\[erasure\]"):
        rl.LEACEPolicy().fit(*fitted)


def test_zero_and_mean_ablation_replace_activations_by_constants(fitted):
    cache, _ = fitted
    assert (moved(rl.AblationPolicy("zero", heads=[SITE]), fitted) == 0).all()
    after = moved(rl.AblationPolicy("mean", heads=[SITE]), fitted)
    torch.testing.assert_close(after, cache.z[:, SITE[0], SITE[1]].double().mean(0).expand_as(after))


def test_resampled_activations_are_unrelated_training_activations(fitted):
    cache, detector = fitted
    before = cache.z[:, SITE[0], SITE[1]].double()
    steering = rl.AblationPolicy("resample", heads=[SITE]).fit(cache, detector)
    after = steering.edit(cache.z[:, SITE[0]].double(), SITE[0])[:, SITE[1]]
    nearest = torch.cdist(after, before).min(1)
    assert nearest.values.max() < 1e-6
    assert len(nearest.indices.unique()) > 300
    # From all of the bank, and the same ones after other random draws of the process.
    drawn = torch.cdist(after, steering.head_maps.bank[0]).argmin(1)
    assert int(drawn.min()) < 50 and int(drawn.max()) > steering.head_maps.bank.shape[1] - 50
    torch.manual_seed(5)
    again = rl.AblationPolicy("resample", heads=[SITE]).fit(cache, detector)
    assert torch.equal(again.edit(cache.z[:, SITE[0]].double(), SITE[0])[:, SITE[1]], after)
    # A random example: its class is independent of the class that it replaces.
    labels = cache.labels[nearest.indices]
    assert abs(np.corrcoef(labels, cache.labels)[0, 1]) < 0.1
    assert abs(float((after * before).sum(-1).mean() - (after.mean(0) * before.mean(0)).sum())) < 0.4
    other = rl.AblationPolicy("resample", seed=1, heads=[SITE]).fit(cache, detector)
    assert not torch.equal(other.edit(cache.z[:, SITE[0]].double(), SITE[0])[:, SITE[1]], after)
    with pytest.raises(InvalidArgumentError, match="no affine map"):
        steering.maps()


def test_resampling_depends_on_the_activation_alone(fitted):
    cache, detector = fitted
    steering = rl.AblationPolicy("resample").fit(cache, detector)
    z = cache.z[:50, SITE[0]].double()
    together = steering.edit(z, SITE[0])
    for i in (0, 17, 49):
        assert torch.equal(steering.edit(z[i : i + 1], SITE[0])[0], together[i])
    assert torch.equal(steering.edit(z.flip(0), SITE[0]).flip(0), together)
    # Rounding of the model's arithmetic does not change the draw.
    torch.testing.assert_close(steering.edit(z * (1 + 1e-7), SITE[0]), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__ + getattr(p, "kind", ""))
def test_saved_baselines_edit_alike(fitted, policy, tmp_path):
    steering = policy.fit(*fitted)
    loaded = rl.Steering.load(steering.save(tmp_path / "s"))
    z = fitted[0].z[:, 1].double()
    assert torch.equal(loaded.edit(z, 1), steering.edit(z, 1))
    assert not torch.equal(loaded.edit(z, 1), z)
    assert steering.meta["policy"]["name"] == policy.label
    assert steering.gate == "none"


@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
@pytest.mark.parametrize("metric", ["mahalanobis", "total", "wasserstein"])
def test_random_directions_keep_lengths_in_the_metric_and_nothing_else(fitted, geometry, metric):
    cache, detector = fitted
    reference = rl.RadiantPolicy(geometry=geometry, heads=[SITE]).fit(cache, detector)
    layer = cache.z[:, SITE[0]].double()
    before = reference.displace(layer, SITE[0])
    z = cache.z[:, SITE[0], SITE[1]].double()
    means = torch.stack([z[cache.labels == y].mean(0) for y in (0, 1)])
    centred = z - means[cache.labels]
    covariance = {
        "mahalanobis": centred.T @ centred / len(z),
        "total": torch.cov(z.T, correction=0),
        "wasserstein": torch.eye(4, dtype=torch.float64),
    }[metric]
    cosines = []
    for seed in range(20):
        after = rl.RandomDirectionPolicy(reference, metric, seed).fit(cache, detector).displace(layer, SITE[0])
        assert torch.equal(after.gated, before.gated)
        lengths = [
            (d.displacement[:, 0] @ torch.linalg.inv(covariance) * d.displacement[:, 0]).sum(-1)
            for d in (before, after)
        ]
        torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-3, atol=1e-9)
        pair = [d.displacement[before.gated[:, 0], 0].mean(0) for d in (before, after)]
        cosines.append(float(torch.nn.functional.cosine_similarity(*pair, dim=0)))
    assert np.std(cosines) > 0.2
    assert abs(np.mean(cosines)) < 0.5


def test_the_total_metric_allows_more_of_the_difference_of_the_classes(fitted):
    """The total covariance holds the between-class scatter; within classes there is none of it."""
    cache, detector = fitted
    reference = rl.MeanShiftPolicy(heads=[SITE]).fit(cache, detector)
    undesirable, desirable = classes(cache)
    difference = torch.nn.functional.normalize(desirable.mean(0) - undesirable.mean(0), dim=0)

    def share(metric):
        shifts = [
            rl.RandomDirectionPolicy(reference, metric, seed).fit(cache, detector).maps()[SITE].g for seed in range(60)
        ]
        return float(np.mean([(shift @ difference) ** 2 / shift.square().sum() for shift in shifts]))

    assert share("total") > 1.1 * share("mahalanobis")


def test_random_direction_of_resampling_is_refused(fitted):
    reference = rl.AblationPolicy("resample").fit(*fitted)
    with pytest.raises(InvalidArgumentError, match="cannot be turned"):
        rl.RandomDirectionPolicy(reference).fit(*fitted)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (rl.MeanShiftPolicy(0.0), "`alpha` must lie strictly above 0; got 0.0"),
        (rl.LinearActPolicy(1.5), r"`strength` must lie in \(0, 1\]; got 1.5"),
        (rl.AblationPolicy("half"), "`kind` must be one of 'zero', 'mean', 'resample'; got 'half'"),
        (rl.MomentMatchingPolicy(gate="some"), "`gate` must be one of"),
        (rl.LEACEPolicy(heads=[(7, 0)]), "`layer` must be a whole number between 0 and 1"),
        (rl.ITIPolicy(alpha=-1.0), "`alpha` must lie strictly above 0"),
    ],
)
def test_refusals(fitted, policy, words):
    with pytest.raises(InvalidArgumentError, match=words):
        policy.fit(*fitted)


@pytest.mark.parametrize("n_heads", [0, 2.5])
def test_the_number_of_heads_that_iti_takes_is_checked_by_its_name(gaussian_cache, n_heads):
    cache = gaussian_cache(60)
    detector = rl.RiskAwareDetector().fit(cache, gaussian_cache(60, seed=1))
    with pytest.raises(InvalidArgumentError, match="`n_heads` must be a whole number"):
        rl.ITIPolicy(n_heads=n_heads).fit(cache, detector)


@pytest.mark.parametrize("direction", ["mass_mean", "probe", "random"])
def test_iti_moves_every_head_by_alpha_deviations_along_its_own_direction(fitted, direction):
    cache, detector = fitted
    sites = [(0, 0), (1, 2)]
    steering = rl.ITIPolicy(alpha=3.0, direction=direction, heads=sites).fit(cache, detector)
    for site in sites:
        shift = steering.maps()[site].g
        unit = shift / shift.norm()
        spread = (cache.z[:, site[0], site[1]].double() @ unit).std()
        assert float(shift.norm() / spread) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda fitted, seed: rl.ITIPolicy(direction="random", seed=seed),
        lambda fitted, seed: rl.RandomDirectionPolicy(rl.MeanShiftPolicy().fit(*fitted), seed=seed),
    ],
)
def test_random_directions_are_those_of_their_seed(fitted, make):
    def shifts(seed):
        return torch.stack([m.g for m in make(fitted, seed).fit(*fitted).maps().values()])

    torch.manual_seed(1)
    first = shifts(0)
    torch.manual_seed(2)
    assert torch.equal(shifts(0), first)
    assert not torch.allclose(shifts(1), first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda reference: rl.ITIPolicy(direction="up"), "`direction` must be one of .* got 'up'"),
        (lambda reference: rl.ITIPolicy(seed=-1), "`seed` must be .* got -1"),
        (lambda reference: rl.RandomDirectionPolicy(reference, metric="l1"), "`metric` must be one of .* got 'l1'"),
        (lambda reference: rl.RandomDirectionPolicy(reference, seed=-1), "`seed` must be .* got -1"),
        (lambda reference: rl.IdentityPolicy(None), "`reference` must be a Steering"),
    ],
)
def test_parameters_of_controls_out_of_range_are_refused(fitted, make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make(rl.MeanShiftPolicy().fit(*fitted)).fit(*fitted)


def test_the_identity_control_keeps_all_but_the_edit(fitted):
    reference = rl.MeanShiftPolicy().fit(*fitted)
    control = rl.IdentityPolicy(reference).fit(*fitted)
    assert (control.sites, control.gate) == (reference.sites, reference.gate)
    assert control.meta["policy"] == {"name": "identity", "of": reference.meta["policy"]}
    d_head = fitted[0].z.shape[-1]
    for m in control.maps().values():
        assert torch.equal(m.G, torch.eye(d_head).double()) and torch.equal(m.g, torch.zeros(d_head).double())
    for layer in control.layers:
        z = fitted[0].z[:, layer].double()
        assert torch.equal(control.edit(z, layer), z)


def test_a_random_direction_records_its_reference_and_settings(fitted):
    reference = rl.MeanShiftPolicy().fit(*fitted)
    control = rl.RandomDirectionPolicy(reference, metric="wasserstein", seed=3).fit(*fitted)
    settings = {"name": "random direction", "metric": "wasserstein", "seed": 3, "of": reference.meta["policy"]}
    assert control.meta == {**reference.meta, "policy": settings}


def test_iti_may_take_one_head(fitted):
    assert len(rl.ITIPolicy(n_heads=1).fit(*fitted).sites) == 1
    assert rl.ITIPolicy(n_heads=1, heads=[(0, 1), SITE]).fit(*fitted).sites == ((0, 1), SITE)


def test_certificates_of_baselines_count_gated_activations(fitted):
    cache, _ = fitted
    steering = rl.MeanShiftPolicy(gate="head").fit(*fitted)
    for site, certificate in zip(steering.sites, steering.certificates):
        edit = steering.displace(cache.z[:, site.layer], site.layer)
        assert certificate.n_flagged == int(edit.gated[:, edit.heads.tolist().index(site.head)].sum()) > 0


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_the_seed_of_an_ablation_is_checked(fitted, seed):
    with pytest.raises(InvalidArgumentError, match=f"`seed` must be .* got {seed}"):
        rl.AblationPolicy("resample", seed=seed).fit(*fitted)


def test_strength_of_a_linear_transport_may_be_1_but_not_0(fitted):
    assert len(rl.LinearActPolicy(1.0).fit(*fitted).sites) > 0
    with pytest.raises(InvalidArgumentError, match=r"`strength` must lie in \(0, 1\]; got 0.0"):
        rl.LinearActPolicy(0.0).fit(*fitted)


@pytest.mark.parametrize(
    "policy", [rl.LinearActPolicy(heads="all"), rl.LEACEPolicy(heads="all"), rl.AblationPolicy("mean", heads="all")]
)
def test_what_sees_all_examples_sees_one_head_at_a_time(fitted, policy, monkeypatch):
    """All heads of a real model in float64 are tens of gigabytes."""
    cache, detector = fitted
    expected = policy.fit(cache, detector)
    sites = [(site.layer, site.head) for site in expected.sites]
    rows = HeadRows(cache.z, *(torch.tensor(numbers) for numbers in zip(*sites)))
    for (layer, head), z in zip(sites, rows.each_head(), strict=True):
        assert torch.equal(z, cache.z[:, layer, head].double())
    monkeypatch.setattr(HeadRows, "__getitem__", lambda *_: pytest.fail("a slice of all heads"))
    torch.testing.assert_close(policy.fit(cache, detector).head_maps.tensors(), expected.head_maps.tensors())


@pytest.mark.parametrize("policy", [*POLICIES, rl.RadiantPolicy(), rl.RadiantPolicy(geometry="wasserstein")], ids=repr)
def test_a_head_that_hardly_varies_moves_no_further_than_other_text_lies(gaussian_cache, policy):
    caches = []
    for n, seed in ((600, 0), (200, 1)):
        cache = gaussian_cache(n, seed=seed)
        constant = torch.linspace(-1, 1, cache.z.shape[-1])
        # A head that reads the first token alone: on the text of the fit its activation varies by rounding.
        cache.z[:, SITE[0], SITE[1]] = constant + 1e-5 * cache.z[:, SITE[0], SITE[1]]
        caches.append(cache)
    detector = rl.RiskAwareDetector().fit(caches[0], validation=caches[1])
    steering = replace(policy, heads=[SITE]).fit(caches[0], detector)
    z = caches[0].z[:200, SITE[0]].double()
    elsewhere = z.clone()
    elsewhere[:, SITE[1]] = -elsewhere[:, SITE[1]]
    far = (elsewhere - z)[:, SITE[1]].norm(dim=-1)
    displaced = (steering.edit(elsewhere, SITE[0]) - elsewhere)[:, SITE[1]].norm(dim=-1)
    assert 0 < float((displaced / far).max()) < 3
