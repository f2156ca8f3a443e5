"""The closed form of least KL, against theorems and dense algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.solvers.least_kl import (
    COUPLINGS,
    RIDGES,
    Sample,
    choose_regularisation,
    crossed_ratios,
    solve_least_kl,
)


def make_problem(seed: int, n_texts: int = 40, n_sites: int = 3, d: int = 4) -> tuple[torch.Tensor, Sample]:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(n_sites, d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(n_sites * d, n_sites * d, generator=generator, dtype=torch.float64)
    scores = torch.randn(n_texts, n_sites * d, generator=generator, dtype=torch.float64) @ mixing
    return gradient, Sample(scores.unflatten(1, (n_sites, d)), 7 * n_texts)


def dense_matrix(sample: Sample, ridge: float, coupling: float) -> torch.Tensor:
    """`A` of the module's docstring, written out."""
    sites, d = sample.scores.shape[1:]
    flat = sample.scores.flatten(1)
    information = flat.T @ flat / sample.n_tokens
    within = torch.block_diag(*[torch.ones(d, d, dtype=torch.float64)] * sites)
    blocks = information * within
    added = blocks.diagonal().unflatten(0, (sites, d)).mean(1).repeat_interleave(d)
    return blocks + coupling * information + ridge * torch.diag(added)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0, 20.0]), st.sampled_from([1e-3, 0.1, 2.0]))
def test_the_direction_solves_the_dense_system(seed, coupling, ridge):
    gradient, sample = make_problem(seed)
    solution = solve_least_kl(gradient, sample, 0.05, ridge=ridge, coupling=coupling)
    dense = torch.linalg.solve(dense_matrix(sample, ridge, coupling), gradient.flatten())
    scale = solution.displacement.flatten() / dense
    torch.testing.assert_close(scale, scale[:1].expand_as(scale), rtol=1e-6, atol=0)
    assert float(scale[0]) > 0
    assert solution.residual < 1e-8
    if coupling > 0:
        other = solve_least_kl(gradient, sample, 0.05, ridge=ridge, coupling=0.0)
        assert not torch.allclose(other.displacement, solution.displacement, rtol=1e-3)


@given(st.integers(0, 1000), st.floats(0.001, 2.0))
def test_the_predicted_kl_is_the_budget(seed, budget):
    gradient, sample = make_problem(seed)
    solution = solve_least_kl(gradient, sample, budget, coupling=0.3)
    assert sample.kl(solution.displacement) == pytest.approx(budget)
    assert float((gradient * solution.displacement).sum()) == pytest.approx(solution.gain)


@given(st.integers(0, 1000))
def test_no_other_displacement_of_the_same_kl_gains_more(seed):
    """With all of F and next to no ridge the solution is the optimum of the stated problem."""
    gradient, sample = make_problem(seed, n_texts=200)
    solution = solve_least_kl(gradient, sample, 0.1, ridge=1e-9, coupling=1e9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = solution.displacement + 0.3 * solution.displacement.norm() * torch.randn(
            gradient.shape, generator=generator, dtype=torch.float64
        )
        other = other * (0.1 / sample.kl(other)) ** 0.5
        assert float((gradient * other).sum()) <= solution.gain * (1 + 1e-6)


def test_a_coupling_is_chosen_where_heads_act_together():
    """Two heads with the same scores: blocks take them for independent, and the KL is twice what they predict."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, 1, 3, generator=generator, dtype=torch.float64).expand(400, 2, 3)
    own = torch.randn(400, 2, 3, generator=generator, dtype=torch.float64)
    gradient = torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0]], dtype=torch.float64)
    together = [Sample(3 * common[half] + 0.3 * own[half], 200) for half in (slice(200), slice(200, None))]
    ridge, coupling = choose_regularisation((gradient, gradient), (together[0], together[1]))
    assert coupling > 0.1

    def ratio(samples: list[Sample], coupling: float) -> float:
        (value,) = crossed_ratios((gradient, gradient), (samples[0], samples[1]), ridge=ridge, couplings=[coupling])
        return value

    assert ratio(together, coupling) > 1.05 * ratio(together, 0.0)
    apart = [Sample(own[half], 200) for half in (slice(200), slice(200, None))]
    assert max(ratio(apart, coupling) for coupling in COUPLINGS) < 1.05 * ratio(apart, 0.0)


def test_what_is_settled_is_not_chosen():
    gradient, sample = make_problem(2)
    halves = ((gradient, gradient), (sample, sample))
    assert choose_regularisation(*halves, ridge=7.0, coupling=0.5) == (7.0, 0.5)
    ridge, coupling = choose_regularisation(*halves, coupling=0.5)
    assert ridge in RIDGES
    assert coupling == 0.5


def test_a_head_without_scores_stays_where_it_is():
    gradient, sample = make_problem(1)
    scores, gradient = sample.scores.clone(), gradient.clone()
    scores[:, 1], gradient[1] = 0, 0
    solution = solve_least_kl(gradient, Sample(scores, sample.n_tokens), 0.1, coupling=0.5)
    assert not bool(solution.displacement[1].any())
    assert bool(solution.displacement[0].any())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": 0.0}, InvalidArgumentError, "`budget` must lie strictly above 0"),
        ({"ridge": -1.0}, InvalidArgumentError, "`ridge` must lie strictly above 0"),
        ({"coupling": -1.0}, InvalidArgumentError, "`coupling` must lie at or above 0"),
        ({"gradient": torch.zeros(3, 4)}, InvalidArgumentError, "zero for all heads"),
        ({"gradient": torch.full((3, 4), torch.nan)}, DataError, "`gradient` must be finite"),
        ({"sample": Sample(torch.zeros(0, 3, 4), 0)}, DataError, "holds no text"),
    ],
)
def test_refusals(change, error, message):
    gradient, sample = make_problem(0)
    arguments = {"gradient": gradient, "sample": sample, "budget": 0.1, **change}
    with pytest.raises(error, match=message):
        solve_least_kl(**arguments)
