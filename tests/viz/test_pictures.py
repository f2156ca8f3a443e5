"""Figures that notebooks store as data and as pictures."""

from __future__ import annotations

import base64
import shutil

import plotly.graph_objects as go
import plotly.io as pio
import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, MissingPackageError
from radiant_lens.viz import pictures


@pytest.fixture
def renderers(monkeypatch):
    """Renderers of Plotly; those of the process are put back afterwards."""
    png, default = pio.renderers["png"], pio.renderers.default
    size = png.width, png.scale
    yield pio.renderers
    (png.width, png.scale), pio.renderers.default = size, default


def test_a_figure_is_shown_as_data_and_as_a_picture(renderers):
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install kaleido")
    if not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        pytest.skip("no browser: apt-get install chromium")
    rl.viz.keep_pictures(width=400)
    shown = go.Figure(go.Scatter(x=[1, 2], y=[1, 2]))._repr_mimebundle_()
    assert shown["application/vnd.plotly.v1+json"]["data"]
    picture = base64.b64decode(shown["image/png"])
    assert picture.startswith(b"\x89PNG")
    # Twice as many pixels as points.
    assert int.from_bytes(picture[16:20], "big") == 800


def test_a_missing_package_is_named(monkeypatch, renderers):
    default = renderers.default
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'radiant-lens\[pictures\]'"):
        rl.viz.keep_pictures()
    assert renderers.default == default
    with pytest.raises(InvalidArgumentError, match="`width`"):
        rl.viz.keep_pictures(width=0)
