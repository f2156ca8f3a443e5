"""Mistakes at `steer`, hooks and steerings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from bad_input.mistakes import Wrong, assert_refused, each, pass_through

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    ModelMismatchError,
    RadiantError,
)


def steered_pass(w: Any, steering: Any = None, **options: Any) -> None:
    with rl.steer(w.model, steering or w.steering, **options), torch.no_grad():
        w.model(w.model.to_tokens("the soup"))


STEERING = [
    Wrong("another shape", lambda w: steered_pass(w, w.foreign), ModelMismatchError, "n_layers = 2; 'tiny' has 4"),
    Wrong("another model", lambda w: steered_pass(w, replace(w.steering, meta={"model": {"architecture": "X"}})),
          ModelMismatchError, "with architecture = 'X'; 'tiny' has 'LlamaForCausalLM'"),
    Wrong("a folder", lambda w: steered_pass(w, "mine"), InvalidArgumentError, "`Steering.load(folder)` reads one"),
    Wrong("a policy that is not fitted", lambda w: steered_pass(w, rl.RadiantPolicy()),
          InvalidArgumentError, "`steering` must be a Steering; got RadiantPolicy: a policy's `fit` returns one"),
    Wrong("the name of a model", lambda w: rl.steer("tiny", w.steering).__enter__(),
          InvalidArgumentError, "got str: use `load_model(model)`"),
    Wrong("any module", lambda w: rl.steer(torch.nn.Linear(2, 2), w.steering).__enter__(),
          InvalidArgumentError, "must be a TransformerBridge or a PreTrainedModel; got Linear"),
    Wrong("from a word on", lambda w: steered_pass(w, start="last"),
          InvalidArgumentError, "`start` must be whole numbers of at least 0; got 'last'"),
    Wrong("from half a token on", lambda w: steered_pass(w, start=0.5), InvalidArgumentError, "got 0.5"),
    Wrong("from the end backwards", lambda w: steered_pass(w, start=-1), InvalidArgumentError, "got -1"),
    Wrong("from as many tokens as other rows", lambda w: steered_pass(w, start=[1, 2]),
          InvalidArgumentError, "`start` needs one position for each of the 1 rows; got 2"),
    Wrong("hooks from a word on", lambda w: w.steering.hooks(start="first"),
          InvalidArgumentError, "`start` must be one of 'newest'; got 'first'"),
    Wrong("a hook of a layer that is not there", lambda w: w.steering.hook(99),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 3; got 99"),
    Wrong("a hook on heads of another shape", lambda w: pass_through(w, "blocks.0.attn.hook_z", w.foreign.hook(0)),
          InvalidArgumentError, "ending in (4, 8); got shape (1, 3, 8, 24)"),
    Wrong("a hook that is no head's", lambda w: pass_through(w, "blocks.0.hook_mlp_out", w.steering.hook(0)),
          InvalidArgumentError, "must be at a `hook_z`, axes `batch pos head d_head`"),
    Wrong("editing the wrong shape", lambda w: w.steering.edit(torch.zeros(3, 4), 0),
          InvalidArgumentError, "`... head d_head` ending in (8, 24); got (3, 4)"),
    Wrong("composing with nothing", lambda w: rl.compose(None),
          InvalidArgumentError, "Hook functions must be callable; got None"),
    Wrong("keeping heads that are not edited", lambda w: w.steering.select([(9, 9)]),
          InvalidArgumentError, "must be some of the 32 edited heads; got L9H9"),
    Wrong("keeping heads without their layers", lambda w: w.steering.select([1]),
          InvalidArgumentError, "`heads` must be pairs (layer, head) or names such as 'L0H3 L2H7'; got [1]"),
    Wrong("keeping none", lambda w: w.steering.select([]), InvalidArgumentError, "at least one head; got none"),
    Wrong("more than certain", lambda w: w.steering.certify(w.cache, confidence=1.5),
          InvalidArgumentError, "`confidence` must lie strictly between 0 and 1; got 1.5"),
    Wrong("certified on another shape", lambda w: w.steering.certify(w.cache),
          InvalidArgumentError, "lengths (any, 4, 8, 24); got shape (80, 2, 3, 4)"),
    Wrong("certified on NaN", lambda w: w.steering.certify(w.nan), DataError, "`cache.z` must be finite"),
    Wrong("folded into a bridge", lambda w: replace(w.steering, gate="none").fold_into(w.model), InvalidArgumentError,
          "bridge"),
    Wrong("a trace that was not recorded", lambda w: rl.Trace(False).to_dataframe(),
          RadiantError, "Nothing was recorded: use `steer(model, steering, trace=True)`"),
]  # fmt: skip


@each(STEERING)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
