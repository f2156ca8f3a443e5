"""Mistakes at `collect`."""

from __future__ import annotations

from bad_input.bad_files import LONG
from bad_input.mistakes import STATEMENTS, Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    ModelMismatchError,
    UnknownNameError,
)

COLLECTING = [
    Wrong("no statements", lambda w: rl.collect(w.model, []), DataError, "no statements"),
    Wrong("texts without labels", lambda w: rl.collect(w.model, ["a", "b"]),
          InvalidArgumentError, "`data` must be a Statement; got str 'a': "),
    Wrong("a label that is neither", lambda w: rl.collect(w.model, [rl.Statement("a b", 2, "g")]),
          DataError, "`label` must be 0 (desirable) or 1 (undesirable); got 2"),
    Wrong("a plain model", lambda w: rl.collect(w.model.original_model, STATEMENTS),
          InvalidArgumentError, "`model` must be a TransformerBridge; got LlamaForCausalLM: use `load_model(model)`"),
    Wrong("the name of a model", lambda w: rl.collect("tiny", STATEMENTS),
          InvalidArgumentError, "got str 'tiny': use `load_model(model)`"),
    Wrong("no layer", lambda w: rl.collect(w.model, STATEMENTS, layers=[]),
          InvalidArgumentError, "`layers` must name at least one layer"),
    Wrong("layers by a word", lambda w: rl.collect(w.model, STATEMENTS, layers="all"),
          InvalidArgumentError, "`layers` must name at least one layer, or be None for all; got 'all'"),
    Wrong("a layer too many", lambda w: rl.collect(w.model, STATEMENTS, layers=[0, 99]),
          InvalidArgumentError, "`layers` must be a whole number between 0 and"),
    Wrong("positions by a typo", lambda w: rl.collect(w.model, STATEMENTS, positions="first"),
          InvalidArgumentError, "`positions` must be one of 'answer', 'last', 'all'; got 'first'"),
    Wrong("no positions", lambda w: rl.collect(w.model, STATEMENTS, positions=[]),
          InvalidArgumentError, "`positions` must be one of"),
    Wrong("one position", lambda w: rl.collect(w.model, STATEMENTS, positions=3),
          InvalidArgumentError, "or whole numbers; got 3"),
    Wrong("a position beyond a text", lambda w: rl.collect(w.model, STATEMENTS, positions=[99]),
          InvalidArgumentError, "`positions` must lie in [-"),
    Wrong("batches of nothing", lambda w: rl.collect(w.model, STATEMENTS, max_tokens=0),
          InvalidArgumentError, "`max_tokens` must be a whole number of at least 1; got 0"),
    Wrong("a text beyond the context", lambda w: rl.collect(w.model, [rl.Statement(LONG, 0, "x")]),
          DataError, "context holds 256"),
    Wrong("half a character", lambda w: rl.collect(w.model, rl.load_dataset(w.place / "surrogate.jsonl")),
          DataError, "Text 0 is not valid Unicode: surrogates not allowed at character 2"),
    Wrong("activations that are not finite",
          lambda w: rl.collect(w.model, STATEMENTS, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z / 0)]),
          DataError, "`activations` must be finite"),
    Wrong("a hook at an unknown layer",
          lambda w: rl.collect(w.model, STATEMENTS, fwd_hooks=[("blocks.99.attn.hook_z", lambda z, hook: z)]),
          UnknownNameError, "'blocks.99.attn.hook_z' is not a known hook of this model: did you mean"),
    Wrong("a hook that no pass reaches",
          lambda w: rl.collect(w.model, STATEMENTS, fwd_hooks=[("hook_pos_embed", lambda z, hook: 0 * z)]),
          InvalidArgumentError, "The hook at 'hook_pos_embed' never ran, so the results would be those without it"),
    Wrong("under a steering of another shape", lambda w: rl.collect(w.model, STATEMENTS, steering=w.foreign),
          ModelMismatchError, "with n_layers = 2; 'tiny' has 4"),
    Wrong("under the name of a steering", lambda w: rl.collect(w.model, STATEMENTS, steering="mine"),
          InvalidArgumentError, "`steering` must be a Steering; got str 'mine': a policy's `fit` returns one"),
]  # fmt: skip


@each(COLLECTING)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
