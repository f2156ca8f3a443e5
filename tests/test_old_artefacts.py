"""Artefacts written by version 0.1.0 can be loaded and give the same results as then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import radiant_lens as rl

FOLDER = Path(__file__).parent / "artefacts" / "0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("steering")])
def test_steerings_edit_as_they_did(name):
    steering = rl.Steering.load(FOLDER / name)
    n_heads, d_head = steering.scores.weights.shape[1:]
    z = 3 * torch.randn(5, n_heads, d_head, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    n_gated = 0
    for layer, sums in EXPECTED[name].items():
        edited, gated = steering.edit(z, int(layer)), steering.displace(z, int(layer)).gated
        # In a layer of the steering with a trust region, all activations of this seed with an open gate lie outside.
        assert torch.equal(edited, z) == (not gated.any())
        torch.testing.assert_close(edited.double().sum(-1), torch.tensor(sums, dtype=torch.float64))
        n_gated += int(gated.sum())
    assert n_gated > 0


def test_a_steering_of_the_embedded_model_still_fits_it(model):
    with rl.steer(model, rl.Steering.load(FOLDER / "steering-tiny"), trace=True) as trace, torch.no_grad():
        model(torch.tensor([[7, 8, 9]]))
    assert len(trace.to_dataframe())


@pytest.mark.parametrize("name", ["cache", "store"])
def test_caches_have_the_same_activations(name):
    z = rl.HeadCache.load(FOLDER / name).z
    torch.testing.assert_close(z.double().sum((0, 3)), torch.tensor(EXPECTED[name], dtype=torch.float64))


def test_evaluations_have_the_same_metrics():
    metrics = rl.Evaluation.load(FOLDER / "evaluation.json").metrics
    assert set(metrics) == set(EXPECTED["evaluation"])
    for name, (value, _, _) in EXPECTED["evaluation"].items():
        # Intervals are computed as the file is loaded, by a better method than then.
        assert metrics[name].value == value and metrics[name].low <= value <= metrics[name].high
