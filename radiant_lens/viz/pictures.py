"""Static pictures beside interactive figures, for notebooks that are exported or read where no script runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import plotly.io as pio

from radiant_lens import _checks
from radiant_lens.errors import MissingPackageError
from radiant_lens.viz import _style as style


def keep_pictures(*, width: int = 800) -> None:
    """Store every figure of this notebook twice: as data, and as a picture for what cannot draw data.

    JupyterLab and VS Code draw the data, and readers can move in it. GitHub, PDF and mail show the picture. The setting
    holds for all Plotly figures of the process, and for figures that are shown from now on.

    Args:
        width: of the pictures, in pixels, where a figure has none of its own.

    Raises:
        InvalidArgumentError: a width below 100 pixels.
        MissingPackageError: the package kaleido, which draws pictures with an installed Chrome or Chromium, is missing.

    Example:
        >>> rl.viz.keep_pictures()  # doctest: +SKIP
    """
    _checks.whole("width", width, style.MIN_PIXELS)
    if find_spec("kaleido") is None:
        raise MissingPackageError(
            "Pictures of figures need the package kaleido and a Chrome browser: pip install 'radiant-lens[pictures]'."
        )
    renderers: Any = pio.renderers
    # Twice as many pixels as points, so that text is sharp on dense screens and on paper.
    renderers["png"].width, renderers["png"].scale = width, 2
    renderers.default = "plotly_mimetype+png"
