"""Mistakes with studies and their files."""

from __future__ import annotations

from typing import Any

from bad_input.mistakes import Wrong, assert_refused, each

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.errors import (
    DataError,
    InvalidArgumentError,
    OutputError,
    UnknownNameError,
)


def study(**options: Any) -> rl.Study:
    return rl.Study("mine", **{"arms": studies.grid(gamma=[0.1]), **options})


STUDIES = [
    Wrong("no arms", lambda w: study(arms=[]), InvalidArgumentError, "at least one arm and one seed; got 0 and 1"),
    Wrong("arms by their names", lambda w: study(arms=["radiant"]),
          InvalidArgumentError, "`arms` must be an Arm; got str 'radiant': `Arm(name, ...)` or `grid(...)`"),
    Wrong("two arms of one name", lambda w: study(arms=[studies.Arm("a"), studies.Arm("a")]),
          InvalidArgumentError, "got 'a' more than once"),
    Wrong("a typo in an axis", lambda w: studies.grid(gama=[0.1]), UnknownNameError, "did you mean 'gamma'"),
    Wrong("a value out of range", lambda w: study(arms=studies.grid(gamma=[0.7])), InvalidArgumentError, "got 0.7"),
    Wrong("a typo in the positions", lambda w: study(arms=studies.grid(positions="first")),
          InvalidArgumentError, "`positions` must be one of"),
    Wrong("one seed, not in a list", lambda w: study(seeds=3),
          InvalidArgumentError, "`seeds` must be a list or a tuple or a range; got int 3"),
    Wrong("seeds that are words", lambda w: study(seeds=["a"]), InvalidArgumentError, "`seeds` must be a whole number"),
    Wrong("two fractions", lambda w: study(fractions=(0.5, 0.5)),
          InvalidArgumentError, "`fractions` must be three, of training, validation and test"),
    Wrong("a typo in the judge", lambda w: study(judge="exakt"), UnknownNameError, "did you mean 'exact'"),
    Wrong("a folder that is a file", lambda w: study(out=w.place / "file").run(),
          OutputError, "cells/any.json' cannot be written (Not a directory)"),
    Wrong("a file that is no mapping", lambda w: studies.read_study(w.place / "no-mapping.yaml"),
          DataError, "must hold a mapping; it holds list"),
    Wrong("a file whose arms are numbers", lambda w: studies.read_study(w.place / "arms-are-numbers.yaml"),
          InvalidArgumentError, "`arms` must be a Mapping; got int 1: each arm is a mapping with a `name`"),
    Wrong("a file with one number for arms", lambda w: studies.read_study(w.place / "arms-is-a-number.yaml"),
          InvalidArgumentError, "`arms` must be a list; got int 1"),
    Wrong("a file with a typo", lambda w: studies.read_study(w.place / "key-typo.yaml"),
          UnknownNameError, "did you mean 'arms'"),
    Wrong("a file with code in it", lambda w: studies.read_study(w.place / "code.yaml"),
          DataError, "could not determine a constructor for the tag"),
    Wrong("a file with one seed", lambda w: studies.read_study(w.place / "seeds.yaml"),
          InvalidArgumentError, "`seeds` must be a list"),
]  # fmt: skip


@each(STUDIES)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)
