"""Mistakes at evaluations, effects, traces, reports and figures."""

from __future__ import annotations

from dataclasses import replace

from bad_input.bad_files import LONG
from bad_input.mistakes import SOUP, STATEMENTS, Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    ModelMismatchError,
    NotFittedError,
    UnknownNameError,
)
from radiant_lens.evaluation import generate_answers

EVALUATING = [
    Wrong("statements", lambda w: rl.evaluate(w.model, STATEMENTS),
          InvalidArgumentError, "`data` must be a Dataset; got tuple: `load_dataset` reads one"),
    Wrong("a plain model", lambda w: rl.evaluate(w.model.original_model, SOUP),
          InvalidArgumentError, "use `load_model(model)`"),
    Wrong("the folder of a steering", lambda w: rl.evaluate(w.model, SOUP, "mine"),
          InvalidArgumentError, "`steering` must be a Steering; got str 'mine'"),
    Wrong("a typo in the judge", lambda w: rl.evaluate(w.model, SOUP, judge="exakt"),
          UnknownNameError, "did you mean 'exact'"),
    Wrong("one family, not in a list", lambda w: rl.evaluate(w.model, SOUP, metrics="answers"),
          InvalidArgumentError, "`metrics` must be a list of families, at least one; got 'answers'"),
    Wrong("a temperature as text", lambda w: rl.evaluate(w.model, SOUP, temperature="hot"),
          InvalidArgumentError, "`temperature` must lie at or above 0; got 'hot'"),
    Wrong("a seed that is a word", lambda w: rl.evaluate(w.model, SOUP, seed="x"),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("a seed beyond all generators", lambda w: rl.evaluate(w.model, SOUP, seed=2**70),
          InvalidArgumentError, "between 0 and 4294967295"),
    Wrong("a hook that no pass reaches",
          lambda w: rl.evaluate(w.model, SOUP, metrics=["text"], fwd_hooks=[("hook_pos_embed", lambda z, hook: 0 * z)]),
          InvalidArgumentError, "The hook at 'hook_pos_embed' never ran, so the results would be those without it"),
    Wrong("nothing to evaluate on", lambda w: rl.evaluate(w.model, rl.Dataset("x", STATEMENTS[1:])),
          DataError, "has neither prompts nor desirable statements"),
    Wrong("one prompt, not in a list", lambda w: generate_answers(w.model, "the soup"),
          InvalidArgumentError, "Texts must be given as a list; got the single text 'the soup'"),
    Wrong("prompts that are numbers", lambda w: generate_answers(w.model, [3]),
          InvalidArgumentError, "`text 0` must be a str or a Statement or a Prompt; got int 3"),
    Wrong("a prompt beyond the context", lambda w: generate_answers(w.model, [LONG]), DataError, "holds 256"),
    Wrong("a prompt that leaves no room", lambda w: generate_answers(w.model, ["the " * 250]),
          DataError, "with 20 new ones that is more than the 256 that the model's context holds: shorten it, or lower"),
    Wrong("another evaluation's prompts",
          lambda w: w.evaluation.difference(replace(w.evaluation, prompts=()), "correct"),
          InvalidArgumentError, "Paired differences need evaluations of the same prompts"),
    Wrong("effects on statements", lambda w: rl.head_effects(w.model, STATEMENTS, w.steering),
          InvalidArgumentError, "`data` must be a Dataset; got tuple: its prompts are needed"),
    Wrong("effects without answers", lambda w: rl.head_effects(w.model, rl.Dataset("x", STATEMENTS), w.steering),
          DataError, "has no prompt with both correct and incorrect answers"),
    Wrong("effects of another model's edits", lambda w: rl.head_effects(w.model, SOUP, w.foreign),
          ModelMismatchError, "n_layers = 2"),
    Wrong("writes of another model's edits", lambda w: rl.edit_writes(w.model, SOUP, w.foreign),
          ModelMismatchError, "n_layers = 2"),
    Wrong("writes by a word", lambda w: rl.edit_writes(w.model, SOUP, w.steering, seed="x"),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("two prompts to trace", lambda w: rl.trace_answer(w.model, ["a", "b"], w.steering),
          InvalidArgumentError, "`prompt` must be a str or a Statement or a Prompt; got list: trace one"),
    Wrong("tracing no tokens", lambda w: rl.trace_answer(w.model, "the soup", w.steering, max_new_tokens=0),
          InvalidArgumentError, "`max_new_tokens` must be a whole number of at least 1; got 0"),
    Wrong("nothing to report", lambda w: rl.report(), InvalidArgumentError, "There is nothing to report on"),
    Wrong("a figure of an unfitted detector", lambda w: rl.viz.head_risk(rl.RiskAwareDetector()),
          NotFittedError, "fit"),
]  # fmt: skip


@each(EVALUATING)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
