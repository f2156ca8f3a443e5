"""Hooks of a user: those that never run are refused, and others run as they are."""

from __future__ import annotations

import pytest
import torch

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.user_hooks import UserHooks


def add_one(z, hook):
    return z + 1


def run(model, hooks: UserHooks) -> torch.Tensor:
    with torch.no_grad(), model.hooks(fwd_hooks=hooks.pairs):
        return model(torch.tensor([[1, 7, 8]]))


@pytest.mark.parametrize("place", ["hook_embed", lambda name: name == "hook_embed"], ids=["name", "filter"])
def test_hooks_run_as_they_are(model, place):
    hooks = UserHooks(model, [(place, add_one)])
    expected = model.run_with_hooks(torch.tensor([[1, 7, 8]]), fwd_hooks=[("hook_embed", add_one)])
    assert torch.equal(run(model, hooks), expected)
    assert not torch.equal(run(model, UserHooks(model, [])), expected)
    hooks.require_runs()


@pytest.mark.parametrize("place", ["hook_pos_embed", lambda name: name == "nowhere"], ids=["name", "filter"])
def test_a_hook_that_never_ran_is_refused_once_the_model_ran(model, place):
    hooks = UserHooks(model, [("hook_embed", add_one), (place, add_one)])
    # As on a rank that has no texts.
    hooks.require_runs()
    run(model, hooks)
    with pytest.raises(InvalidArgumentError, match="never ran, so the results would be those .*blocks.0.attn"):
        hooks.require_runs()
