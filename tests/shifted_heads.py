"""Families of displacements of all heads, for tests of gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from plain_models import carry

import radiant_lens as rl
from radiant_lens.analysis.families import Family, Ramp
from radiant_lens.sites import HeadSite
from radiant_lens.steering.gates import HeadScores, JointScores
from radiant_lens.steering.maps import Certificate, RankOneMaps


def every_head(model, kind: str = "constant", gate: str = "none") -> Family:
    """All heads, with scores that open a gate at about half of the activations."""
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    generator = torch.Generator().manual_seed(0)
    scores = HeadScores(
        torch.randn(*shape, model.cfg.d_head, generator=generator), torch.zeros(shape), torch.ones(shape[0]).long()
    )
    sites = tuple(HeadSite(layer, head) for layer in range(shape[0]) for head in range(shape[1]))
    maps = RankOneMaps.translation(torch.randn(len(sites), model.cfg.d_head, generator=generator).double())
    mean, spread = torch.randn(2, len(sites), model.cfg.d_head, generator=generator).double()
    weights = torch.randn(*shape, model.cfg.d_head, generator=generator)
    joint = JointScores(weights, torch.zeros(shape[0]), carry(shape[0]))
    template = rl.Steering(sites, maps, replace(scores, joint=joint), gate, tuple(Certificate("any") for _ in sites))
    # From a ramp's start on for half of the activations, and full for some.
    ones = torch.ones(len(sites), dtype=torch.float64)
    ramp = Ramp(0 * ones, 0.2 * ones, 3 * ones) if kind == "evidence" else None
    return Family(kind, template, mean, spread.abs() + 0.5, ramp)
