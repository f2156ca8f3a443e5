"""Validators: what passes, what does not, and what the sentence says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from radiant_lens import _checks, errors
from radiant_lens.errors import DataError, InvalidArgumentError, LeakageError, RadiantError, UnknownNameError


def says(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


def test_choice_takes_what_is_allowed_and_names_it_otherwise():
    _checks.choice("gate", "head", ("head", "vote"))
    with pytest.raises(InvalidArgumentError, match=says("`gate` must be one of 'head', 'vote'; got 'tail'.")):
        _checks.choice("gate", "tail", ("head", "vote"))


@pytest.mark.parametrize(
    ("closed", "value", "passes"),
    [
        ("neither", 0.0, False), ("neither", 0.25, True), ("neither", 0.5, False),
        ("low", 0.0, True), ("low", 0.5, False),
        ("high", 0.0, False), ("high", 0.5, True),
        ("both", 0.0, True), ("both", 0.5, True), ("both", 0.5001, False),
    ],
)  # fmt: skip
def test_between_knows_its_ends(closed, value, passes):
    if passes:
        _checks.between("gamma", value, 0, 0.5, closed=closed)
        return
    with pytest.raises(InvalidArgumentError, match="`gamma` must lie"):
        _checks.between("gamma", value, 0, 0.5, closed=closed)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None, 1j])
def test_between_takes_finite_real_numbers_only(value):
    with pytest.raises(InvalidArgumentError, match="`alpha` must lie at or above 0; got"):
        _checks.between("alpha", value, 0, closed="low")


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(2)])
def test_between_takes_numbers_of_every_kind(value):
    _checks.between("alpha", value, 0)


@pytest.mark.parametrize(
    ("high", "closed", "sentence"),
    [
        (0.5, "neither", "`gamma` must lie strictly between 0 and 0.5; got 0.7."),
        (0.5, "both", "`gamma` must lie between 0 and 0.5; got 0.7."),
        (0.5, "low", "`gamma` must lie in [0, 0.5); got 0.7."),
        (0.5, "high", "`gamma` must lie in (0, 0.5]; got 0.7."),
    ],
)
def test_between_says_what_was_given_and_what_is_allowed(high, closed, sentence):
    with pytest.raises(InvalidArgumentError, match=says(sentence)):
        _checks.between("gamma", 0.7, 0, high, closed=closed)


def test_between_without_an_upper_end():
    with pytest.raises(InvalidArgumentError, match=says("`fnr_weight` must lie strictly above 0; got 0.")):
        _checks.between("fnr_weight", 0, 0)


@pytest.mark.parametrize("value", [1, 3, np.int64(2)])
def test_whole_takes_whole_numbers_within(value):
    _checks.whole("layer", value, 1, 3)


@pytest.mark.parametrize("value", [0, 4, 1.0, True, "1", None])
def test_whole_refuses_everything_else(value):
    with pytest.raises(
        InvalidArgumentError, match=says(f"`layer` must be a whole number between 1 and 3; got {value!r}.")
    ):
        _checks.whole("layer", value, 1, 3)


def test_whole_without_an_upper_end():
    _checks.whole("n", 10**6, 1)
    with pytest.raises(InvalidArgumentError, match=says("`n` must be a whole number of at least 1; got -2.")):
        _checks.whole("n", -2, 1)


def test_known_offers_the_nearest_names():
    _checks.known("data set", "tiny-facts", ["tiny-facts", "tiny-tone"])
    sentence = "'tiny-fact' is not a known data set: did you mean 'tiny-facts'? Or a file."
    with pytest.raises(UnknownNameError, match=says(sentence)):
        _checks.known("data set", "tiny-fact", ["tiny-facts", "other"], hint="Or a file.")


def test_known_offers_a_name_in_other_capital_letters():
    with pytest.raises(UnknownNameError, match=says("'radiant' is not a known arm: did you mean 'RADIANT'?")):
        _checks.known("arm", "radiant", ["RADIANT", "other"])


def test_known_lists_all_names_when_none_is_near():
    with pytest.raises(UnknownNameError, match=says("'zzz' is not a known model: known are 'tiny', 'other'.")):
        _checks.known("model", "zzz", ["tiny", "other"])


def test_shape_names_axes_and_both_shapes():
    _checks.shape("z", torch.zeros(5, 2, 3), (None, 2, 3), "example layer head")
    sentence = "`z` must have axes `example layer head` of lengths (any, 2, 3); got shape (5, 2, 4)."
    with pytest.raises(InvalidArgumentError, match=says(sentence)):
        _checks.shape("z", torch.zeros(5, 2, 4), (None, 2, 3), "example layer head")


def test_shape_counts_axes():
    with pytest.raises(InvalidArgumentError, match=re.escape("got shape (5, 2)")):
        _checks.shape("z", torch.zeros(5, 2), (None, 2, 3), "example layer head")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_names_the_first_bad_place(bad):
    value = torch.zeros(3, 4)
    _checks.finite("z", value)
    value[1, 2] = value[2, 0] = bad
    with pytest.raises(DataError, match=says("`z` must be finite; 2 values are not, the first at index (1, 2).")):
        _checks.finite("z", value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([], "The cache has no examples."),
        ([0, 0], "Both classes are needed; The cache has no undesirable (1) example."),
        ([1, 1], "Both classes are needed; The cache has no desirable (0) example."),
        ([0, 1, 2], "Labels must be 0 (desirable) or 1 (undesirable); The cache has [0, 1, 2]."),
    ],
)
def test_both_classes_says_which_is_missing(labels, sentence):
    _checks.both_classes(torch.tensor([0, 1]), "The cache")
    with pytest.raises(DataError, match=says(sentence)):
        _checks.both_classes(torch.tensor(labels, dtype=torch.long), "The cache")


def test_disjoint_groups_names_one_that_is_shared():
    _checks.disjoint_groups(["a", "b"], ["c"], ("training", "validation"))
    sentence = "training and validation must not share groups; 2 are in both, such as 'b'."
    with pytest.raises(LeakageError, match=says(sentence)):
        _checks.disjoint_groups(["a", "b", "c", "b"], ["c", "b"], ("training", "validation"))


@pytest.mark.parametrize(
    ("error", "built_in", "exit_status"),
    [
        (errors.InvalidArgumentError, ValueError, 2),
        (errors.UnknownNameError, KeyError, 2),
        (errors.DataError, ValueError, 1),
        (errors.LeakageError, ValueError, 1),
        (errors.NotFittedError, AttributeError, 1),
        (errors.ConvergenceError, RuntimeError, 1),
        (errors.GuaranteeError, RuntimeError, 1),
        (errors.NothingToEditError, RuntimeError, 1),
        (errors.ModelLoadError, OSError, 1),
        (errors.ModelMismatchError, ValueError, 1),
        (errors.ArtefactError, ValueError, 1),
    ],
)
def test_errors_are_the_built_ins_that_people_catch(error, built_in, exit_status):
    assert issubclass(error, RadiantError)
    assert issubclass(error, built_in)
    assert error.exit_status == exit_status
    assert str(error("what happened")) == "what happened"


@pytest.mark.parametrize("part", [1, 12, 10**6])
def test_finite_counts_over_all_parts(monkeypatch, part):
    monkeypatch.setattr(_checks, "FINITE_CHUNK", part)
    z = torch.zeros(5, 2, 3)
    _checks.finite("z", z)
    z[3, 1, 2], z[4, 0, 0] = float("nan"), float("inf")
    with pytest.raises(DataError, match=says("`z` must be finite; 2 values are not, the first at index (3, 1, 2).")):
        _checks.finite("z", z)
    with pytest.raises(DataError, match=says("`z` must be finite; 1 values are not, the first at index ().")):
        _checks.finite("z", torch.tensor(float("nan")))


@pytest.mark.parametrize(
    "check",
    [
        lambda value: _checks.choice("name", value, ("a", "b")),
        lambda value: _checks.known("name", value, ["a", "b"]),
        lambda value: _checks.between("name", value, 0, 1),
        lambda value: _checks.whole("name", value, 0),
        lambda value: _checks.columns("name", value),
        lambda value: _checks.each("name", value, int),
        lambda value: _checks.each("name", [value], int),
        lambda value: _checks.instance("name", value, int),
    ],
)
def test_a_message_does_not_hold_a_whole_file(check):
    with pytest.raises(RadiantError) as raised:
        check("a text as long as a file " * 1000)
    assert "a text as long as a file" in str(raised.value)
    assert len(str(raised.value)) < 200
