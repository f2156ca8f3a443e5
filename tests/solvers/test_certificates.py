"""Certificates: every map is judged by what it does to the given moments, and a wrong one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.problems import PLACES
from reference.problems import draw as draw_procrustes
from reference.transports import draw, rng

from radiant_lens.errors import ConvergenceError, InvalidArgumentError
from radiant_lens.solvers import certificates, procrustes, transport
from radiant_lens.solvers.certificates import certify_transport, projection_bound
from radiant_lens.solvers.problem import ScoreMoments, UncertifiedError, certify
from radiant_lens.solvers.procrustes import solve_procrustes
from radiant_lens.solvers.procrustes_problem import certify_procrustes
from radiant_lens.solvers.transport import project_score, solve_transport

# Mutations of a transport's map


def recertify(problem, solution):
    """Certify the map of a transport, as stored, for its problem."""
    gain = solution.scale - 1
    return certify_transport(
        *(problem[name] for name in ("mu", "sigma", "theta", "bias", "margin")),
        solution.direction,
        gain[..., None] * solution.theta,
        gain * solution.bias + solution.offset,
        metric=problem["metric"],
        floor_std=problem["floor_std"],
    )


# With and without a floor and a metric; the last starts inside the constraint without its margin.
PROBLEMS = [
    {"floor": 0.5, "metric": True},
    {"floor": 0.5},
    {"floor": None, "metric": True, "kappa": 0.6},
    {"floor": 2.0, "place": -0.5},
]


@pytest.mark.parametrize("settings_", PROBLEMS)
def test_certificate_of_the_stored_map_is_that_of_the_solution(settings_):
    problem = draw(**settings_)
    solution = solve_transport(**problem)
    certificate = recertify(problem, solution)
    for name in ("value", "gap", "slack", "mean"):
        torch.testing.assert_close(getattr(certificate, name), getattr(solution, name))


@pytest.mark.parametrize("settings_", PROBLEMS)
@pytest.mark.parametrize("name", ["direction", "scale", "offset", "theta", "bias"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_changed_transport_is_refused(settings_, name, sign):
    """A hundredth more or less of any stored number, and a turned vector."""
    problem = draw(**settings_)
    solution = solve_transport(**problem)
    value = getattr(solution, name)
    # Both signs: one makes the map cheaper and infeasible, the other feasible and dearer. Neither may pass.
    noise = torch.randn(value.shape, generator=rng(5), dtype=torch.float64) if value.ndim else torch.ones(())
    changed = replace(solution, **{name: value + sign * 0.01 * noise * value.abs().max().clamp_min(0.1)})
    with pytest.raises(UncertifiedError, match="transport solver failed on 1 of 1 problems"):
        recertify(problem, changed)


@pytest.mark.parametrize("change", ["metric", "floor_std", "margin", "bias", "mu", "sigma"])
def test_the_solution_of_another_problem_is_refused(change):
    problem = draw(floor=0.5, metric=True)
    other = draw(floor=0.5, metric=True, seed=1)
    wrong = {**problem, change: {"floor_std": 0.9, "margin": 0.9}.get(change, 0) * problem[change]}
    if change in ("metric", "mu", "sigma"):
        wrong[change] = other[change]
    if change == "bias":
        wrong["bias"] = problem["bias"] - 0.05
    with pytest.raises(UncertifiedError):
        recertify(problem, solve_transport(**wrong))


@settings(max_examples=50, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1.0), metric=st.booleans())
def test_any_other_direction_is_refused(seed, size, metric):
    problem = draw(seed=seed, floor=0.5, metric=metric)
    solution = solve_transport(**problem)
    # Across the weight: the moved score stays as it was, and only the cost shows that the direction is wrong.
    across = torch.randn(4, generator=rng(seed), dtype=torch.float64)
    across = across - problem["theta"] * (problem["theta"] @ across) / problem["theta"].square().sum()
    turned = replace(solution, direction=solution.direction + 10 * size * solution.direction.norm() * across)
    assert float(problem["theta"] @ turned.direction) == pytest.approx(1, abs=1e-9)
    with pytest.raises(UncertifiedError, match="relative gap"):
        recertify(problem, turned)


def test_a_moved_identity_is_refused():
    problem = draw(place=-1.5)
    solution = solve_transport(**problem)
    assert bool(solution.identity)
    with pytest.raises(UncertifiedError):
        recertify(problem, replace(solution, scale=solution.scale * 0.9))
    with pytest.raises(UncertifiedError):
        recertify(problem, replace(solution, offset=solution.offset - 0.1))


def test_value_of_an_ill_conditioned_metric_keeps_its_digits():
    # A naive `d' M^{-1} d` loses 12 of 16 digits here, and the certificate would refuse a perfect solution.
    problem = draw(floor=0.5, d=6)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=rng(2), dtype=torch.float64))[0]
    problem["metric"] = (axes * torch.logspace(0, -12, 6, dtype=torch.float64)) @ axes.mT
    assert abs(float(solve_transport(**problem).gap)) <= 1e-9


# Steps of the transport, each broken on purpose


def test_a_move_that_is_feasible_but_too_far_is_refused(monkeypatch):
    def too_far(score, margin, floor):
        right = project_score(score, margin, floor)
        return ScoreMoments(right.mean - 0.01 * right.std - 0.01, right.std)

    problem = draw(floor=0.5)
    assert solve_transport(**problem).gap.abs() <= 1e-12
    monkeypatch.setattr(transport, "project_score", too_far)
    with pytest.raises(UncertifiedError, match=r"transport solver failed on 1 of 1 problems, the first at index \(\)"):
        solve_transport(**problem)


def test_a_violated_constraint_is_refused_with_its_place(monkeypatch):
    def too_near(score, margin, floor):
        right = project_score(score, margin, floor)
        return ScoreMoments(right.mean + torch.tensor([0.0, 1e-6]), right.std)

    problem = draw(floor=0.5)
    problem["bias"] = problem["bias"].expand(2)
    monkeypatch.setattr(transport, "project_score", too_near)
    with pytest.raises(UncertifiedError, match=r"on 1 of 2 problems") as caught:
        solve_transport(**problem)
    assert caught.value.index == [(1,)]


def test_a_spread_below_the_floor_is_refused(monkeypatch):
    problem = draw(floor=2.0)
    monkeypatch.setattr(
        transport, "project_score", lambda score, margin, floor: project_score(score, margin, 0 * floor)
    )
    with pytest.raises(UncertifiedError, match="constraint slack -"):
        solve_transport(**problem)


def test_a_direction_of_another_metric_is_refused(monkeypatch):
    problem = draw(floor=0.5, metric=True)
    monkeypatch.setattr(
        transport, "direction_of_move", lambda theta, metric: theta / theta.square().sum(-1, keepdim=True)
    )
    with pytest.raises(UncertifiedError, match="relative gap"):
        solve_transport(**problem)
    problem["metric"] = None
    assert float(solve_transport(**problem).gap) <= 1e-9


@pytest.mark.parametrize(("mean", "size"), [(3.0, 10.0), (-0.999, 1e-3)])
def test_the_gap_is_relative_to_the_value_and_at_least_to_a_thousandth_of_the_spread(monkeypatch, mean, size):
    """One dimension, deviation 1, weight 2, margin 1: from 3 all goes to the origin, from -0.999 hardly far."""
    one = torch.ones(1)
    problem = {"mu": mean * one, "sigma": one[:, None], "theta": 2 * one, "bias": 0.0, "margin": 1.0}
    exact = solve_transport(**problem)
    assert max(float(exact.value), 1e-3) == pytest.approx(size, rel=1e-4)
    # Of scores; a unit of them is half a unit of activations.
    monkeypatch.setattr(certificates, "projection_bound", lambda *args: projection_bound(*args) - 1e-10)
    assert float(solve_transport(**problem).gap - exact.gap) == pytest.approx(1e-10 / 4 / size, rel=1e-3)


def test_violations_are_measured_against_the_size_of_the_problem():
    """1e-8 of the size is allowed: of 100 that is 1e-6, of 1 it is 1e-8."""
    gap = torch.zeros(2, dtype=torch.float64)
    slack, size = torch.tensor([-5e-7, -5e-9]).double(), torch.tensor([100.0, 1.0]).double()
    certify(gap, slack, size, "some")
    with pytest.raises(UncertifiedError) as error:
        certify(gap, slack, size.flip(0), "some")
    assert error.value.index == [(0,)]


# Mutations of the map of the paper's problem


def recertify_procrustes(problem, solution):
    return certify_procrustes(
        *(problem[name] for name in ("mu", "sigma", "theta", "bias", "margin")),
        solution.G,
        solution.g,
        solution.root,
        solution.bound,
        floor=problem["floor"],
    )


@pytest.mark.parametrize("floor", [None, "other", "singular"])
@pytest.mark.parametrize("rank", [None, 3])
def test_certificate_of_the_stored_matrix_is_that_of_the_solution(floor, rank):
    problem = draw_procrustes(5, 100.0, floor, "random", 1.645, 4, rank=rank)
    solution = solve_procrustes(**problem)
    certificate = recertify_procrustes(problem, solution)
    for name in ("value", "gap", "slack", "mean"):
        torch.testing.assert_close(getattr(certificate, name), getattr(solution, name))


@pytest.mark.parametrize("floor", [None, "other"])
@pytest.mark.parametrize("name", ["G", "g", "root", "bound"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_changed_matrix_is_refused_wherever_it_is_changed(floor, name, sign):
    problem = draw_procrustes(5, 100.0, floor, "random", 1.645, 4)
    solution = solve_procrustes(**problem)
    value = getattr(solution, name)
    noise = torch.randn(value.shape, generator=rng(3), dtype=torch.float64)
    changed = replace(solution, **{name: value + sign * 0.01 * noise})
    with pytest.raises(UncertifiedError) as caught:
        recertify_procrustes(problem, changed)
    assert caught.value.index == [(i,) for i in range(len(PLACES))]


def test_another_map_to_the_same_covariance_is_refused():
    """The constraint holds and the image has its covariance, but a reflection moves activations further."""
    problem = draw_procrustes(5, 100.0, "other", "random", 1.645, 4)
    solution = solve_procrustes(**problem)
    values, vectors = torch.linalg.eigh(problem["sigma"])
    signs = torch.ones(5, dtype=torch.float64)
    signs[0] = -1
    root = (vectors * values.sqrt()[:, None, :]) @ vectors.mT
    # Keeps Sigma: H Q H^{-1} with Q orthogonal.
    reflected = solution.G @ root @ (vectors * signs) @ vectors.mT @ torch.linalg.inv(root)
    changed = replace(solution, G=reflected, g=solution.mean - torch.einsum("nij,nj->ni", reflected, problem["mu"]))
    torch.testing.assert_close(changed.G @ problem["sigma"] @ changed.G.mT, solution.covariance)
    with pytest.raises(UncertifiedError, match="misses the covariance of its solution"):
        recertify_procrustes(problem, changed)


def test_directions_without_mass_must_be_left_as_they_are():
    problem = draw_procrustes(5, 100.0, None, "random", 1.645, 4, rank=3)
    solution = solve_procrustes(**problem)
    # Added along a direction across the weight, read from the null space: no moment and no score changes.
    null = torch.linalg.eigh(problem["sigma"]).eigenvectors[:, :, 0]
    across = torch.linalg.qr(torch.stack([problem["theta"], torch.ones(6, 5).double()], -1))[0][:, :, 1]
    changed = replace(solution, G=solution.G + 0.01 * across[:, :, None] * null[:, None, :])
    changed = replace(changed, g=solution.mean - torch.einsum("nij,nj->ni", changed.G, problem["mu"]))
    with pytest.raises(UncertifiedError, match="misses the covariance"):
        recertify_procrustes(problem, changed)


def test_a_root_below_its_floor_is_refused(monkeypatch):
    problem = draw_procrustes(5, 100.0, "large", "random", 1.645, 4)
    solve_moving = procrustes._solve_moving
    monkeypatch.setattr(
        procrustes, "_solve_moving", lambda flat, root, floor, *rest: solve_moving(flat, root, None, *rest)
    )
    with pytest.raises(UncertifiedError, match="the solution its floor, by"):
        solve_procrustes(**problem)


def test_a_failed_problem_is_named_by_its_place_in_the_batch():
    problem = draw_procrustes(4, 100.0, "other", "random", 1.645, 4)
    problem = {k: v.reshape(2, 3, *v.shape[1:]) if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    solution = solve_procrustes(**problem)
    constant = solution.g.clone()
    constant[1, 1] += 1
    with pytest.raises(UncertifiedError, match=r"1 of 6 problems, the first at index \(1, 1\)") as caught:
        recertify_procrustes(problem, replace(solution, g=constant))
    assert caught.value.index == [(1, 1)]


# Rounding that decides the answer


def near_null(variance, *, seed=4):
    """A weight along an axis of this variance, in general position; the other variances are 1 to 5."""
    axes = torch.linalg.qr(torch.randn(6, 6, generator=rng(seed), dtype=torch.float64))[0]
    values = torch.cat([torch.arange(1.0, 6.0).double(), torch.tensor([variance], dtype=torch.float64)])
    sigma = (axes * values) @ axes.mT
    score = 0.5 * max(variance, 1e-12) ** 0.5
    return {"mu": torch.zeros(6).double(), "sigma": sigma, "theta": axes[:, 5], "bias": score, "margin": 2.0}


def solve_with_a_floor(solve, problem):
    """The moved score must keep a deviation of 1."""
    floor = {"floor": torch.eye(6).double()} if solve is solve_procrustes else {"floor_std": 1.0}
    return solve(**problem, **floor)


@pytest.mark.parametrize("solve", [solve_transport, solve_procrustes])
@pytest.mark.parametrize("variance", [1e-13, 1e-11, 1e-9])
def test_a_weight_almost_in_the_null_space_is_refused_in_one_sentence(solve, variance):
    with pytest.raises(ConvergenceError, match=r"`theta` lies almost in the null space of `sigma`") as caught:
        solve_with_a_floor(solve, near_null(variance))
    assert ". " not in str(caught.value) and caught.value.index == [()]


@pytest.mark.parametrize("variance", [1e-13, 1e-10])
def test_a_cost_that_is_rounding_is_refused(variance):
    """Without a floor the score's spread vanishes, so that the constraint is certain; the cost is not."""
    with pytest.raises(UncertifiedError, match=r"`theta` lies almost in the null space of `sigma`"):
        solve_transport(**near_null(variance))
    assert abs(float(solve_procrustes(**near_null(variance)).gap)) < 1e-9


@pytest.mark.parametrize("solve", [solve_transport, solve_procrustes])
@pytest.mark.parametrize("variance", [1e-6, 1e-3])
def test_a_small_spread_that_rounding_leaves_alone_is_solved(solve, variance):
    assert float(solve(**near_null(variance)).slack) >= -1e-12
    assert float(solve_with_a_floor(solve, near_null(variance)).slack) >= -1e-9


@pytest.mark.parametrize("solve", [solve_transport, solve_procrustes])
def test_a_ridge_makes_a_refused_problem_solvable(solve):
    problem = near_null(1e-12)
    problem["sigma"] = problem["sigma"] + 1e-6 * torch.eye(6, dtype=torch.float64)
    assert not bool(solve_with_a_floor(solve, problem).identity)


@pytest.mark.parametrize("solve", [solve_transport, solve_procrustes])
def test_a_score_that_cancels_is_refused(solve):
    theta = torch.tensor([1.0, 1.0], dtype=torch.float64)
    problem = {"mu": 1e12 * theta, "sigma": torch.eye(2), "theta": theta, "bias": 1.0 - 2e12, "margin": 1.0}
    with pytest.raises(UncertifiedError, match="centre `mu`"):
        solve(**problem)
    assert not bool(solve(**{**problem, "mu": theta, "bias": -1.0}).identity)


def test_a_weight_almost_in_the_null_space_of_the_metric_is_refused():
    problem = near_null(1.0)
    metric = near_null(1e-12)["sigma"]
    with pytest.raises(UncertifiedError, match="`theta` lies almost in the null space of `metric`"):
        solve_transport(**problem, metric=metric)
    solve_transport(**problem, metric=metric + 1e-3 * torch.eye(6))


@pytest.mark.parametrize("solve", [solve_transport, solve_procrustes])
@pytest.mark.parametrize("length", [1e-160, 1e-320])
def test_a_weight_whose_square_is_no_number_is_refused(solve, length):
    with pytest.raises(InvalidArgumentError, match="`theta` must be longer than 1e-140"):
        solve(torch.ones(2), torch.eye(2), torch.full((2,), length, dtype=torch.float64), 0.0, 1.0)
    scaled = solve(torch.ones(2), torch.eye(2), torch.full((2,), 1e-130, dtype=torch.float64), 0.0, 1.0)
    plain = solve(torch.ones(2), torch.eye(2), torch.ones(2, dtype=torch.float64), 0.0, 1.0)
    torch.testing.assert_close(scaled.G, plain.G)


def test_an_indefinite_metric_is_refused():
    problem = draw(d=3)
    problem["metric"] = torch.diag(torch.tensor([1.0, 1.0, -0.1]))
    problem["theta"] = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    with pytest.raises(InvalidArgumentError, match="`metric` must be positive definite; .* 1 matrices have no"):
        solve_transport(**problem)
    problem["metric"] = torch.diag(torch.tensor([1.0, 1.0, 0.1]))
    solve_transport(**problem)
