"""Batched L-BFGS against SciPy, and what holds for any loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize as scipy_minimize

from radiant_lens.detectors.lbfgs import affine_scores, minimize

L2 = 0.05


def problem(seed=0, n_heads=3, n=60, d=4):
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], n)
    x = rng.normal(size=(n_heads, n, d)) * np.arange(1, d + 1) + 0.5 * sign[:, None]
    return torch.tensor(x), torch.tensor(sign)


def logistic(sign):
    def loss(scores):
        margin = -sign * scores
        return torch.nn.functional.softplus(margin).mean(1), -sign * margin.sigmoid() / len(sign)

    return loss


def smoothed_errors(sign):
    """Not convex."""

    def loss(scores):
        s = (-3 * sign * scores).sigmoid()
        return s.mean(1), -3 * sign * s * (1 - s) / len(sign)

    return loss


def objective(x, loss, parameters, l2=L2):
    return loss(affine_scores(x, parameters))[0] + l2 / 2 * parameters[:, :-1].square().sum(1)


def start(x):
    return torch.zeros(x.shape[0], x.shape[2] + 1, dtype=x.dtype)


def solve(x, loss, **options):
    return minimize(x, loss, start(x), **{"l2": L2, "max_iterations": 500, "tolerance": 0.0, **options})


def test_affine_scores_of_a_hand_made_example():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert affine_scores(x, torch.tensor([[10.0, 1.0, 0.5]])).tolist() == [[12.5, 34.5]]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000))
def test_the_minimum_is_that_of_scipy(seed):
    x, sign = problem(seed)
    ours = solve(x, logistic(sign))
    values = objective(x, logistic(sign), ours)
    for head in range(len(x)):

        def value(p, head=head):
            margin = -sign.numpy() * (x[head].numpy() @ p[:-1] + p[-1])
            return np.logaddexp(0, margin).mean() + L2 / 2 * (p[:-1] ** 2).sum()

        theirs = scipy_minimize(value, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
        assert float(values[head]) == pytest.approx(theirs.fun, rel=1e-9)
        np.testing.assert_allclose(ours[head], theirs.x, rtol=1e-3, atol=1e-4)


def test_the_gradient_is_zero_at_the_minimum_and_not_at_the_start():
    x, sign = problem()
    for parameters, small in ((solve(x, logistic(sign)), True), (start(x), False)):
        p = parameters.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(x, logistic(sign), p).sum(), p)
        assert bool((gradient.norm(dim=1) < 1e-6).all()) is small


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_no_loss_ends_above_its_start(seed, max_iterations):
    x, sign = problem(seed)
    loss = smoothed_errors(sign)
    begin = torch.tensor(np.random.default_rng(seed).normal(size=(3, 5)))
    end = minimize(x, loss, begin, l2=L2, max_iterations=max_iterations)
    assert bool((objective(x, loss, end) <= objective(x, loss, begin) + 1e-12).all())


def test_each_step_lowers_a_loss_that_is_not_convex():
    x, sign = problem(n=200)
    seen = [start(x)]
    end = solve(x, smoothed_errors(sign), visit=seen.append, max_iterations=30)
    values = torch.stack([objective(x, smoothed_errors(sign), p) for p in seen])
    assert bool((values.diff(dim=0) <= 1e-12).all())
    assert bool((values[-1] < values[0] - 0.01).all())
    assert torch.equal(seen[-1], end)


def test_heads_do_not_affect_each_other():
    x, sign = problem()
    together = solve(x, smoothed_errors(sign), max_iterations=7)
    alone = torch.cat([solve(x[i : i + 1], smoothed_errors(sign), max_iterations=7) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


def test_the_penalty_shrinks_weights_and_spares_the_bias():
    x, sign = problem()
    weak, strong = (solve(x, logistic(sign), l2=l2) for l2 in (1e-3, 10.0))
    assert bool((strong[:, :-1].norm(dim=1) < 0.5 * weak[:, :-1].norm(dim=1)).all())
    shifted = torch.where(sign > 0, 2.0, 1.0).double()  # two to one in favour of one class

    def weighted(scores):
        values, slopes = torch.nn.functional.softplus(-sign * scores), -sign * (-sign * scores).sigmoid()
        return (shifted * values).sum(1), shifted * slopes

    flat = solve(torch.zeros_like(x), weighted, l2=1e6)
    n_positive, n_negative = int((sign > 0).sum()), int((sign < 0).sum())
    np.testing.assert_allclose(flat[:, -1], np.log(2 * n_positive / n_negative), rtol=1e-6)
    assert not flat[:, :-1].any()


def test_unlike_scales_take_few_steps():
    x, sign = problem()
    x = x * torch.tensor([1.0, 3.0, 10.0, 30.0], dtype=x.dtype)
    least = objective(x, logistic(sign), solve(x, logistic(sign)))
    after_60 = objective(x, logistic(sign), solve(x, logistic(sign), max_iterations=60))
    torch.testing.assert_close(after_60, least, rtol=1e-6, atol=0)


def logistic_curvature(scores):
    return scores.sigmoid() * (-scores).sigmoid() / scores.shape[1]


def test_in_the_metric_of_the_loss_directions_of_little_spread_take_no_more_steps():
    x, sign = problem()
    mixed = x @ torch.tensor(np.random.default_rng(3).normal(size=(4, 4))) * torch.tensor([1.0, 0.1, 0.01, 0.001])
    options = {"l2": 1e-9}
    least = objective(
        mixed, logistic(sign), solve(mixed, logistic(sign), **options, curvature=logistic_curvature), 1e-9
    )
    with_metric, without = (
        objective(mixed, logistic(sign), solve(mixed, logistic(sign), max_iterations=12, **options, **more), 1e-9)
        for more in ({"curvature": logistic_curvature}, {})
    )
    torch.testing.assert_close(with_metric, least, rtol=1e-3, atol=0)
    assert bool((without > 1.01 * least).any())


def test_the_metric_changes_the_way_and_not_the_minimum():
    x, sign = problem()
    plain, turned = solve(x, logistic(sign)), solve(x, logistic(sign), curvature=logistic_curvature)
    torch.testing.assert_close(plain, turned, rtol=1e-3, atol=1e-4)
    seen = []
    solve(x, logistic(sign), max_iterations=1, visit=seen.append)
    solve(x, logistic(sign), max_iterations=1, visit=seen.append, curvature=logistic_curvature)
    assert not torch.allclose(*seen)


def test_a_feature_that_never_varies_does_not_stop_the_metric():
    x, sign = problem()
    x[..., 2] = 0.0
    parameters = solve(x, logistic(sign), curvature=logistic_curvature)
    assert bool(parameters.isfinite().all()) and not parameters[:, 2].any()


def test_it_stops_when_nothing_is_gained_and_never_after_the_limit():
    x, sign = problem()
    steps = {}
    for name, options in {
        "loose": {"tolerance": 1e-2},
        "tight": {"tolerance": 1e-9},
        "limit": {"max_iterations": 3},
    }.items():
        seen = []
        solve(x, logistic(sign), visit=seen.append, **options)
        steps[name] = len(seen)
    assert steps["loose"] < steps["tight"] < 500
    assert steps["limit"] == 3


def test_scores_do_not_depend_on_how_activations_lie_in_memory():
    x, _ = problem()
    parameters = torch.tensor(np.random.default_rng(1).normal(size=(3, 5)))
    naive = np.einsum("hnd,hd->hn", x, parameters[:, :-1]) + parameters[:, -1:].numpy()
    turned = x.mT.contiguous().mT
    assert turned.stride() != x.stride()
    for laid_out in (x, turned):
        np.testing.assert_allclose(affine_scores(laid_out, parameters), naive, rtol=1e-12)


def test_a_head_that_takes_many_halvings_takes_the_same_step_among_others():
    x, sign = problem()
    x[1] *= 1000  # a first step of length one is far too long there
    together = solve(x, logistic(sign), max_iterations=3)
    alone = torch.cat([solve(x[i : i + 1], logistic(sign), max_iterations=3) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert bool((objective(x, logistic(sign), together) < objective(x, logistic(sign), start(x))).all())


def test_the_penalty_on_the_starting_weights_counts():
    x, sign = problem()
    begin = torch.tensor([3.0, -2.0, 1.0, 2.0, 0.0], dtype=x.dtype).repeat(3, 1)
    end = minimize(x, logistic(sign), begin, l2=5.0, max_iterations=1)
    assert bool((objective(x, logistic(sign), end, 5.0) < 0.9 * objective(x, logistic(sign), begin, 5.0)).all())


def test_one_step_in_the_exact_metric_solves_least_squares():
    """Far from the origin, where the metric's entries between weights and bias matter, and near the solution."""
    x, target = problem()[0] + 2.0, torch.linspace(-0.01, 0.03, 60, dtype=torch.float64)

    def squares(scores):
        return 0.5 * (scores - target).square().sum(1), scores - target

    parameters = solve(x, squares, l2=0.3, max_iterations=1, curvature=torch.ones_like)
    wide = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    penalty = torch.diag(torch.tensor([0.3] * 4 + [0.0], dtype=x.dtype))
    expected = torch.linalg.solve(wide.mT @ wide + penalty, (wide.mT @ target[:, None])[..., 0])
    torch.testing.assert_close(parameters, expected, rtol=1e-2, atol=1e-6)
