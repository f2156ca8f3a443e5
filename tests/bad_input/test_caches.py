"""Mistakes with caches."""

from __future__ import annotations

from typing import Any

import torch
from bad_input.mistakes import Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens.errors import (
    InvalidArgumentError,
    InvalidIndexError,
)


def cache_of(**changes: Any) -> rl.HeadCache:
    index = torch.tensor([0, 1])
    parts = {"z": torch.zeros(2, 1, 1, 2), "labels": index, "text_index": index, "positions": index}
    return rl.HeadCache(**{**parts, "texts": ("a", "b"), "group_names": ("a", "b"), **changes})


CACHES = [
    Wrong("a cache without the head axis", lambda w: cache_of(z=torch.zeros(2, 3, 4)),
          InvalidArgumentError, "`z` must have axes `example layer head d_head`"),
    Wrong("a cache of an array", lambda w: cache_of(z=torch.zeros(2, 1, 1, 2).numpy()),
          InvalidArgumentError, "`z` must be a Tensor; got ndarray"),
    Wrong("a cache of whole numbers", lambda w: cache_of(z=torch.zeros(2, 1, 1, 2).long()),
          InvalidArgumentError, "`z` must hold real numbers in floating point; got torch.int64"),
    Wrong("labels as a list", lambda w: cache_of(labels=[0, 1]),
          InvalidArgumentError, "`labels` must be a Tensor; got list"),
    Wrong("labels that are shares", lambda w: cache_of(labels=torch.tensor([0.5, 1.0])),
          InvalidArgumentError, "`labels` must be whole numbers; got torch.float32"),
    Wrong("new labels as a list", lambda w: w.cache.with_labels([0] * 80),
          InvalidArgumentError, "`labels` must be a Tensor; got list"),
    Wrong("selecting an example that is not there", lambda w: w.cache.select([999]),
          InvalidIndexError, "`examples` must be whole numbers in [-80, 80)"),
    Wrong("selecting by a mask of another length", lambda w: w.cache.select(torch.ones(3, dtype=torch.bool)),
          InvalidIndexError, "a mask of length 80"),
    Wrong("selecting by name", lambda w: w.cache.select("all"),
          InvalidIndexError, "`examples` must be whole numbers"),
    Wrong("fractions as text", lambda w: w.cache.split("0.5"),
          InvalidArgumentError, "`fractions` must be a tuple or a list; got str '0.5'"),
    Wrong("splitting by a seed that is a word", lambda w: w.cache.split((0.5, 0.5), seed="x"),
          InvalidArgumentError, "`seed` must be a whole number between 0 and 4294967295; got 'x'"),
    Wrong("shuffling by a negative seed", lambda w: w.cache.with_shuffled_labels(seed=-1),
          InvalidArgumentError, "`seed` must be a whole number between 0 and 4294967295; got -1"),
]  # fmt: skip


@each(CACHES)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
