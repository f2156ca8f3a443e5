"""The paper's problem against a conic solver."""

from __future__ import annotations

import math

import pytest
from reference.conic import procrustes_value
from reference.problems import ALIGNMENTS, CONDITIONS, FLOORS, KAPPAS, PLACES, assert_certified, draw, one

from radiant_lens.solvers.procrustes import solve_procrustes


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_value_is_that_of_a_conic_solver(kappa, condition, floor):
    seed = int(kappa) + int(math.log10(condition))
    problem = draw(8, condition, floor, ALIGNMENTS[seed % len(ALIGNMENTS)], kappa, seed)
    assert_parity(problem, places=[seed % 2, 2 + seed % 4])


def assert_parity(problem, places):
    solution = solve_procrustes(**problem)
    assert_certified(problem, solution)
    for i in places:
        expected = procrustes_value(**one(problem, i))
        size = max(expected, 1e-3 * float(problem["sigma"][i].trace()))
        assert abs(float(solution.value[i]) - expected) <= 1e-6 * size
        # The twin: what the test allows is far less than what a slightly larger bias would cost.
        step = 0.1 * problem["theta"][i].norm() * problem["sigma"][i].trace().sqrt()
        other = solve_procrustes(**{**one(problem, i), "bias": problem["bias"][i] + solution.slack[i] + step})
        assert float(other.value) - expected > 2e-6 * size


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("floor", [None, "other", "singular"])
def test_value_is_that_of_a_conic_solver_for_every_direction(alignment, floor):
    assert_parity(draw(8, 1e4, floor, alignment, 1.645, 5), places=range(len(PLACES)))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("alignment", ["random", "least"])
@pytest.mark.parametrize("floor", [None, "other", "singular"])
def test_value_is_that_of_a_conic_solver_for_singular_covariances(rank, alignment, floor):
    """With "least" the weight lies in the null space, where a mean below the boundary has met the constraint."""
    problem = draw(8, 100.0, floor, alignment, 1.645, rank, rank=rank)
    assert_parity(problem, places=[3, 4] if alignment == "least" else [1, 4])


@pytest.mark.parametrize("floor", [None, "other"])
def test_value_is_that_of_a_conic_solver_in_32_dimensions(floor):
    assert_parity(draw(32, 1e4, floor, "discriminant", 5.0, 1), places=[4])


@pytest.mark.slow
@pytest.mark.parametrize("d", [32, 64])
@pytest.mark.parametrize("floor", [None, "other", "singular"])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_value_is_that_of_a_conic_solver_over_the_whole_grid(kappa, condition, floor, d):
    seed = int(kappa) + int(math.log10(condition)) + d
    problem = draw(d, condition, floor, ALIGNMENTS[seed % len(ALIGNMENTS)], kappa, seed)
    assert_parity(problem, places=[1 + seed % 5])


@pytest.mark.slow
@pytest.mark.parametrize("d", [32, 64])
@pytest.mark.parametrize("alignment", ["random", "least"])
@pytest.mark.parametrize("floor", [None, "other"])
def test_value_is_that_of_a_conic_solver_for_large_singular_covariances(floor, alignment, d):
    assert_parity(draw(d, 100.0, floor, alignment, 1.645, d, rank=d // 2), places=[4])
