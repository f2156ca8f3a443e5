"""A steering as a table of its heads, and as a card in a notebook."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from radiant_lens.notebook import card, head_map

if TYPE_CHECKING:
    from radiant_lens.steering.artefact import SteeringParts


def steering_table(steering: SteeringParts) -> pd.DataFrame:
    """Return one row for each edited head: `layer`, `head`, and its certificate of the fit."""
    rows = [{**site._asdict(), **asdict(c)} for site, c in zip(steering.sites, steering.certificates)]
    return pd.DataFrame(rows)


def steering_card(steering: SteeringParts) -> str:
    """Return the HTML of a steering: what it was fitted on, and a picture of the edited heads."""
    n_layers, n_heads, _ = steering.scores.weights.shape
    edited = set(steering.sites)
    picture = [[float((layer, head) in edited) for head in range(n_heads)] for layer in range(n_layers)]
    meta = steering.meta
    sources = {"model": meta.get("model", {}).get("name"), "data": meta.get("data"), "positions": meta.get("positions")}
    words = ", ".join(f"{name} {value}" for name, value in sources.items() if value is not None)
    return card(
        "Steering", repr(steering), words and f"Fitted on {words}", head_map(picture, "Edited heads", graded=False)
    )
