"""The file format of a steering: a folder of safetensors and JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from radiant_lens import _checks
from radiant_lens._errors import ArtefactError, RadiantError
from radiant_lens._files import load_folder, save_folder
from radiant_lens.policies.gates import GATES, HeadScores, TrustRegion
from radiant_lens.policies.maps import MAP_KINDS, Certificate
from radiant_lens.policies.steering import Steering
from radiant_lens.sites import checked_sites

_KIND = "steering"


def save_steering(steering: Steering, path: str | Path) -> Path:
    """Write a steering as a folder at `path`."""
    scores = {
        "weights": steering.scores.weights,
        "biases": steering.scores.biases,
        "thresholds": steering.scores.thresholds,
    }
    tensors = {f"map.{name}": value for name, value in steering.head_maps.tensors().items()}
    tensors |= {f"scores.{name}": value for name, value in scores.items()}
    if steering.trust is not None:
        tensors |= {f"trust.{name}": getattr(steering.trust, name) for name in ("mean", "whiten", "radius2")}
    meta = {
        "sites": [list(site) for site in steering.sites],
        "map_kind": steering.head_maps.kind,
        "gate": steering.gate,
        "certificates": [asdict(certificate) for certificate in steering.certificates],
        "meta": steering.meta,
    }
    return save_folder(path, _KIND, tensors, meta)


def load_steering(path: str | Path) -> Steering:
    """Read a steering.

    Raises:
        ArtefactError: the folder is missing, damaged, or no steering.
    """
    tensors, meta = load_folder(path, _KIND)
    try:
        return _built(tensors, meta)
    except (KeyError, TypeError, AttributeError, IndexError, RadiantError) as error:
        raise ArtefactError(f"The saved steering at {str(path)!r} is incomplete: {error}.") from error


def _built(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Steering:
    parts = {
        prefix: {n.split(".", 1)[1]: t for n, t in tensors.items() if n.startswith(prefix + ".")}
        for prefix in ("map", "scores", "trust")
    }
    scores = HeadScores(**parts["scores"])
    n_layers, n_heads, d_head = scores.weights.shape
    _checks.shape("biases", scores.biases, (n_layers, n_heads), "layer head")
    _checks.shape("thresholds", scores.thresholds, (n_layers,), "layer")
    _checks.choice("gate", meta["gate"], GATES)
    _checks.choice("map_kind", meta["map_kind"], MAP_KINDS)
    sites = checked_sites([tuple(site) for site in meta["sites"]], n_layers, n_heads)
    for name, value in parts["map"].items():
        _checks.shape(name, value, (len(sites), *[d_head] * (value.ndim - 1)), "site ...")
        _checks.finite(name, value)
    return Steering(
        sites=sites,
        head_maps=MAP_KINDS[meta["map_kind"]](**parts["map"]),
        scores=scores,
        gate=meta["gate"],
        certificates=tuple(Certificate(**certificate) for certificate in meta["certificates"]),
        trust=TrustRegion(**parts["trust"]) if parts["trust"] else None,
        meta=meta["meta"],
    )
