"""Messages to the front end, as JSON can hold them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from radiant_lens.sites import HeadSite
from radiant_lens.viz._style import finite_or_none
from radiant_lens.viz.explorer.explorer import Explorer
from radiant_lens.viz.explorer.streams import Answer, Token, TokenKL


def event_message(event: Token | TokenKL | Answer) -> dict[str, Any]:
    """Return an event of an answer, with its "kind"; heads by their names."""
    fields = asdict(event)
    if isinstance(event, Token):
        fields |= {name: [str(site) for site in getattr(event, name)] for name in ("votes", "edited")}
    return {"kind": event.kind, **fields}


def settings_message(explorer: Explorer) -> dict[str, Any]:
    """Return the settings, with the code that reproduces them."""
    return {"kind": "settings", "settings": explorer.settings.to_json(), "code": explorer.code()}


def snapshot(explorer: Explorer) -> dict[str, Any]:
    """Return all that a front end shows before the first answer."""
    n_layers, n_heads, _ = explorer.original.scores.weights.shape
    allowed = explorer.allowed
    return {
        "kind": "snapshot",
        "model": str(explorer.model.cfg.model_name),
        "steering": repr(explorer.original),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "sites": [str(site) for site in explorer.original.sites],
        "gates": dict(allowed.gates),
        "forms": list(allowed.forms),
        "refusals": {"strength": allowed.strength, "budget": allowed.budget},
        "examples": [example.to_json() for example in explorer.examples],
        "settings": explorer.settings.to_json(),
        "code": explorer.code(),
        "risk": _risk(explorer),
        "effect": {str(site): explorer.effect(site) for site in explorer.original.sites},
        "texts": _texts(explorer),
    }


def _risk(explorer: Explorer) -> dict[str, Any]:
    """Risk of every head: as recorded where it is for all heads, else on the drawn texts."""
    n_layers, n_heads, _ = explorer.original.scores.weights.shape
    sites = [[HeadSite(layer, head) for head in range(n_heads)] for layer in range(n_layers)]
    recorded = explorer.recorded_risks()
    scores = explorer.scores
    if len(recorded) < n_layers * n_heads and scores is not None and scores.n_tokens and explorer.detects:
        fpr, fnr = scores.rates()
        return {"values": finite_or_none(fpr + explorer.fnr_weight * fnr), "on": f"{scores.n_read} texts of the data"}
    values = [[recorded[site].risk if site in recorded else None for site in row] for row in sites]
    finite = [[v if v is not None and math.isfinite(v) else None for v in row] for row in values]
    return {"values": finite, "on": "the detector's validation data" if recorded else ""}


def _texts(explorer: Explorer) -> str:
    scores, data = explorer.scores, explorer.data
    if scores is None or data is None:
        return ""
    return f"{len(scores.statements)} of {len(data.statements)} statements of {data.name}"
