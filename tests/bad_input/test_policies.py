"""Mistakes at policies and solvers."""

from __future__ import annotations

from typing import Any

import torch
from bad_input.mistakes import STATEMENTS, Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    LeakageError,
    NotFittedError,
    NothingToEditError,
)


def policy(w: Any, **options: Any) -> object:
    return rl.RadiantPolicy(**options).fit(w.cache, w.detector)


POLICIES = [
    Wrong("gamma beyond a half", lambda w: policy(w, gamma=0.7),
          InvalidArgumentError, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
    Wrong("gamma as text", lambda w: policy(w, gamma="0.1"), InvalidArgumentError, "`gamma` must lie"),
    Wrong("an unknown geometry", lambda w: policy(w, geometry="euclid"),
          InvalidArgumentError,
          "`geometry` must be one of 'mahalanobis', 'wasserstein', 'output', 'procrustes'; got 'euclid'"),
    Wrong("heads by a typo", lambda w: policy(w, heads="signficant"),
          InvalidArgumentError, "`heads` must be 'significant', 'all', 'layer'"),
    Wrong("a head beyond the model", lambda w: policy(w, heads=[(9, 0)]),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 9"),
    Wrong("heads without their layers", lambda w: policy(w, heads=[1, 2]),
          InvalidArgumentError, "`heads` must be pairs (layer, head) or names such as 'L0H3 L2H7'; got [1, 2]"),
    Wrong("too few groups for a significant head", lambda w: rl.RadiantPolicy().fit(w.cache, w.few),
          NothingToEditError, "8 validation groups cannot show that a head is significant"),
    Wrong("no heads", lambda w: policy(w, heads=[]), InvalidArgumentError, "at least one head; got none"),
    Wrong("half a head", lambda w: policy(w, heads=2.5), InvalidArgumentError, "`heads` must be a whole number"),
    Wrong("more layers than there are", lambda w: policy(w, heads="layer", n_layers=9),
          InvalidArgumentError, "`n_layers` must be a whole number between 1 and 2; got 9"),
    Wrong("an unfitted detector", lambda w: rl.RadiantPolicy().fit(w.cache, rl.RiskAwareDetector()),
          NotFittedError, "This RiskAwareDetector is not fitted yet: call `fit("),
    Wrong("no detector", lambda w: rl.MeanShiftPolicy().fit(w.cache, None),
          InvalidArgumentError, "`detector` must be a RiskAwareDetector; got NoneType"),
    Wrong("activations that are not numbers", lambda w: rl.LEACEPolicy().fit(w.nan, w.detector),
          DataError, "`cache.z` must be finite"),
    Wrong("calibrating on the training data",
          lambda w: rl.RadiantPolicy(gamma=0.2).fit(w.cache, w.detector, calibrate=w.cache),
          LeakageError, "the fit and calibration must not share groups"),
    Wrong("ITI of no strength", lambda w: rl.ITIPolicy(alpha=0).fit(w.cache, w.detector),
          InvalidArgumentError, "`alpha` must lie strictly above 0; got 0"),
    Wrong("ITI of a seed that is a word", lambda w: rl.ITIPolicy(seed="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("an unknown ablation", lambda w: rl.AblationPolicy(kind="cut").fit(w.cache, w.detector),
          InvalidArgumentError, "`kind` must be one of 'zero', 'mean', 'resample'; got 'cut'"),
    Wrong("an ablation of half a seed", lambda w: rl.AblationPolicy(seed=0.5).fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("moments by an unknown gate", lambda w: rl.MomentMatchingPolicy(gate="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`gate` must be one of"),
    Wrong("linear act by an unknown gate", lambda w: rl.LinearActPolicy(gate="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`gate` must be one of"),
    Wrong("a control of nothing", lambda w: rl.IdentityPolicy(None).fit(w.cache, w.detector),
          InvalidArgumentError, "`reference` must be a Steering; got NoneType"),
    Wrong("a control by a word", lambda w: rl.RandomDirectionPolicy(w.steering, seed="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("a control in an unknown metric", lambda w: rl.RandomDirectionPolicy(w.steering, "l1").fit(w.cache, None),
          InvalidArgumentError, "`metric` must be one of 'mahalanobis', 'wasserstein', 'total'; got 'l1'"),
    Wrong("layer by layer, by the policy's name", lambda w: rl.fit_sequential(w.model, STATEMENTS, w.detector, "iti"),
          InvalidArgumentError, "`policy` must be a Policy; got str 'iti'"),
    Wrong("a solver's shapes", lambda w: rl.policies.solve_transport(
              torch.zeros(3), torch.eye(2), torch.ones(3), torch.tensor(0.0), 1.0),
          InvalidArgumentError, "`sigma`"),
]  # fmt: skip


@each(POLICIES)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
