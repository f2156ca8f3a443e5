"""Activations of one head: classes in a plane, and displacements along principal components."""

from __future__ import annotations

import re

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    return rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))


@pytest.fixture(scope="module")
def steerings(fitted, gaussian_cache):
    return {
        name: rl.RadiantPolicy(gamma=0.05, geometry=name, heads=[(0, 2)]).fit(gaussian_cache(80), fitted)
        for name in ("wasserstein", "mahalanobis")
    }


@pytest.fixture(scope="module")
def held_out(gaussian_cache):
    return gaussian_cache(80, seed=2)


def test_the_horizontal_axis_parts_the_classes_and_the_vertical_does_not(held_out):
    desirable, undesirable = rl.viz.head_classes(held_out, (0, 2)).data
    assert (desirable.name, undesirable.name) == ("desirable", "undesirable")
    means = [[torch.tensor(trace[axis]).mean() for trace in (desirable, undesirable)] for axis in ("x", "y")]
    assert abs(means[0][0] - means[0][1]) > 1.0
    assert abs(means[1][0] - means[1][1]) < abs(means[0][0] - means[0][1]) / 2


def test_both_axes_are_standardised(held_out):
    figure = rl.viz.head_classes(held_out, (0, 2), max_points=10_000)
    for axis in ("x", "y"):
        values = torch.cat([torch.tensor(trace[axis]) for trace in figure.data])
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)
        assert float(values.mean()) == pytest.approx(0, abs=1e-6)


def test_the_draw_is_limited_and_repeats(held_out):
    first, again, other = (rl.viz.head_classes(held_out, (0, 2), max_points=5, seed=seed) for seed in (0, 0, 1))
    assert all(len(trace.x) == 5 for trace in first.data)
    assert first == again
    assert first != other


def test_the_spectrum_has_the_length_of_the_displacement(steerings, held_out):
    figure = rl.viz.displacement_spectrum(steerings, held_out, (0, 2))
    assert [trace.name for trace in figure.data] == ["wasserstein", "mahalanobis", "spread of the activations"]
    assert figure.layout.yaxis.type == "log"
    for name, trace in zip(steerings, figure.data):
        edit = steerings[name].displace(held_out.z[:, 0], 0)
        column = edit.heads.tolist().index(2)
        moved = edit.displacement[edit.gated[:, column], column].double()
        # Components are orthonormal, so the squares add up to the mean squared length.
        total = torch.tensor(trace.y).square().sum()
        assert float(total) == pytest.approx(float(moved.square().sum(1).mean()), rel=1e-6)
    spread = figure.data[-1].y
    assert list(spread) == sorted(spread, reverse=True)


def test_steerings_that_do_not_edit_are_named_or_replace_the_figure(steerings, fitted, held_out, gaussian_cache):
    quiet = held_out.select(steerings["mahalanobis"].displace(held_out.z[:, 0], 0).gated.logical_not().all(1))
    figure = rl.viz.displacement_spectrum(steerings, quiet, (0, 2))
    assert "Nothing was edited" in figure.layout.annotations[0].text
    assert not figure.data
    elsewhere = rl.viz.displacement_spectrum(steerings, held_out, (1, 0))
    assert "no steering moves L1H0" in elsewhere.layout.annotations[0].text
    other = rl.RadiantPolicy(gamma=0.05, heads=[(1, 2)]).fit(gaussian_cache(80), fitted)
    both = rl.viz.displacement_spectrum({**steerings, "other heads": other}, held_out, (0, 2))
    assert "Nothing edited by: other heads" in " ".join(re.sub("<.*?>", " ", both.layout.title.text).split())


def test_bad_input_is_refused(steerings, held_out):
    with pytest.raises(InvalidArgumentError, match="`cache` must be a HeadCache"):
        rl.viz.head_classes("cache", (0, 2))
    with pytest.raises(InvalidArgumentError, match="`layer`"):
        rl.viz.head_classes(held_out, (9, 0))
    with pytest.raises(InvalidArgumentError, match="`max_points`"):
        rl.viz.head_classes(held_out, (0, 2), max_points=0)
    with pytest.raises(DataError, match="no examples"):
        rl.viz.head_classes(held_out.select([]), (0, 2))
    with pytest.raises(DataError, match="`cache`"):
        rl.viz.head_classes(held_out.select(held_out.labels == 0), (0, 2))
    with pytest.raises(InvalidArgumentError, match="`steerings` must be a Mapping"):
        rl.viz.displacement_spectrum([steerings], held_out, (0, 2))
    with pytest.raises(InvalidArgumentError, match="`steerings` must hold at least one; got none"):
        rl.viz.displacement_spectrum({}, held_out, (0, 2))
    with pytest.raises(InvalidArgumentError, match=r"steerings\['a'\]"):
        rl.viz.displacement_spectrum({"a": 1}, held_out, (0, 2))
