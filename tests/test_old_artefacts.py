"""Artefacts that version 0.1.0 wrote load, and act as they did then."""

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
    for layer, sums in EXPECTED[name].items():
        edited = steering.edit(z, int(layer))
        assert not torch.equal(edited, z)
        torch.testing.assert_close(edited.double().sum(-1), torch.tensor(sums, dtype=torch.float64))


def test_a_steering_of_the_embedded_model_still_belongs_to_it(model):
    with rl.steer(model, rl.Steering.load(FOLDER / "steering-tiny"), trace=True) as trace, torch.no_grad():
        model(torch.tensor([[7, 8, 9]]))
    assert len(trace.to_dataframe())


@pytest.mark.parametrize("name", ["cache", "store"])
def test_caches_hold_what_they_did(name):
    z = rl.HeadCache.load(FOLDER / name).z
    torch.testing.assert_close(z.double().sum((0, 3)), torch.tensor(EXPECTED[name], dtype=torch.float64))


def test_evaluations_have_the_metrics_that_they_had():
    metrics = rl.Evaluation.load(FOLDER / "evaluation.json").metrics
    assert {name: list(interval) for name, interval in metrics.items()} == EXPECTED["evaluation"]
