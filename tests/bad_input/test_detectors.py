"""Mistakes at detectors and the classifier."""

from __future__ import annotations

from typing import Any

import torch
from bad_input.mistakes import Wrong, assert_refused, each, pass_through
from sklearn.exceptions import NotFittedError as SklearnNotFittedError

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    GuaranteeError,
    InvalidArgumentError,
    LeakageError,
    NotFittedError,
    UnknownNameError,
)


def fit(w: Any, cache: Any = None, validation: Any = None, **options: Any) -> object:
    cache, validation = w.cache if cache is None else cache, w.validation if validation is None else validation
    return rl.RiskAwareDetector(**options).fit(cache, validation)


DETECTORS = [
    Wrong("activations without a cache", lambda w: fit(w, w.cache.z),
          InvalidArgumentError, "`cache` must be a HeadCache; got Tensor: `collect` makes one"),
    Wrong("one class", lambda w: fit(w, w.cache.select(w.cache.labels == 0)),
          DataError, "Both classes are needed; the training data has no undesirable (1) example"),
    Wrong("labels 0 and 2", lambda w: fit(w, w.cache.with_labels(2 * w.cache.labels)),
          DataError, "Labels must be 0 (desirable) or 1 (undesirable); the training data has [0, 2]"),
    Wrong("no examples", lambda w: fit(w, w.cache.select([])), DataError, "the training data has no examples"),
    Wrong("activations that are not numbers", lambda w: fit(w, w.nan),
          DataError, "`activations of the training data` must be finite; 24 values are not"),
    Wrong("validation on the training data", lambda w: fit(w, validation=w.cache),
          LeakageError, "training and validation must not share groups"),
    Wrong("validation of another shape", lambda w: fit(w, validation=w.validation.__class__(
              torch.zeros(1, 2, 3, 5), *[torch.zeros(1).long()] * 3, ("a",), ("a",))),
          InvalidArgumentError, "`validation.z` must have axes `example layer head d_head` of lengths (any, 2, 3, 4)"),
    Wrong("an unknown loss", lambda w: fit(w, loss="hinge"), InvalidArgumentError, "`loss` must be one of 'risk'"),
    Wrong("a seed that is a word", lambda w: fit(w, seed="x"), InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("no seed", lambda w: fit(w, seed=None), InvalidArgumentError, "got None"),
    Wrong("a negative seed", lambda w: fit(w, seed=-1), InvalidArgumentError, "got -1"),
    Wrong("a promise on too few groups", lambda w: fit(w, vote_rule="certified", target_fnr=0.001),
          GuaranteeError, "groups"),
    Wrong("predicting before fitting", lambda w: rl.RiskAwareDetector().predict(w.cache),
          NotFittedError, "call `fit(cache, validation=...)` first"),
    Wrong("predicting at a layer that is not there", lambda w: w.detector.predict(w.cache, layer=9),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 9"),
    Wrong("recording into nothing", lambda w: w.detector.hook(None),
          InvalidArgumentError, "`recorder` must be callable, such as a list's `append`; got None"),
    Wrong("a hook at a layer that the detector lacks",
          lambda w: pass_through(w, "blocks.3.attn.hook_z", w.detector.hook(print)),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 3"),
    Wrong("a hook on heads of another shape",
          lambda w: pass_through(w, "blocks.0.attn.hook_z", w.detector.hook(print)),
          InvalidArgumentError, "of lengths (any, any, 3, 4); got shape (1, 3, 8, 24)"),
    Wrong("a hook that is no head's", lambda w: pass_through(w, "blocks.0.hook_mlp_out", w.detector.hook(print)),
          UnknownNameError, "is not the name of a head hook; these read 'blocks.0.attn.hook_z'"),
    Wrong("a classifier of one class", lambda w: rl.RiskAwareClassifier().fit([[0.0], [1.0]], [0, 0]),
          ValueError, "two classes are needed; got 1"),
    Wrong("a classifier of NaN", lambda w: rl.RiskAwareClassifier().fit([[0.0], [float("nan")]], [0, 1]),
          ValueError, "Input X contains NaN"),
    Wrong("a classifier that is not fitted", lambda w: rl.RiskAwareClassifier().predict([[0.0]]),
          SklearnNotFittedError, "is not fitted yet"),
]  # fmt: skip


@each(DETECTORS)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
