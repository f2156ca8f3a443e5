"""Fitting the scores of all heads: parity with scikit-learn, and what each loss is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from radiant_lens.detectors.scores import LOSSES, AffineScores, Sample, fit_heads
from radiant_lens.statistics.rates import error_rates


def gaussians(n=400, n_heads=3, d=5, shift=1.0, share=0.5, seed=0, dtype=torch.float64) -> Sample:
    """Correlated Gaussians of unlike scales, the undesirable ones shifted; heads differ."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < share * n).astype(int)
    mixing = np.random.default_rng(99).normal(size=(n_heads, d, d)) + 2 * np.eye(d)
    x = rng.normal(size=(n_heads, n, d))
    x[..., 0] += shift * labels
    x = (x @ mixing) * np.logspace(-1, 1, d) + 3
    return Sample(torch.tensor(x, dtype=dtype), torch.tensor(labels))


def scores(fitted: AffineScores, sample: Sample):
    return torch.einsum("hnd,hd->nh", sample.x, fitted.weights) + fitted.biases


def rates(fitted: AffineScores, sample: Sample):
    return error_rates(scores(fitted, sample) >= 0, sample.labels)


def smoothed_risk(fitted: AffineScores, sample: Sample, fnr_weight: float):
    s = scores(fitted, sample).sigmoid()
    return s[sample.labels == 0].mean(0) + fnr_weight * (1 - s[sample.labels == 1]).mean(0)


# Parity


@pytest.mark.parametrize("fnr_weight", [1.0, 2.5])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_cross_entropy_equals_logistic_regression(fnr_weight, share):
    sample, l2 = gaussians(share=share), 1e-2
    fitted = fit_heads(sample, loss="cross_entropy", fnr_weight=fnr_weight, l2=l2, max_iterations=500)
    y = sample.labels.numpy()
    weight = np.where(y == 1, fnr_weight / (y == 1).sum(), 1 / (y == 0).sum())
    for head, x in enumerate(sample.x.numpy()):
        scaler = StandardScaler().fit(x)
        theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(
            scaler.transform(x), y, sample_weight=weight
        )

        def objective(s, w):
            return weight @ np.logaddexp(0, np.where(y == 1, -s, s)) + l2 / 2 * (w**2).sum()

        ours_scores = scores(fitted, sample)[:, head].numpy()
        least = objective(theirs.decision_function(scaler.transform(x)), theirs.coef_)
        # The descent stops once a step gains less than a millionth.
        assert objective(ours_scores, fitted.weights[head].numpy() * scaler.scale_) == pytest.approx(least, rel=1e-5)
        np.testing.assert_allclose(ours_scores, theirs.decision_function(scaler.transform(x)), atol=0.02)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_lda_equals_the_discriminant_of_scikit_learn(share):
    sample, shrinkage = gaussians(share=share), 1e-4 / (1 + 1e-4)  # our ridge, as a share
    n, std = len(sample.labels), sample.x.std(dim=1, correction=0).numpy()
    fitted = fit_heads(sample, loss="lda")
    for head, x in enumerate(sample.x.numpy()):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(
            x / std[head], sample.labels.numpy()
        )
        # They divide the pooled covariance by n, we by n - 2.
        expected = theirs.coef_[0] * (1 - shrinkage) * (n - 2) / n
        np.testing.assert_allclose(fitted.weights[head].numpy() * std[head], expected, rtol=1e-6)
        bias = -expected @ theirs.means_.mean(0)
        assert float(fitted.biases[head]) == pytest.approx(bias, rel=1e-6)


def naive_discriminant(x, y, fnr_weight, whiten):
    x_ = (x - x.mean(0)) / x.std(0)
    mu0, mu1 = x_[y == 0].mean(0), x_[y == 1].mean(0)
    centred = x_ - np.where(y[:, None] == 1, mu1, mu0)
    within = centred.T @ centred / (len(x) - 2)
    within = within + 1e-4 * np.trace(within) / len(mu0) * np.eye(len(mu0))
    difference = mu1 - mu0
    if whiten:
        w = np.linalg.solve(within, difference)
    else:
        w = difference * (difference @ difference) / (difference @ within @ difference)
    return x_ @ w + np.log(fnr_weight) - w @ (mu0 + mu1) / 2


@pytest.mark.parametrize("loss", ["lda", "mass_mean"])
@pytest.mark.parametrize("fnr_weight", [1.0, 2.5])
def test_closed_forms_equal_the_naive_ones(loss, fnr_weight):
    sample = gaussians(share=0.3)
    ours = scores(fit_heads(sample, loss=loss, fnr_weight=fnr_weight), sample)
    for head, x in enumerate(sample.x.numpy()):
        naive = naive_discriminant(x, sample.labels.numpy(), fnr_weight, loss == "lda")
        np.testing.assert_allclose(ours[:, head], naive, rtol=1e-6, atol=1e-7)


def test_mass_mean_points_along_the_difference_of_standardised_means_and_lda_does_not():
    sample = gaussians()
    std = sample.x.std(dim=1, correction=0)
    difference = (sample.x[:, sample.labels == 1].mean(1) - sample.x[:, sample.labels == 0].mean(1)) / std
    for loss, along in (("mass_mean", True), ("lda", False)):
        direction = fit_heads(sample, loss=loss).weights * std
        cosine = torch.nn.functional.cosine_similarity(direction, difference)
        assert bool((cosine > 1 - 1e-9).all()) is along


# What holds for every loss


@pytest.mark.parametrize("loss", LOSSES)
def test_heads_fitted_together_equal_heads_fitted_alone(loss):
    sample, stop = gaussians(), gaussians(seed=1)
    together = fit_heads(sample, loss=loss, stop=stop, max_iterations=6)
    for head in range(3):
        one, its_stop = (Sample(s.x[head : head + 1], s.labels) for s in (sample, stop))
        alone = fit_heads(one, loss=loss, stop=its_stop, max_iterations=6)
        torch.testing.assert_close(together.weights[head : head + 1], alone.weights, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(together.biases[head : head + 1], alone.biases, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(together.weights[0], together.weights[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_shifted_classes_are_told_apart_and_equal_ones_are_not(loss):
    for shift, told_apart in ((1.5, True), (0.0, False)):
        train, stop, test = (gaussians(n=600, shift=shift, seed=seed) for seed in (0, 1, 2))
        risk = rates(fit_heads(train, loss=loss, stop=stop), test).risk(1.0)
        assert bool((risk < 0.85).all()) is told_apart
        assert bool(((risk - 1).abs() < 0.12).all()) is not told_apart


@pytest.mark.parametrize("loss", LOSSES)
def test_a_greater_weight_trades_misses_for_false_alarms(loss):
    train, stop, test = (gaussians(n=600, seed=seed) for seed in (0, 1, 2))
    fpr, fnr = zip(*(rates(fit_heads(train, loss=loss, fnr_weight=w, stop=stop), test) for w in (0.4, 1.0, 2.5)))
    for i in range(2):
        assert bool((fnr[i] > fnr[i + 1]).all())
        assert bool((fpr[i] < fpr[i + 1]).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_flags_do_not_depend_on_units(loss):
    sample = gaussians()
    moved = Sample(sample.x * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0], dtype=torch.float64) - 7, sample.labels)
    one, other = (scores(fit_heads(s, loss=loss, max_iterations=20), s) for s in (sample, moved))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_feature_is_ignored(loss):
    sample = gaussians()
    constant = torch.full_like(sample.x[..., :1], 5.0)
    wider = fit_heads(Sample(torch.cat([sample.x, constant], dim=-1), sample.labels), loss=loss, max_iterations=20)
    assert bool(torch.isfinite(wider.weights).all())
    assert bool((wider.weights[:, -1].abs() < 1e-6).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_single_precision_is_kept_and_close_to_double(loss):
    sample = gaussians()
    single = Sample(sample.x.float(), sample.labels)
    fitted = fit_heads(single, loss=loss, max_iterations=20)
    assert fitted.weights.dtype == torch.float32
    torch.testing.assert_close(
        scores(fitted, single),
        scores(fit_heads(sample, loss=loss, max_iterations=20), sample).float(),
        rtol=0.02,
        atol=0.05,
    )


# The risk loss


@pytest.mark.parametrize("fnr_weight", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_the_risk_loss_never_ends_above_its_start(fnr_weight, shift):
    sample = gaussians(shift=shift)
    begin, end = (fit_heads(sample, loss=loss, fnr_weight=fnr_weight, l2=0.0) for loss in ("cross_entropy", "risk"))
    before, after = (smoothed_risk(f, sample, fnr_weight) for f in (begin, end))
    assert bool((after <= before + 1e-9).all())
    assert bool((after < before - 1e-3).any())


def test_the_risk_loss_keeps_the_state_of_least_risk_on_the_stop_half():
    train, stop = gaussians(n=60, shift=0.3), gaussians(n=60, shift=0.3, seed=1)
    steps = [rates(fit_heads(train, loss="risk", stop=stop, max_iterations=n), stop).risk(1.0) for n in (1, 3, 10, 40)]
    without = rates(fit_heads(train, loss="risk", max_iterations=40), stop).risk(1.0)
    begin = rates(fit_heads(train, loss="cross_entropy", max_iterations=40), stop).risk(1.0)
    assert bool((steps[-1] <= torch.minimum(without, begin) + 1e-12).all())
    assert bool((steps[-1] < without).any())


def test_a_stop_half_of_the_other_labels_keeps_another_state():
    train, stop = gaussians(shift=0.5), gaussians(shift=0.5, seed=1)
    ours, other = (fit_heads(train, loss="risk", stop=Sample(stop.x, y)) for y in (stop.labels, 1 - stop.labels))
    assert not torch.allclose(ours.weights, other.weights)


@pytest.mark.parametrize("loss", ["cross_entropy", "lda", "mass_mean"])
def test_the_other_losses_do_not_look_at_the_stop_half(loss):
    train, stop = gaussians(shift=0.5), gaussians(shift=0.5, seed=1)
    assert torch.equal(fit_heads(train, loss=loss).weights, fit_heads(train, loss=loss, stop=stop).weights)


def test_with_weak_heads_a_great_weight_makes_flagging_everything_best():
    train, stop, test = (gaussians(n=600, shift=0.2, seed=seed) for seed in (0, 1, 2))
    assert bool((rates(fit_heads(train, loss="risk", fnr_weight=6.0, stop=stop), test).fpr > 0.95).all())
    assert bool((rates(fit_heads(train, loss="risk", fnr_weight=1.0, stop=stop), test).fpr < 0.95).all())


def test_the_start_is_among_the_states_that_the_stop_half_chooses_from():
    """Labels that the start gets all right: no later state is better."""
    train, first = gaussians(shift=0.6), gaussians(n=800, shift=0.6, seed=5)
    begin = fit_heads(train, loss="cross_entropy")
    values = scores(begin, first)
    sure = (values.abs() > 0.1).all(1) & ((values >= 0).all(1) | (values < 0).all(1))
    stop = Sample(first.x[:, sure], (values[sure, 0] >= 0).long())
    best, last = fit_heads(train, stop=stop), fit_heads(train)
    assert bool((rates(best, stop).risk(1.0) == 0).all())
    # Scores of another size are another state.
    assert bool((last.weights.norm(dim=1) > 1.5 * begin.weights.norm(dim=1)).all())
    torch.testing.assert_close(best.weights, begin.weights, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_dimension_that_is_always_zero_changes_nothing(loss):
    sample = gaussians()
    dead = Sample(torch.cat([sample.x, torch.zeros_like(sample.x[..., :1])], dim=-1), sample.labels)
    one, other = fit_heads(sample, loss=loss, fnr_weight=1.0), fit_heads(dead, loss=loss, fnr_weight=1.0)
    assert bool(other.weights.isfinite().all())
    # The discriminant's ridge is an average over dimensions.
    torch.testing.assert_close(other.weights[:, :-1], one.weights, rtol=0.05, atol=1e-4)
