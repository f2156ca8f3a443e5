"""Mistakes with data sets and their files."""

from __future__ import annotations

from bad_input.mistakes import Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    UnknownNameError,
)

DATA = [
    Wrong("a typo", lambda w: rl.load_dataset("tiny-fact"), UnknownNameError, "did you mean 'tiny-facts'"),
    Wrong("another kind of file", lambda w: rl.load_dataset("mine.xlsx"),
          UnknownNameError, "A file must end in .csv, .json or .jsonl"),
    Wrong("no such file", lambda w: rl.load_dataset(w.place / "none.csv"), DataError, "There is no file"),
    Wrong("an empty file", lambda w: rl.load_dataset(w.place / "empty.jsonl"), DataError, "empty.jsonl has no rows"),
    Wrong("a missing column", lambda w: rl.load_dataset(w.place / "no-label.jsonl"),
          DataError, "missing column 'label'"),
    Wrong("a typo in a label", lambda w: rl.load_dataset(w.place / "label-typo.jsonl"),
          DataError, "line 2: `label` must be 0 (desirable) or 1 (undesirable); got 'flase'"),
    Wrong("a prompt without answers", lambda w: rl.load_dataset(w.place / "no-answers.jsonl"),
          DataError, "line 1: the prompt has no answers to compare with; a judge that needs none"),
    Wrong("a file that is no text", lambda w: rl.load_dataset(w.place / "binary.csv"),
          DataError, "binary.csv cannot be read as .csv"),
    Wrong("half a file", lambda w: rl.load_dataset(w.place / "broken.json"),
          DataError, "broken.json cannot be read as .json"),
    Wrong("a data set of nothing", lambda w: rl.Dataset("x", ()), DataError, "Data set 'x' is empty"),
    Wrong("more parts than groups", lambda w: w.facts.head(2).split((0.3, 0.3, 0.4)),
          InvalidArgumentError, "3 parts need as many groups; the data has 2"),
    Wrong("contexts of one length, not in a tuple", lambda w: rl.Contexts(n_pairs=2),
          InvalidArgumentError, "`n_pairs` must be a tuple or a list; got int 2"),
    Wrong("contexts by a word", lambda w: rl.Contexts(seed="x"), InvalidArgumentError, "`seed` must be a whole"),
    Wrong("few-shot examples by a word", lambda w: w.facts.with_few_shot(w.facts, k=2, seed="x"),
          InvalidArgumentError, "`seed` must be a whole"),
    Wrong("contexts of too few questions", lambda w: w.facts.head(2).statements,
          DataError, "Contexts of 2 other questions need 3 groups of each label; there are 2"),
]  # fmt: skip


@each(DATA)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
