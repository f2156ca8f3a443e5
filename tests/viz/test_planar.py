"""Figures of the mathematics in two dimensions."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError

WEIGHT, BIAS = torch.tensor([2.0, -1.0]), 0.5


@pytest.fixture(scope="module")
def classes():
    generator = torch.Generator().manual_seed(0)
    desirable, undesirable = torch.randn(2, 200, 2, generator=generator)
    return desirable - 1, undesirable + 1


def test_the_boundary_has_score_zero_and_leaves_the_panel(classes):
    figure = rl.viz.planar_edits(*classes, WEIGHT, BIAS)
    line = figure.data[0]
    assert line.name == "boundary"
    ends = torch.tensor([line.x, line.y]).T
    assert torch.allclose(ends @ WEIGHT + BIAS, torch.zeros(2), atol=1e-5)
    low, high = figure.layout.yaxis.range
    assert min(line.y) < low and max(line.y) > high


def test_a_vertical_boundary_is_drawn(classes):
    line = rl.viz.planar_edits(*classes, torch.tensor([1.0, 0.0]), 0.25).data[0]
    assert list(line.x) == pytest.approx([-0.25, -0.25])


def test_each_edit_has_a_panel_with_equal_axes(classes):
    before = classes[1][:40]
    figure = rl.viz.planar_edits(*classes, WEIGHT, BIAS, edits={"a": (before, before - 1), "b": (before, before - 2)})
    assert [note.text for note in figure.layout.annotations] == ["a", "b"]
    assert [axis.scaleanchor for axis in figure.select_yaxes()] == ["x", "x2"]
    edited = [trace for trace in figure.data if trace.name == "edited"]
    assert [len(trace.x) for trace in edited] == [30, 30]
    assert list(edited[1].x) == pytest.approx((before[:30, 0] - 2).tolist())
    # The legend names each kind once.
    assert sorted(trace.name for trace in figure.data if trace.showlegend) == [
        "boundary",
        "desirable",
        "edited",
        "undesirable",
    ]


def test_points_in_the_cone_keep_the_guarantee():
    kappa = 1.5
    figure = rl.viz.score_cone({"flagged": (4.0, 2.0), "edited": (-3.0, 2.0)}, kappa, floor=2.0)
    cone, floor, flagged, edited = figure.data
    assert (flagged.name, edited.name) == ("flagged", "edited")
    assert list(floor.y) == [2.0, 2.0]
    # Every corner of the cone keeps the inequality, and the slanted side meets it exactly.
    assert all(x + kappa * y <= 1e-9 or y == 0 for x, y in zip(cone.x, cone.y))
    assert cone.x[0] + kappa * cone.y[0] == pytest.approx(0)
    # Every point is in sight.
    assert figure.layout.xaxis.range[0] <= -3.0 and figure.layout.xaxis.range[1] >= 4.0
    assert figure.layout.yaxis.range[1] >= 2.0


def test_bad_input_is_refused(classes):
    with pytest.raises(InvalidArgumentError, match="`desirable`"):
        rl.viz.planar_edits(torch.ones(3, 3), classes[1], WEIGHT, BIAS)
    with pytest.raises(InvalidArgumentError, match=r"edits\['a'\]"):
        rl.viz.planar_edits(*classes, WEIGHT, BIAS, edits={"a": (classes[0], torch.ones(3))})
    with pytest.raises(InvalidArgumentError, match="`weight` must not be zero"):
        rl.viz.planar_edits(*classes, torch.zeros(2), BIAS)
    with pytest.raises(InvalidArgumentError, match="`kappa`"):
        rl.viz.score_cone({"a": (0.0, 1.0)}, 0.0)
    with pytest.raises(InvalidArgumentError, match="`moments` must hold at least one"):
        rl.viz.score_cone({}, 1.0)
