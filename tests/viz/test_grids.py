"""Heat map of one number for every head."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.viz import _style as style


def test_the_scale_starts_at_zero_and_dark_is_more():
    figure = rl.viz.head_map(torch.tensor([[0.5, 1.0, 2.0], [0.0, 1.5, 0.25]]), "distance")
    grid = figure.data[0]
    assert (grid.zmin, grid.zmax) == (0, 2.0)
    # The last colour of the scale is the darkest.
    assert grid.colorscale[0][1] == "rgb(247,251,255)" and grid.colorscale[-1][1] == "rgb(8,48,107)"
    assert figure.layout.title.text == "Distance of each head"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    # The first layer is on top.
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_values_of_either_sign_are_white_at_zero():
    grid = rl.viz.head_map(torch.tensor([[-3.0, 1.0]]), "effect").data[0]
    assert (grid.zmin, grid.zmax) == (-3.0, 3.0)
    assert tuple(map(tuple, grid.colorscale)) == tuple(map(tuple, style.DIVERGING))


def test_numbers_stand_in_the_cells_of_small_grids_alone():
    assert rl.viz.head_map(torch.ones(12, 12), "risk").data[0].texttemplate
    assert not rl.viz.head_map(torch.ones(13, 12), "risk").data[0].texttemplate


def test_values_that_are_not_finite_stay_blank():
    grid = rl.viz.head_map(torch.tensor([[torch.inf, 1.0, torch.nan]]), "risk").data[0]
    assert list(grid.z[0]) == [None, 1.0, None]


def test_edited_heads_are_framed(gaussian_cache):
    detector = rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(0, 2), (1, 2)]).fit(gaussian_cache(80), detector)
    frame = rl.viz.head_map(detector.head_risk_, "risk", steering=steering).data[1]
    assert frame.name == "steered"
    assert sum(x is None for x in frame.x) == 2


def test_bad_input_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"`values` must be a tensor with the axes `layer head`; got \(3,\)"):
        rl.viz.head_map(torch.ones(3), "risk")
    with pytest.raises(InvalidArgumentError, match="got list"):
        rl.viz.head_map([[1.0]], "risk")
    with pytest.raises(DataError, match="`values` has no finite number to draw"):
        rl.viz.head_map(torch.full((2, 2), torch.nan), "risk")
    with pytest.raises(InvalidArgumentError, match="`steering` must be a Steering"):
        rl.viz.head_map(torch.ones(2, 2), "risk", steering="mine")
    with pytest.raises(InvalidArgumentError, match="`width`"):
        rl.viz.head_map(torch.ones(2, 2), "risk", width=10)
