"""The paper's problem by hand, against its own theorems, and by sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.problems import ALIGNMENTS, CONDITIONS, FLOORS, KAPPAS, PLACES, assert_certified, draw, one, root_of

from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError
from radiant_lens.solvers import procrustes
from radiant_lens.solvers.problem import UncertifiedError
from radiant_lens.solvers.procrustes import solve_procrustes
from radiant_lens.solvers.transport import solve_transport

# By hand


def test_one_dimension_without_a_floor_is_a_projection():
    one_ = torch.ones(1, dtype=torch.float64)
    solution = solve_procrustes(0.5 * one_, one_[:, None], one_, 0.0, 1.0)
    # (m, s) = (1/2, 1) lies 3/2 above the line m' + s' = 0: both fall by 3/4.
    torch.testing.assert_close(solution.mean, -0.25 * one_)
    torch.testing.assert_close(solution.covariance, 0.0625 * one_[:, None])
    torch.testing.assert_close(solution.G, 0.25 * one_[:, None])
    assert float(solution.value) == pytest.approx(1.125)


def test_one_dimension_with_a_floor_stops_there():
    one_ = torch.ones(1, dtype=torch.float64)
    solution = solve_procrustes(0.5 * one_, one_[:, None], one_, 0.0, 1.0, floor=0.25 * one_[:, None])
    torch.testing.assert_close(solution.mean, -0.5 * one_)
    torch.testing.assert_close(solution.root, 0.5 * one_[:, None])
    assert float(solution.value) == pytest.approx(1.25)


def test_round_covariance_moves_along_the_weight_as_the_transport_does():
    problem = draw(8, 1.0, None, "random", 0.4, 0)
    solution = solve_procrustes(**problem)
    transport = solve_transport(*[problem[k] for k in ("mu", "sigma", "theta", "bias", "margin")])
    torch.testing.assert_close(solution.value, transport.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.G, transport.G, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solution.g, transport.g, rtol=1e-7, atol=1e-7)


def test_stretched_covariance_does_not():
    problem = draw(8, 100.0, None, "random", 0.4, 0)
    transport = solve_transport(*[problem[k] for k in ("mu", "sigma", "theta", "bias", "margin")])
    assert (solve_procrustes(**problem).G - transport.G).abs().amax((-2, -1))[1:].min() > 1e-3


def test_map_is_the_textbook_formula():
    problem = draw(6, 100.0, "other", "random", 1.645, 3)
    solution = solve_procrustes(**problem)
    for i in range(len(PLACES)):
        h = scipy.linalg.sqrtm(problem["sigma"][i].numpy()).real
        s = solution.root[i].numpy()
        inverse = np.linalg.inv(h)
        expected = inverse @ scipy.linalg.sqrtm(h @ s @ s @ h).real @ inverse
        np.testing.assert_allclose(solution.G[i].numpy(), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(solution.covariance[i].numpy(), s @ s, rtol=1e-6, atol=1e-9)


# Theorems


@pytest.mark.parametrize("d", [8, 32, 64])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("floor", FLOORS)
def test_gap_is_closed_over_the_whole_grid(floor, condition, d):
    for alignment in ALIGNMENTS[:: 1 if d == 8 else 3]:
        for kappa in KAPPAS if d == 8 else (0.5, 10.0):
            problem = draw(d, condition, floor, alignment, kappa, d)
            assert_certified(problem, solve_procrustes(**problem))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_two_scalar_roots_suffice_without_a_floor(monkeypatch, alignment):
    monkeypatch.setattr(procrustes, "MAX_STEPS", 0)
    for condition in CONDITIONS:
        for kappa in KAPPAS:
            problem = draw(8, condition, None, alignment, kappa, 7)
            assert solve_procrustes(**problem).gap.abs().max() <= 1e-9


@pytest.mark.parametrize(("mean", "size"), [(6.0, 40.0), (-1.998, 4e-3)])
def test_the_gap_is_relative_to_the_value_and_at_least_to_a_thousandth_of_the_trace(monkeypatch, mean, size):
    """One dimension, deviation 2, margin 1: from mean 6 all goes to the origin, from -1.998 hardly anything moves."""
    problem = {
        "mu": torch.tensor([mean]),
        "sigma": 4 * torch.eye(1),
        "theta": torch.ones(1),
        "bias": 0.0,
        "margin": 1.0,
    }
    exact, solve_moving = solve_procrustes(**problem), procrustes._solve_moving
    assert max(float(exact.value), 4e-3) == pytest.approx(size, rel=1e-4)

    # Lower by a known amount, so that the gap must grow by it over the unit that gaps are measured in.
    def with_a_lower_bound(*args):
        root, bound = solve_moving(*args)
        return root, bound - 1e-10

    monkeypatch.setattr(procrustes, "_solve_moving", with_a_lower_bound)
    assert float(solve_procrustes(**problem).gap - exact.gap) == pytest.approx(1e-10 / size, rel=1e-3)


def test_missing_tolerance_names_the_problems(monkeypatch):
    problem = draw(8, 1e4, "other", "random", 1.645, 7)
    problem = {k: v.reshape(2, 3, *v.shape[1:]) if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    problem["bias"][0] -= 1e4  # the first row needs no edit
    monkeypatch.setattr(procrustes, "MAX_STEPS", 0)
    with pytest.raises(
        UncertifiedError, match=r"procrustes solver failed on \d of 6 problems, the first at index \(1, 0\)"
    ) as caught:
        solve_procrustes(**problem)
    assert isinstance(caught.value, ConvergenceError)
    assert set(caught.value.index) <= {(1, 0), (1, 1), (1, 2)}
    monkeypatch.undo()
    assert solve_procrustes(**problem).gap.max() <= 1e-9


@settings(max_examples=25, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), kappa=st.floats(0.1, 40), floor=st.sampled_from(FLOORS), scale=st.floats(1e-3, 1e3))
def test_value_scales_with_the_square_of_the_activations(seed, kappa, floor, scale):
    problem = draw(5, 100.0, floor, "random", kappa, seed)
    scaled = {
        **problem,
        "mu": problem["mu"] * scale,
        "sigma": problem["sigma"] * scale**2,
        "theta": problem["theta"] / scale,
    }
    scaled["floor"] = None if floor is None else problem["floor"] * scale**2
    solution, other = solve_procrustes(**problem), solve_procrustes(**scaled)
    torch.testing.assert_close(other.value, solution.value * scale**2, rtol=1e-6, atol=1e-9 * scale**2)


@settings(max_examples=25, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), kappa=st.floats(0.1, 40), floor=st.sampled_from(FLOORS[1:]))
def test_no_floor_costs_less_and_solutions_stay_above_their_floor(seed, kappa, floor):
    problem = draw(5, 100.0, floor, "random", kappa, seed)
    floored, free = solve_procrustes(**problem), solve_procrustes(**{**problem, "floor": None})
    assert (free.value <= floored.value + 1e-9).all()
    moving = ~floored.identity
    least = torch.from_numpy(np.stack([root_of(f) for f in problem["floor"].numpy()]))
    above = torch.linalg.eigvalsh(floored.root - least)[:, 0]
    assert (above[moving] >= -1e-7).all()


@settings(max_examples=40, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), kappa=st.floats(0.1, 40), condition=st.sampled_from(CONDITIONS))
def test_transport_never_moves_further(seed, kappa, condition):
    """The image of the procrustes map is feasible for the transport too, so it costs at least as much."""
    problem = draw(4, condition, None, "random", kappa, seed)
    solution = solve_procrustes(**problem)
    transport = solve_transport(*[problem[k] for k in ("mu", "sigma", "theta", "bias", "margin")])
    # E |G a + g - a|^2 = |mean' - mean|^2 + tr (G - I) Sigma (G - I)'.
    turn = solution.G - torch.eye(4)
    cost = (solution.mean - problem["mu"]).square().sum(-1)
    cost = cost + torch.einsum("nij,njk,nik->n", turn, problem["sigma"], turn)
    assert (transport.value <= cost * (1 + 1e-7) + 1e-9).all()
    # And the distance of roots bounds that of covariances (Bures) from above.
    assert (cost <= solution.value * (1 + 1e-7) + 1e-9).all()


def test_transport_moves_truly_less_where_the_covariance_is_stretched():
    problem = draw(8, 100.0, None, "random", 5.0, 11)
    transport = solve_transport(*[problem[k] for k in ("mu", "sigma", "theta", "bias", "margin")])
    assert (transport.value < 0.999 * solve_procrustes(**problem).value).any()


def test_batch_equals_one_by_one():
    for floor in (None, "other"):
        problem = draw(6, 1e4, floor, "random", 1.645, 13)
        together = solve_procrustes(**problem)
        for i in range(len(PLACES)):
            alone = solve_procrustes(**one(problem, i))
            for name in ("G", "g", "mean", "covariance", "value", "identity"):
                torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name), rtol=1e-7, atol=1e-7)
        assert (together.G[2] - together.G[3]).abs().max() > 1e-3


def test_batch_axes_broadcast():
    problem = one(draw(4, 10.0, "other", "random", 1.0, 1), 4)
    margins = torch.tensor([[0.5, 1.0, 2.0]] * 2, dtype=torch.float64)
    solution = solve_procrustes(**{**problem, "margin": margins})
    assert solution.G.shape == (2, 3, 4, 4)
    torch.testing.assert_close(solution.value[0, 1], solve_procrustes(**problem).value)
    assert solution.value[0, 0] < solution.value[0, 1] < solution.value[0, 2]


def test_empty_batch_gives_an_empty_solution():
    empty = torch.zeros(0, 3, dtype=torch.float64)
    assert solve_procrustes(empty, torch.zeros(0, 3, 3), empty, torch.zeros(0), 1.0).G.shape == (0, 3, 3)


# Degenerate problems


def test_met_constraint_gives_the_identity_floor_or_not():
    for floor in (None, "large"):
        problem = draw(5, 10.0, floor, "random", 1.0, 2)
        problem["bias"] = problem["bias"] - 1e3
        solution = solve_procrustes(**problem)
        assert solution.identity.all()
        assert torch.equal(solution.G, torch.eye(5, dtype=torch.float64).expand(len(PLACES), 5, 5))
        assert (
            (solution.g == 0).all()
            and (solution.value == 0).all()
            and (solution.gap == 0).all()
            and (solution.slack > 0).all()
        )
        assert torch.equal(solution.mean, problem["mu"])
        problem["bias"] = problem["bias"] + 2e3
        assert not solve_procrustes(**problem).identity.any()


@pytest.mark.parametrize("floor", [None, "other", "blind"])
def test_no_covariance_is_moved_as_a_whole(floor):
    """A single example: the mean moves, no direction has mass to turn."""
    problem = draw(4, 10.0, floor, "random", 1.0, 6)
    problem["sigma"] = torch.zeros_like(problem["sigma"])
    problem["bias"] = 1 - (problem["theta"] * problem["mu"]).sum(-1)
    solution = solve_procrustes(**problem)
    assert_certified(problem, solution)
    # No affine map gives mass to a point: G is the identity, and only the mean makes room for the floor.
    torch.testing.assert_close(solution.G, torch.eye(4, dtype=torch.float64).expand_as(solution.G))
    assert (solution.covariance == 0).all()
    edge = torch.einsum("ni,ni->n", solution.mean, problem["theta"]) + problem["bias"]
    if floor == "other":
        assert (edge < -1e-3).all()  # room for the floor's spread
    else:
        torch.testing.assert_close(edge, torch.zeros_like(edge), atol=1e-7, rtol=0)


def test_weight_without_spread_moves_only_the_mean():
    sigma = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    theta, mu = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    solution = solve_procrustes(mu, sigma, theta, 0.0, 5.0)
    torch.testing.assert_close(solution.mean, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(solution.G, torch.eye(3, dtype=torch.float64))
    turned = solve_procrustes(mu, sigma, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 0.0, 5.0)
    assert (turned.G - torch.eye(3)).abs().max() > 0.1


def test_zero_floor_is_no_floor():
    problem = draw(6, 1e4, None, "random", 1.645, 8)
    free = solve_procrustes(**problem)
    zero = solve_procrustes(**{**problem, "floor": torch.zeros(6, 6)})
    torch.testing.assert_close(zero.value, free.value, rtol=1e-9, atol=1e-12)
    raised = solve_procrustes(**{**problem, "floor": torch.eye(6)})
    assert ((raised.value > free.value * 1.01) | free.identity).all()


def test_single_precision_inputs_are_computed_in_double():
    problem = draw(8, 100.0, "other", "random", 1.645, 9)
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    solution = solve_procrustes(**single)
    assert solution.G.dtype == torch.float64
    torch.testing.assert_close(solution.value, solve_procrustes(**problem).value, rtol=1e-3, atol=1e-5)


# The promise, by sampling


def skewed_draws(n, generator):
    """Draw unit-variance, mean-zero columns: exponential (skewed), Student with 3 degrees (heavy tail), two points."""
    exponential = torch.empty(n, dtype=torch.float64).exponential_(generator=generator) - 1
    normal = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    student = normal[:, 0] / (normal[:, 1:].square().sum(-1) / 3).sqrt() / math.sqrt(3)
    points = torch.where(
        torch.rand(n, generator=generator, dtype=torch.float64) < 0.05, math.sqrt(19), -math.sqrt(1 / 19)
    )
    return torch.stack([exponential, student, points], dim=1)


def violation_rate(draws, theta, bias, mu, root, solution):
    activations = mu + draws @ root.mT
    return float((activations @ solution.G.mT @ theta + solution.g @ theta + bias > 0).double().mean())


def sampling_problem():
    root = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.7, 0.1], [0.3, 0.0, 1.2]], dtype=torch.float64)
    theta = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
    return theta, 0.3, torch.tensor([0.5, -0.2, 0.7], dtype=torch.float64), root


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2])
def test_gaussian_data_violate_the_constraint_at_the_rate_of_the_margin(gamma):
    theta, bias, mu, root = sampling_problem()
    draws = torch.randn(10**6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = scipy.stats.binom.interval(1 - 1e-4, 10**6, gamma)
    margin = float(scipy.stats.norm.ppf(1 - gamma))
    floor = 0.25 * torch.eye(3)
    solution = solve_procrustes(mu, root @ root.mT, theta, bias, margin, floor=floor)
    assert low / 1e6 <= violation_rate(draws, theta, bias, mu, root, solution) <= high / 1e6
    short = solve_procrustes(mu, root @ root.mT, theta, bias, 0.95 * margin, floor=floor)
    assert violation_rate(draws, theta, bias, mu, root, short) > high / 1e6


def test_cantelli_margin_holds_for_skewed_and_heavy_tails():
    theta, bias, mu, root = sampling_problem()
    draws, sigma, floor = skewed_draws(10**6, torch.Generator().manual_seed(1)), root @ root.mT, 0.25 * torch.eye(3)
    cantelli = solve_procrustes(mu, sigma, theta, bias, math.sqrt(0.95 / 0.05), floor=floor)
    assert violation_rate(draws, theta, bias, mu, root, cantelli) <= 0.05
    # A weight that sees the two-point coordinate alone breaks the Gaussian margin for 3%, not Cantelli's.
    along = torch.linalg.inv(root).mT @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    gaussian = solve_procrustes(mu, sigma, along, 1.0, float(scipy.stats.norm.ppf(0.97)), floor=0.25 * sigma)
    assert violation_rate(draws, along, 1.0, mu, root, gaussian) > 0.04
    cantelli = solve_procrustes(mu, sigma, along, 1.0, math.sqrt(0.97 / 0.03), floor=0.25 * sigma)
    assert violation_rate(draws, along, 1.0, mu, root, cantelli) <= 0.03


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"margin": 0.0}, InvalidArgumentError, "`margin` must lie strictly above 0; got 0"),
        ({"margin": -1.0}, InvalidArgumentError, "`margin` must lie strictly above 0; got -1"),
        ({"margin": float("nan")}, DataError, "`margin` must be finite"),
        (
            {"mu": torch.tensor([0.0, float("nan")])},
            DataError,
            r"`mu` must be finite; .* first at index \(1,\)",
        ),
        ({"sigma": torch.full((2, 2), float("inf"))}, DataError, "`sigma` must be finite"),
        ({"floor": torch.full((2, 2), float("nan"))}, DataError, "`floor` must be finite"),
        ({"theta": torch.zeros(2)}, InvalidArgumentError, "`theta` must not be zero"),
        ({"sigma": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, InvalidArgumentError, "`sigma` must be symmetric"),
        (
            {"sigma": torch.diag(torch.tensor([1.0, -0.5]))},
            InvalidArgumentError,
            "`sigma` must be positive semidefinite",
        ),
        (
            {"floor": torch.diag(torch.tensor([1.0, -0.5]))},
            InvalidArgumentError,
            "`floor` must be positive semidefinite",
        ),
        ({"sigma": torch.eye(3)}, InvalidArgumentError, r"`sigma` must end in axes \(2, 2\)"),
        ({"mu": torch.zeros(3)}, InvalidArgumentError, r"`mu` must end in axes \(2,\)"),
        ({"floor": torch.eye(3)}, InvalidArgumentError, "`floor` must broadcast to shape"),
        ({"mu": torch.zeros(3, 2), "bias": torch.zeros(4)}, InvalidArgumentError, "Leading axes must broadcast"),
    ],
)
def test_refusals(change, error, message):
    sound = {
        "mu": torch.ones(2),
        "sigma": torch.eye(2),
        "theta": torch.ones(2),
        "bias": 0.0,
        "margin": 1.0,
        "floor": None,
    }
    assert not solve_procrustes(**sound).identity
    with pytest.raises(error, match=message):
        solve_procrustes(**{**sound, **change})
