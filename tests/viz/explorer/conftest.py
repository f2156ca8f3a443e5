"""A small steering that changes what the embedded model says, and an explorer of it."""

from __future__ import annotations

import pytest
from plain_models import random_steering

from radiant_lens.viz.explorer import Explorer

PROMPT = "Q : what is the capital of dupeka ? A :"
SITES = [(0, 3), (1, 0), (1, 5), (2, 2), (2, 7), (3, 1)]


@pytest.fixture(scope="session")
def edits(model):
    return random_steering(4, 8, 24, gate="head", sites=SITES, strength=2.0, seed=2)


@pytest.fixture
def explorer(model, edits, facts):
    explorer = Explorer(model, edits, facts, max_new_tokens=8)
    explorer.set(prompt=PROMPT)
    return explorer
