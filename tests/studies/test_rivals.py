"""Rivals of the benchmark: published methods said with edits of heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from radiant_lens.studies.benchmark import ARMS, Benchmark
from radiant_lens.studies.benchmark.arms import SteeringArm


@pytest.fixture(scope="module")
def fold(model, facts):
    return Benchmark(model, replace(facts, contexts=None).head(60)).make_fold(0)


def steering_of(fold, name, gate):
    arm = ARMS[name]
    assert isinstance(arm, SteeringArm)
    assert gate in arm.gates(fold.gates)
    return arm.fit(fold, gate)


def test_the_effective_heads_of_mean_shift_are_some_of_all(fold):
    every = steering_of(fold, "mean shift", "none")
    chosen = steering_of(fold, "mean shift, effective heads", "none")
    assert set(chosen.sites) < set(every.sites)
    layer = chosen.layers[0]
    z = fold.caches[0].z[:5, layer]
    heads = [site.head for site in chosen.sites if site.layer == layer]
    assert torch.equal(chosen.edit(z, layer)[:, heads], every.edit(z, layer)[:, heads])


def test_mediated_heads_are_chosen_by_edits_that_were_made(fold):
    chosen = steering_of(fold, "ITI, mediated heads", "none")
    assert 0 < len(chosen.sites) < fold.detector.head_risk_.numel()
    assert fold.validation.groups <= set(chosen.meta["seen_groups"])


def test_caa_moves_one_layer_and_meets_a_budget(fold):
    chosen = steering_of(fold, "CAA", "none")
    assert len(chosen.layers) == 1
    assert len(chosen.sites) == fold.model.cfg.n_heads
    assert chosen.at_kl(fold.model, fold.validation, 0.02).meta["kl_budget"] == 0.02


def test_flagged_heads_move_to_their_threshold_and_others_stay(fold):
    chosen = steering_of(fold, "MAGS-like", "head")
    layer = chosen.layers[0]
    z = fold.caches[0].z[:, layer].double()
    heads = [site.head for site in chosen.sites if site.layer == layer]
    weights, biases = (values[layer, heads].double() for values in (fold.detector.weights_, fold.detector.biases_))
    before = torch.einsum("nsd,sd->ns", z[:, heads], weights) + biases
    after = torch.einsum("nsd,sd->ns", chosen.edit(z, layer)[:, heads], weights) + biases
    flagged = before >= 0
    spread = before.std()
    assert float(after[flagged].abs().max()) < 0.01 * spread
    assert torch.equal(after[~flagged], before[~flagged])
    assert float(before[flagged].max()) > 0.1 * spread


def test_strengths_of_radiant_are_factors_of_its_edits_that_meet_the_budget(model, facts):
    # Enough validation groups for heads to be significant.
    fold = Benchmark(model, replace(facts, contexts=None).head(140)).make_fold(0)
    base, chosen = (steering_of(fold, name, "head") for name in ("RADIANT", "least KL, strengths of RADIANT"))
    assert chosen.sites == base.sites
    layer = chosen.layers[0]
    moved, before = (one.displace(fold.caches[0].z[:50, layer], layer).displacement for one in (chosen, base))
    # One factor for each head, whatever the activation.
    factors = (moved * before).sum((0, 2)) / before.square().sum((0, 2))
    torch.testing.assert_close(moved, factors[:, None] * before, rtol=1e-4, atol=1e-5)
    first, second = chosen.meta["least_kl"]["steps"]
    budget = chosen.meta["kl_budget"]
    assert first["measured_kl"] == pytest.approx(budget / 2, rel=0.03)
    assert second["measured_kl"] == pytest.approx(budget, rel=0.03)
