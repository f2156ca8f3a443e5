"""Choices of heads, checked against a model's shape before anything is collected."""

from __future__ import annotations

from copy import deepcopy

import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.policies.heads import check_heads, choose_heads

GOOD = ["significant", "all", "layer", "layer:1", "layers:2", "least_risk:4", "random:6", "L0H1 L1H2", 6, [(0, 1)]]
BAD = ["best", "layer:2", "layers:3", "layers:0", "least_risk:7", "random:0", "L2H0", "L0H3", 0, 7, [(0, 3)], "recipe"]


@pytest.fixture(scope="module")
def detector(gaussian_cache):
    """Two layers of three heads."""
    return rl.RiskAwareDetector().fit(gaussian_cache(60), gaussian_cache(60, seed=1))


@pytest.mark.parametrize("heads", GOOD, ids=str)
def test_a_choice_that_can_be_made_is_accepted(heads, detector):
    check_heads(heads, 2, 3)
    assert choose_heads(detector, heads)


@pytest.mark.parametrize("heads", BAD, ids=str)
def test_a_choice_that_cannot_be_made_is_refused_with_the_same_words(heads, detector):
    with pytest.raises(InvalidArgumentError) as early:
        check_heads(heads, 2, 3)
    with pytest.raises(InvalidArgumentError) as late:
        choose_heads(detector, heads)
    assert str(early.value) == str(late.value)


def test_a_gate_that_nothing_passes_names_the_remedy(detector, gaussian_cache):
    shut = deepcopy(detector)
    shut.biases_ = shut.biases_ - 1e9
    with pytest.raises(NothingToEditError, match="passes the gate 'head' of any chosen head.*'none' passes all, and a"):
        rl.RadiantPolicy(heads=2).fit(gaussian_cache(60), shut)
    assert len(rl.RadiantPolicy(heads=2).fit(gaussian_cache(60), detector).sites) == 2


def test_a_certificate_of_nothing_says_so(detector, gaussian_cache):
    steering = rl.RadiantPolicy(heads=2).fit(gaussian_cache(60), detector)
    held_out = gaussian_cache(4, seed=2)
    # Far on the desirable side: no head flags.
    far = rl.HeadCache(
        held_out.z - 1e3 * steering.scores.weights,
        held_out.labels,
        held_out.text_index,
        held_out.positions,
        held_out.texts,
        held_out.group_names,
    )
    assert str(steering.certify(far)) == "The gate passes no held-out activation: nothing is certified."
    assert "nan" not in steering.certify(far)._repr_html_()
    assert "held-out groups" in str(steering.certify(held_out))
