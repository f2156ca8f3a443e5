"""The closed-form transport against a conic solver, a grid, its own theorems, and by sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.conic import transport_value
from reference.transports import draw, rng

from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.solvers.problem import ScoreMoments
from radiant_lens.solvers.transport import project_score, solve_transport

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "kappa": st.floats(0.1, 40),
        "place": st.floats(-0.99, 6),
        "floor": st.one_of(st.none(), st.floats(0.01, 3)),
    }
)


def moments(problem):
    mean = problem["bias"] + problem["theta"] @ problem["mu"]
    return float(mean), float((problem["theta"] @ problem["sigma"] @ problem["theta"]).sqrt())


def cost(problem, matrix, constant):
    """`E ||G a + g - a||^2` in the metric `M^{-1}`."""
    d = len(problem["mu"])
    inverse = torch.eye(d, dtype=torch.float64) if problem["metric"] is None else torch.linalg.inv(problem["metric"])
    turn = matrix - torch.eye(d, dtype=torch.float64)
    shift = turn @ problem["mu"] + constant
    return float((inverse @ turn @ problem["sigma"] @ turn.mT).trace() + shift @ inverse @ shift)


# By hand


def test_projection_on_the_line():
    one = torch.ones((), dtype=torch.float64)
    # (1/2, 1) lies 3/2 above the line m' + s' = 0: both fall by 3/4.
    assert [float(x) for x in project_score(ScoreMoments(0.5 * one, one), one, 0 * one)] == [-0.25, 0.25]
    assert [float(x) for x in project_score(ScoreMoments(0.5 * one, one), one, 0.5 * one)] == [-0.5, 0.5]


def test_one_dimension():
    one = torch.ones(1, dtype=torch.float64)
    solution = solve_transport(one, 4 * one[:, None], 2 * one, -1.0, 1.0)
    # y = 2 a - 1 has mean 1 and deviation 4: five above the line, each falls by 5/2, a tenth of it in activations.
    torch.testing.assert_close(solution.scale, torch.tensor(1.5 / 4, dtype=torch.float64))
    torch.testing.assert_close(solution.mean, torch.tensor([(-1.5 + 1) / 2], dtype=torch.float64))
    assert float(solution.value) == pytest.approx(2 * 2.5**2 / 4)
    assert float(solution.gap) == pytest.approx(0, abs=1e-12)


# Parity


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("place", [-0.9, 0.0, 0.4, 2.0])
@pytest.mark.parametrize("kappa", [0.5, 1.645, 5.0, 10.0, 40.0])
def test_value_is_that_of_a_conic_solver(kappa, place, metric):
    problem = draw(d=5, seed=int(kappa), kappa=kappa, place=place, metric=metric)
    solution = solve_transport(**problem)
    expected = transport_value(problem)
    scale = max(expected, 1e-3 * float(problem["sigma"].trace()))
    assert abs(float(solution.value) - expected) <= 1e-6 * scale
    assert cost(problem, solution.G, solution.g) == pytest.approx(float(solution.value), rel=1e-9)
    # The twin: the metric is not idle.
    other = solve_transport(**{**problem, "metric": torch.diag(torch.arange(1.0, 6.0))})
    assert abs(float(other.value) - expected) > 1e-4 * expected


@pytest.mark.parametrize(("floor", "place"), [(0.2, 0.5), (0.7, 0.5), (1.5, 0.5), (1.5, -0.5), (0.3, 4.0), (0.5, -0.9)])
@pytest.mark.parametrize("kappa", [0.5, 1.645, 10.0])
def test_value_with_a_floor_is_that_of_a_grid(kappa, floor, place):
    problem = draw(seed=3, kappa=kappa, place=place, floor=floor)
    mean, std = moments(problem)
    reach = float(problem["theta"].square().sum())
    width = abs(mean) + (kappa + 1) * (std + 2 * float(problem["floor_std"]))
    axis, least = np.linspace(-width, width, 2001), float(problem["floor_std"])
    spreads = least + np.linspace(0, width, 2001)
    # On the grid the mean is rounded down, so that every point of it is feasible.
    means = np.minimum(axis[:, None], -kappa * spreads[None, :])
    values = ((means - mean) ** 2 + (spreads[None, :] - std) ** 2) / reach
    # The grid's best is feasible, so it bounds the value from above; one step of the grid bounds it from below.
    solution, best = float(solve_transport(**problem).value), values.min()
    step = 2 * width / 2000
    assert solution <= best * (1 + 1e-9)
    assert solution >= best - 2 * step * math.sqrt(best * 2 / reach) - 2 * step**2 / reach
    # The twin: what the grid resolves tells this floor from none.
    if floor == 0.7 and kappa > 1:
        assert float(solve_transport(**{**problem, "floor_std": None}).value) < 0.99 * best


@settings(max_examples=60, deadline=None, database=None)
@given(case=CASES, metric=st.booleans(), other=st.integers(0, 10**6))
def test_no_other_affine_map_is_cheaper(case, metric, other):
    """Disturb the map at random, repair the constraint along the cheapest direction: never cheaper."""
    problem = draw(**case, metric=metric)
    solution = solve_transport(**problem)
    # An identity may lie below the floor, where other maps that keep the floor cost more without contradiction.
    assume(problem["floor_std"] is None or not solution.identity)
    theta, sigma = problem["theta"], problem["sigma"]
    generator = rng(other)
    size = float(torch.rand((), generator=generator))
    matrix = solution.G + size * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    spread = (theta @ matrix @ sigma @ matrix.mT @ theta).sqrt()
    assume(problem["floor_std"] is None or spread >= problem["floor_std"])
    constant = solution.g + (solution.G - matrix) @ problem["mu"]
    excess = problem["bias"] + theta @ (matrix @ problem["mu"] + constant) + problem["margin"] * spread
    constant = constant - excess.clamp_min(0) * solution.direction
    assert cost(problem, matrix, constant) >= float(solution.value) * (1 - 1e-9)


# Theorems


@settings(max_examples=100, deadline=None, database=None)
@given(case=CASES, metric=st.booleans())
def test_figures_of_a_solution_follow_from_its_map(case, metric):
    problem = draw(**case, metric=metric)
    solution = solve_transport(**problem)
    assert abs(float(solution.gap)) <= 1e-9
    torch.testing.assert_close(solution.mean, solution.G @ problem["mu"] + solution.g)
    torch.testing.assert_close(solution.covariance, solution.G @ problem["sigma"] @ solution.G.mT)
    theta = problem["theta"]
    mean = float(problem["bias"] + theta @ solution.mean)
    std = float((theta @ solution.covariance @ theta).clamp_min(0).sqrt())
    assert mean + problem["margin"] * std <= 1e-6 * (abs(mean) + problem["margin"] * theta.norm())
    assert float(solution.slack) >= -1e-9
    if problem["floor_std"] is not None and not solution.identity:
        assert std >= float(problem["floor_std"]) * (1 - 1e-9)
    assert cost(problem, solution.G, solution.g) == pytest.approx(float(solution.value), rel=1e-7, abs=1e-12)


@settings(max_examples=30, deadline=None, database=None)
@given(case=CASES, scale=st.floats(1e-3, 1e3))
def test_metric_proportional_to_the_identity_is_no_metric(case, scale):
    problem = draw(**case)
    plain, scaled = (
        solve_transport(**problem),
        solve_transport(**{**problem, "metric": scale * torch.eye(4, dtype=torch.float64)}),
    )
    torch.testing.assert_close(scaled.G, plain.G, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.g, plain.g, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.value * scale, plain.value, rtol=1e-9, atol=1e-12)


def test_other_metrics_turn_the_direction():
    problem = draw(metric=True)
    plain, turned = solve_transport(**{**problem, "metric": None}), solve_transport(**problem)
    assert torch.nn.functional.cosine_similarity(plain.direction, turned.direction, dim=0) < 0.99
    torch.testing.assert_close(
        turned.direction,
        problem["metric"] @ problem["theta"] / (problem["theta"] @ problem["metric"] @ problem["theta"]),
    )


def test_batch_equals_one_by_one():
    problems = [draw(seed=i, kappa=0.5 + i, place=i - 1.0, floor=0.1 * i, metric=True) for i in range(6)]
    stacked = {
        k: torch.stack([torch.as_tensor(p[k], dtype=torch.float64) for p in problems]).unflatten(0, (2, 3))
        for k in problems[0]
    }
    together = solve_transport(**stacked)
    for i, problem in enumerate(problems):
        alone = solve_transport(**problem)
        for name in ("G", "g", "mean", "covariance", "value", "slack", "identity"):
            torch.testing.assert_close(getattr(together, name)[i // 3, i % 3], getattr(alone, name))
    assert (together.G[0, 1] - together.G[1, 1]).abs().max() > 1e-3


def test_batch_axes_broadcast():
    problem = draw(floor=0.5)
    margins = torch.tensor([[0.5, 1.0, 2.0]] * 2, dtype=torch.float64)
    solution = solve_transport(**{**problem, "margin": margins})
    assert solution.G.shape == (2, 3, 4, 4) and solution.g.shape == (2, 3, 4)
    assert solution.value[0, 0] < solution.value[0, 1] < solution.value[0, 2]


@settings(max_examples=30, deadline=None, database=None)
@given(case=CASES, scale=st.floats(1e-2, 1e2))
def test_length_of_the_detector_does_not_matter(case, scale):
    problem = draw(**case)
    longer = {**problem, "theta": scale * problem["theta"], "bias": scale * problem["bias"]}
    if problem["floor_std"] is not None:
        longer["floor_std"] = scale * problem["floor_std"]
    plain, other = solve_transport(**problem), solve_transport(**longer)
    torch.testing.assert_close(other.G, plain.G, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other.value, plain.value, rtol=1e-8, atol=1e-9)


# Degenerate problems


def test_met_constraint_gives_the_identity_floor_or_not():
    for floor in (None, 3.0):
        problem = draw(place=-1.01, floor=floor)
        solution = solve_transport(**problem)
        assert bool(solution.identity)
        assert torch.equal(solution.G, torch.eye(4, dtype=torch.float64)) and (solution.g == 0).all()
        assert float(solution.value) == 0 and float(solution.gap) == 0 and float(solution.slack) > 0
        assert not solve_transport(**draw(place=-0.99, floor=floor)).identity


def test_large_margin_without_a_floor_collapses_the_score():
    solution = solve_transport(**draw(place=1.0, kappa=1.5))
    assert float(solution.scale) == 0 and float(solution.slack) == 0
    torch.testing.assert_close(solution.value, solve_transport(**draw(place=1.0, kappa=40.0)).value)
    assert float(solve_transport(**draw(place=1.0, kappa=0.9)).scale) > 0
    assert solve_transport(**draw(place=1.0, kappa=40.0, floor=0.5)).value > 2 * solution.value


@pytest.mark.parametrize("floor", [None, 0.0, 0.5])
def test_score_without_spread_is_moved_to_where_the_floor_is_met(floor):
    sigma = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    theta, mu = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    solution = solve_transport(mu, sigma, theta, 0.0, 3.0, floor_std=floor)
    torch.testing.assert_close(theta @ solution.mean, torch.tensor(-3.0 * (floor or 0.0), dtype=torch.float64))
    assert float(solution.scale) == 0 and float(solution.slack) == 0 and abs(float(solution.gap)) < 1e-12
    # Whatever its score was, an activation is given the new one.
    other = solution.G @ (mu + torch.tensor([0.0, 0.0, 5.0])) + solution.g
    torch.testing.assert_close(theta @ other, theta @ solution.mean)


def test_rounding_is_not_taken_for_spread():
    """A weight in the null space of a covariance in general position: the score's variance is 1e-17, not 0."""
    generator = rng(4)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    sigma = (axes[:, :5] * torch.arange(1.0, 6.0)) @ axes[:, :5].mT
    solution = solve_transport(torch.zeros(6), sigma, axes[:, 5], 1.0, 1.0, floor_std=1.0)
    assert float(solution.scale) == 0
    spread = sigma + 1e-6 * axes[:, 5:] @ axes[:, 5:].mT
    assert float(solve_transport(torch.zeros(6), spread, axes[:, 5], 1.0, 1.0, floor_std=1.0).scale) == pytest.approx(
        1e3, rel=1e-6
    )


def test_no_covariance_is_moved_as_a_whole():
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    solution = solve_transport(torch.ones(2), torch.zeros(2, 2), theta, 1.0, 5.0)
    torch.testing.assert_close(solution.mean, torch.ones(2, dtype=torch.float64) - theta * 4 / 5)
    assert (solution.covariance == 0).all()
    assert bool(solve_transport(torch.ones(2), torch.zeros(2, 2), theta, -3.0, 5.0).identity)


def test_single_precision_inputs_are_computed_in_double():
    problem = draw(floor=0.5, metric=True)
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    solution = solve_transport(**single)
    assert solution.G.dtype == torch.float64
    torch.testing.assert_close(solution.value, solve_transport(**problem).value, rtol=1e-4, atol=0)


# The promise, by sampling


def violation_rate(draws, problem, root, solution):
    activations = problem["mu"] + draws @ root.mT
    return float(
        (activations @ solution.G.mT @ problem["theta"] + solution.g @ problem["theta"] + problem["bias"] > 0)
        .double()
        .mean()
    )


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("metric", [False, True])
def test_gaussian_data_violate_the_constraint_at_the_rate_of_the_margin(gamma, metric):
    problem = draw(kappa=float(scipy.stats.norm.ppf(1 - gamma)), floor=0.4, metric=metric)
    draws = torch.randn(10**6, 4, generator=rng(1), dtype=torch.float64)
    root = torch.linalg.cholesky(problem["sigma"])
    low, high = scipy.stats.binom.interval(1 - 1e-4, 10**6, gamma)
    assert low / 1e6 <= violation_rate(draws, problem, root, solve_transport(**problem)) <= high / 1e6
    short = solve_transport(**{**problem, "margin": 0.95 * problem["margin"]})
    assert violation_rate(draws, problem, root, short) > high / 1e6


@pytest.mark.parametrize("kind", ["exponential", "student", "two points"])
def test_cantelli_margin_holds_for_skewed_and_heavy_tails(kind):
    gamma, n = 0.05, 10**6
    generator = rng(2)
    draws = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    if kind == "exponential":
        extreme = torch.empty(n, dtype=torch.float64).exponential_(generator=generator) - 1
    elif kind == "student":
        chi = torch.randn(n, 3, generator=generator, dtype=torch.float64).square().sum(-1) / 3
        extreme = draws[:, 0] / chi.sqrt() / math.sqrt(3)
    else:
        # The law for which Cantelli's inequality is an equality, a little inside.
        share = 0.9 * gamma
        high = torch.rand(n, generator=generator, dtype=torch.float64) < share
        extreme = torch.where(high, math.sqrt((1 - share) / share), -math.sqrt(share / (1 - share)))
    problem = draw(kappa=math.sqrt((1 - gamma) / gamma), floor=0.4)
    # A root of the covariance whose first column alone carries the score.
    root = torch.linalg.cholesky(problem["sigma"])
    along = torch.nn.functional.normalize(root.mT @ problem["theta"], dim=0)
    rest = torch.linalg.qr(torch.cat([along[:, None], torch.eye(4, dtype=torch.float64)], 1))[0]
    root = root @ (rest * torch.sign(rest[:, 0] @ along))
    draws[:, 0] = extreme
    rate = violation_rate(draws, problem, root, solve_transport(**problem))
    assert rate <= gamma
    if kind == "two points":
        gaussian = solve_transport(**{**problem, "margin": float(scipy.stats.norm.ppf(0.99))})
        assert violation_rate(draws, problem, root, gaussian) > 4 * 0.01
    else:
        assert rate < 0.5 * gamma


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"margin": 0.0}, InvalidArgumentError, "`margin` must lie strictly above 0; got 0"),
        ({"margin": -1.0}, InvalidArgumentError, "`margin` must lie strictly above 0; got -1"),
        ({"floor_std": -0.5}, InvalidArgumentError, "`floor_std` must lie at or above 0; got -0.5"),
        ({"floor_std": torch.zeros(3)}, InvalidArgumentError, "`floor_std` must broadcast to shape"),
        ({"floor_std": float("nan")}, DataError, "`floor_std` must be finite"),
        (
            {"mu": torch.tensor([0.0, float("inf")])},
            DataError,
            r"`mu` must be finite; .* first at index \(1,\)",
        ),
        ({"sigma": torch.full((2, 2), float("nan"))}, DataError, "`sigma` must be finite"),
        ({"theta": torch.zeros(2)}, InvalidArgumentError, "`theta` must not be zero"),
        ({"sigma": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, InvalidArgumentError, "`sigma` must be symmetric"),
        ({"sigma": -torch.eye(2)}, InvalidArgumentError, "`sigma` must be positive semidefinite"),
        ({"sigma": torch.eye(3)}, InvalidArgumentError, r"`sigma` must end in axes \(2, 2\)"),
        ({"metric": -torch.eye(2)}, InvalidArgumentError, "`metric` must be positive definite"),
        ({"metric": torch.zeros(2, 2)}, InvalidArgumentError, "`metric` must be positive definite"),
        ({"metric": torch.full((2, 2), float("nan"))}, DataError, "`metric` must be finite"),
        ({"metric": torch.eye(3)}, InvalidArgumentError, "`metric` must broadcast to shape"),
        ({"mu": torch.zeros(3, 2), "bias": torch.zeros(4)}, InvalidArgumentError, "Leading axes must broadcast"),
        (
            {"sigma": torch.eye(2).repeat(3, 1, 1), "margin": torch.ones(4)},
            InvalidArgumentError,
            r"Leading axes must broadcast .* sigma \(3,\), theta \(\), bias \(\), margin \(4,\)",
        ),
        ({"theta": torch.ones(3, 2), "mu": torch.ones(4, 2)}, InvalidArgumentError, "Leading axes must broadcast"),
    ],
)
def test_refusals(change, error, message):
    sound = {"mu": torch.ones(2), "sigma": torch.eye(2), "theta": torch.ones(2), "bias": 0.0, "margin": 1.0}
    assert not solve_transport(**sound).identity
    with pytest.raises(error, match=message):
        solve_transport(**{**sound, **change})


def test_rounding_next_to_a_zero_entry_is_no_asymmetry():
    sigma = torch.tensor([[4.0, 0.0], [1e-9, 1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0], dtype=torch.float64)
    solution = solve_transport(torch.ones(2, dtype=torch.float64), sigma, weight, torch.tensor(0.0), torch.tensor(1.0))
    assert float(solution.gap) < 1e-9
    sigma[1, 0] = 1e-3
    with pytest.raises(InvalidArgumentError, match="must be symmetric; entries differ from their mirror by 0.001"):
        solve_transport(torch.ones(2, dtype=torch.float64), sigma, weight, torch.tensor(0.0), torch.tensor(1.0))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_asymmetry_is_measured_against_the_largest_entry(scale):
    def solve(skew):
        sigma = scale * torch.tensor([[4.0, 1.0], [1.0 + skew, 2.0]], dtype=torch.float64)
        return solve_transport(scale**0.5 * torch.ones(2).double(), sigma, torch.ones(2).double(), 0.0, 1.0)

    assert float(solve(1e-6).gap) < 1e-6
    with pytest.raises(InvalidArgumentError, match="`sigma` must be symmetric"):
        solve(1e-3)
