"""Counts of words in answers, by hand."""

from __future__ import annotations

import pytest

from radiant_lens.evaluation.side_effects.measure import compare_answers, repetition

ANSWERS = ["a b c a b c", "a", "", "no no no no no", "one two three", "x y"]
GROUPS = [f"g{i}" for i in range(6)]


def test_repetition():
    # abc bca cab abc: one of four runs has occurred before.
    assert repetition(["a", "b", "c", "a", "b", "c"]) == 0.25
    assert repetition(["no", "no", "no", "no", "no"]) == pytest.approx(2 / 3)
    assert repetition(["a", "b", "c", "d"]) == 0
    assert repetition(["a", "b"]) == 0
    assert repetition(["a", "b", "a", "b"], n=2) == pytest.approx(1 / 3)


def test_means_over_answers():
    effects = compare_answers(GROUPS, ANSWERS, ["a b c"] * 6)
    plain = {name: effect.plain.value for name, effect in effects.items()}
    # Three answers have runs of three words, five have words.
    assert plain["repetition"] == pytest.approx((0.25 + 2 / 3 + 0) / 3)
    assert plain["dist_1"] == pytest.approx((3 / 6 + 1 + 1 / 5 + 1 + 1) / 5)
    assert plain["dist_2"] == pytest.approx((3 / 6 + 0 + 1 / 5 + 2 / 3 + 1 / 2) / 5)
    assert plain["empty_answers"] == pytest.approx(1 / 6)
    assert plain["words"] == pytest.approx((6 + 1 + 0 + 5 + 3 + 2) / 6)
    steered = {name: effect.steered.value for name, effect in effects.items()}
    assert steered == pytest.approx({"repetition": 0, "dist_1": 1, "dist_2": 2 / 3, "empty_answers": 0, "words": 3})


def test_answers_that_are_all_empty_have_no_words_to_count():
    effects = compare_answers(GROUPS, ANSWERS, [""] * 6)
    readings = {name: effect.reading for name, effect in effects.items()}
    assert readings["repetition"] == readings["dist_1"] == readings["dist_2"] == "not measured"
    assert effects["empty_answers"].steered.value == 1
    assert readings["words"] == "changed"
