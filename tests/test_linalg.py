"""Batched linear algebra against NumPy, SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.optimize import brentq
from sklearn.covariance import ledoit_wolf

from radiant_lens import linalg
from radiant_lens.linalg import (
    MaskedSums,
    Moments,
    class_means,
    class_scatters,
    gaussian_distance,
    gaussian_transport,
    masked_moments,
    monotone_root,
    quadratic_form,
    square_root,
)

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 10_000)


def covariances(seed, shape=(2, 3), d=4, rank=8):
    a = np.random.default_rng(seed).normal(size=(*shape, rank, d))
    return a.swapaxes(-1, -2) @ a


def test_quadratic_form_of_a_hand_made_example():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert float(quadratic_form(torch.tensor([1.0, 2.0]), matrix)) == 2 + 2 * 2 + 3 * 4


@quick
@given(seeds)
def test_quadratic_form_equals_numpy(seed):
    v, m = np.random.default_rng(seed).normal(size=(2, 3, 4)), covariances(seed)
    naive = [[v[i, j] @ m[i, j] @ v[i, j] for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(quadratic_form(torch.tensor(v), torch.tensor(m)), naive, rtol=1e-10)


@quick
@given(seeds)
def test_root_equals_scipy_and_squares_to_the_matrix(seed):
    m = covariances(seed)
    root = square_root(torch.tensor(m))[0].matrix
    np.testing.assert_allclose(root @ root, m, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(root[1, 2], sqrtm(m[1, 2]).real, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(root, root.mT, atol=1e-12)


def test_root_of_a_singular_matrix_ignores_negative_rounding():
    m = torch.tensor(covariances(0, rank=2)) - 1e-13 * torch.eye(4, dtype=torch.float64)
    root = square_root(m)[0].matrix
    assert bool(torch.isfinite(root).all())
    np.testing.assert_allclose(root @ root, m, atol=1e-9)
    assert bool((torch.linalg.matrix_rank(root, atol=1e-5) == 2).all())


@quick
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=5))
def test_root_of_a_decreasing_function_equals_brent(shifts):
    c = torch.tensor(shifts, dtype=torch.float64)
    root = monotone_root(lambda x: c - x - x**3, torch.full_like(c, -10), torch.full_like(c, 10))
    brent = [brentq(lambda x, s=s: s - x - x**3, -10, 10, xtol=1e-15) for s in shifts]
    np.testing.assert_allclose(root, brent, rtol=1e-9, atol=1e-12)


def test_without_a_sign_change_the_nearer_end_is_returned():
    low, high = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    offset = torch.tensor([5.0, -5.0], dtype=torch.float64)
    np.testing.assert_allclose(monotone_root(lambda x: offset - x, low, high), [1.0, 0.0], atol=1e-12)


# Moments


def sample(seed, n=40, d=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2, 2, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    return x, rng.random((n, 2, 2)) < 0.6


@quick
@given(seeds)
def test_masked_moments_equal_numpy(seed):
    x, mask = sample(seed)
    moments = masked_moments(torch.tensor(x), torch.tensor(mask))
    for i in np.ndindex(2, 2):
        rows = x[(slice(None), *i)][mask[(slice(None), *i)]]
        assert float(moments.count[i]) == len(rows)
        np.testing.assert_allclose(moments.mean[i], rows.mean(0), rtol=1e-9)
        np.testing.assert_allclose(moments.covariance[i], np.cov(rows.T, bias=True), rtol=1e-6, atol=1e-12)


@quick
@given(seeds, st.sampled_from([0, 1000]))
def test_scatters_of_two_classes_equal_the_moments_of_each(seed, shrink_below):
    x = torch.tensor(sample(seed)[0])
    second = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < 0.3
    means = class_means(x, second)
    scatters = class_scatters(x, second, means, shrink_below=shrink_below)
    for scatter, members in zip(scatters, (~second, second)):
        expected = masked_moments(x, members[:, None, None].expand(x.shape[:-1]), shrink_below=shrink_below)
        moments = scatter.moments()
        for name in ("count", "mean", "covariance"):
            torch.testing.assert_close(getattr(moments, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    around = x - torch.where(second[:, None, None, None], means[1], means[0])
    every = torch.ones(x.shape[:-1], dtype=torch.bool)
    pooled = scatters[0].pooled(scatters[1]).moments().covariance
    expected = masked_moments(around, every, shrink_below=shrink_below).covariance
    torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-12)


@quick
@given(seeds, st.sampled_from([0.0, 1e5]))
def test_masked_rows_added_up_by_class_have_the_moments_of_a_pass_of_their_own(seed, away):
    x, mask = (torch.tensor(a) for a in sample(seed))
    x, mask = x + away, mask.clone()
    mask[:, 0, 0] = False
    second = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < 0.3
    means = class_means(x, second)
    sums = MaskedSums(mask, means)
    class_scatters(x, second, means, masked=sums)
    moments, expected = sums.moments(), masked_moments(x, mask)
    for name in ("count", "mean", "covariance"):
        torch.testing.assert_close(getattr(moments, name), getattr(expected, name), rtol=1e-9, atol=1e-8)
    assert not moments.covariance[0, 0].any() and moments.covariance[1, 1].any()


def test_rows_outside_the_mask_do_not_matter_and_those_inside_do():
    x, mask = (torch.tensor(a) for a in sample(0))
    outside, inside = (torch.where(where[..., None], 100.0, x) for where in (~mask, mask))
    base = masked_moments(x, mask)
    torch.testing.assert_close(masked_moments(outside, mask).covariance, base.covariance, rtol=1e-12, atol=0)
    assert not torch.allclose(masked_moments(inside, mask).mean, base.mean)


@pytest.mark.parametrize("shrink_below", [0.0, 10.0])
def test_a_mask_without_rows_gives_zeros_and_leaves_the_others_alone(shrink_below):
    x, mask = (torch.tensor(a) for a in sample(0))
    empty = mask.clone()
    empty[:, 0, 1] = False
    all_of, without = (masked_moments(x, m, shrink_below=shrink_below) for m in (mask, empty))
    assert float(without.count[0, 1]) == 0
    assert not without.mean[0, 1].any()
    assert not without.covariance[0, 1].any()
    torch.testing.assert_close(without.covariance[1], all_of.covariance[1])


def test_a_single_row_has_no_spread():
    x, mask = (torch.tensor(a) for a in sample(0))
    moments = masked_moments(x, torch.zeros_like(mask).index_fill(0, torch.tensor([3]), True), shrink_below=10)
    torch.testing.assert_close(moments.mean, x[3])
    assert not moments.covariance.any()


def test_moments_of_single_precision_rows_are_kept_in_double():
    x, mask = (torch.tensor(a) for a in sample(0))
    far = masked_moments((x + 1000).float(), mask)
    assert far.covariance.dtype == torch.float64
    torch.testing.assert_close(far.covariance, masked_moments(x, mask).covariance, rtol=2e-3, atol=1e-3)


@quick
@given(seeds, st.integers(2, 60), st.integers(1, 6), st.sampled_from([0, 1]))
def test_shrinkage_equals_ledoit_wolf_of_scikit_learn(seed, n, d, power):
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** power
    ours = masked_moments(torch.tensor(x), torch.ones(n, dtype=torch.bool), shrink_below=1000)
    np.testing.assert_allclose(ours.covariance, ledoit_wolf(x)[0], rtol=1e-6, atol=1e-12)


def test_only_entries_with_few_rows_are_shrunk():
    x, mask = (torch.tensor(a) for a in sample(1, n=60))
    mask[:, 0] = True
    mask[9:, 1] = False
    plain, shrunk = masked_moments(x, mask), masked_moments(x, mask, shrink_below=10)
    assert torch.equal(shrunk.covariance[0], plain.covariance[0])
    assert not torch.allclose(shrunk.covariance[1], plain.covariance[1])
    trace = shrunk.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(trace, plain.covariance.diagonal(dim1=-2, dim2=-1).sum(-1))


def test_a_ridge_adds_its_share_of_the_mean_variance():
    x, mask = (torch.tensor(a) for a in sample(0))
    plain = masked_moments(x, mask)
    added = (plain.ridged(0.3).covariance - plain.covariance)[1, 0]
    expected = 0.3 * float(plain.covariance[1, 0].trace()) / 3
    np.testing.assert_allclose(added, expected * np.eye(3), rtol=1e-9, atol=1e-12)


def test_the_ridge_makes_a_singular_covariance_invertible():
    x, mask = (torch.tensor(a) for a in sample(0))
    flat = masked_moments(torch.cat([x, x[..., :1]], dim=-1), mask)
    assert bool((torch.linalg.eigvalsh(flat.covariance)[..., 0] < 1e-12).all())
    assert bool((torch.linalg.eigvalsh(flat.ridged().covariance)[..., 0] > 1e-8).all())


def test_gaussian_distance_is_the_textbook_formula():
    one, other = covariances(1), covariances(2)
    means = np.random.default_rng(3).normal(size=(2, 2, 3, 4))
    moments = [Moments(torch.ones(2, 3), torch.tensor(m), torch.tensor(c)) for m, c in zip(means, (one, other))]
    distance = gaussian_distance(*moments)
    root = sqrtm(one[1, 2]).real
    bures = np.trace(one[1, 2]) + np.trace(other[1, 2]) - 2 * np.trace(sqrtm(root @ other[1, 2] @ root).real)
    expected = np.sqrt(np.square(means[0, 1, 2] - means[1, 1, 2]).sum() + bures)
    assert float(distance[1, 2]) == pytest.approx(expected, rel=1e-6)
    assert (gaussian_distance(moments[0], moments[0]) < 1e-6).all()


def test_gaussian_transport_carries_one_covariance_to_the_other():
    one, other = (torch.tensor(covariances(s)) for s in (1, 2))
    matrix = gaussian_transport(square_root(one)[0], square_root(other)[0].matrix)
    np.testing.assert_allclose(matrix @ one @ matrix.mT, other, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.mT, atol=1e-9)
    assert (torch.linalg.eigvalsh(matrix) > 0).all()


class Slices:
    """Rows that can be read in slices only."""

    def __init__(self, x: torch.Tensor) -> None:
        self._x, self.shape, self.most = x, x.shape, 0

    def __getitem__(self, index: slice) -> torch.Tensor:
        self.most = max(self.most, len(self._x[index]))
        return self._x[index]


@pytest.mark.parametrize("n_at_once", [1, 7, 100])
def test_moments_of_chunks_are_those_of_all_rows_at_once(monkeypatch, n_at_once):
    x, mask = (torch.tensor(a) for a in sample(0, n=60))
    whole = masked_moments(x, mask, shrink_below=1000)
    monkeypatch.setattr(linalg, "CHUNK_BYTES", n_at_once * 8 * x[0].numel())
    rows = Slices(x)
    chunked = masked_moments(rows, mask, shrink_below=1000)
    for name in ("count", "mean", "covariance"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-12, atol=1e-14)
    # No slice was longer than a chunk: that is what keeps memory bounded.
    assert rows.most == min(n_at_once, 60)
    other = masked_moments(Slices(x.flip(-1)), mask, shrink_below=1000)
    assert not torch.allclose(other.mean, whole.mean)
