"""A fitted detector as a table of heads, and as a card in a notebook."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from radiant_lens.notebook import card, head_map


def heads_table(figures: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return one row for each head: `layer`, `head`, and a column for each figure (axes `layer head`)."""
    n_layers, n_heads = next(iter(figures.values())).shape
    places = {"layer": np.repeat(range(n_layers), n_heads), "head": np.tile(range(n_heads), n_layers)}
    return pd.DataFrame({**places, **{name: figure.flatten().numpy() for name, figure in figures.items()}})


def detector_card(words: str, risk: Float[Tensor, "layer head"] | None) -> str:
    """Return the HTML of a detector: a line of words and, once it is fitted, the risk of each head."""
    return card(
        "RiskAwareDetector", words, *([] if risk is None else [head_map(risk.tolist(), "Validation risk of each head")])
    )
