"""Good objects to make mistakes with, in a folder of good and bad files; no mistake changes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bad_input.bad_files import write_bad_artefacts, write_bad_files
from bad_input.mistakes import SOUP
from plain_models import random_steering

import radiant_lens as rl


@pytest.fixture(scope="session")
def place(tmp_path_factory, model, gaussian_cache) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_bad_files(folder)
    write_bad_artefacts(folder, gaussian_cache(4), steering_of(model))
    return folder


def steering_of(model) -> rl.Steering:
    return random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)


@pytest.fixture(scope="session")
def at_hand(place, model, facts, gaussian_cache):
    """The embedded model with a steering that fits it; a small cache and detector of another shape."""
    cache, validation = gaussian_cache(40), gaussian_cache(40, seed=1)
    return SimpleNamespace(
        place=place,
        model=model,
        facts=facts,
        steering=steering_of(model),
        foreign=random_steering(2, 4, 8),
        cache=cache,
        validation=validation,
        nan=replace(cache, z=cache.z.clone().index_fill(0, torch.tensor([3]), float("nan"))),
        detector=rl.RiskAwareDetector().fit(cache, validation),
        few=rl.RiskAwareDetector().fit(cache, gaussian_cache(8, seed=1)),
        evaluation=rl.evaluate(model, SOUP, metrics=["answers"]),
    )
