"""A bridge for the tests of hooks."""

from __future__ import annotations

import pytest
from plain_models import last_logits

import radiant_lens as rl


@pytest.fixture(scope="module")
def bridge():
    model = rl.load_model("tiny", device="cpu")
    # It puts hooks of its own on in its first pass; tests count hooks.
    last_logits(model, [[7, 8]])
    return model
