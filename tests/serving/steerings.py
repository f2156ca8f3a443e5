"""Steerings of every kind of gate and map, for models of any shape, without a fit."""

from __future__ import annotations

import torch
from plain_models import carry

import radiant_lens as rl
from radiant_lens.sites import as_sites
from radiant_lens.steering.gates import HeadScores, JointScores, TrustRegion
from radiant_lens.steering.maps import Certificate, DenseMaps, EvidenceMaps, HeadMaps, RankOneMaps, ResampleMaps

KINDS = ("rank_one", "constant", "dense", "zero", "resample", "evidence")


def make_maps(kind: str, n: int, d_head: int, generator: torch.Generator, size: float) -> HeadMaps:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "rank_one":
        return RankOneMaps(size * draw(n, d_head) / d_head**0.5, draw(n, d_head), draw(n))
    if kind == "constant":
        return RankOneMaps.translation(size * draw(n, d_head))
    if kind == "dense":
        return DenseMaps(size * draw(n, d_head, d_head) / d_head**0.5, size * draw(n, d_head))
    if kind == "zero":
        return DenseMaps.constant(torch.zeros(n, d_head, dtype=torch.float64))
    if kind == "evidence":
        # Of joint scores, whose spread is the root of the width of a layer, some lie on the ramp and some beyond.
        return EvidenceMaps(size * draw(n, d_head), size * draw(n, d_head), 0.1 * draw(n), 0.2 + draw(n).abs())
    return ResampleMaps(size * draw(n, 4, d_head), draw(n, 3, d_head), torch.zeros(n, d_head, dtype=torch.float64))


def make_steering(
    shape: tuple[int, int, int],
    *,
    kind: str = "rank_one",
    gate: str = "head",
    sites: str | None = None,
    trust: bool = False,
    size: float = 1.0,
    seed: int = 0,
    model: dict[str, object] | None = None,
    hands_over: bool = False,
) -> rl.Steering:
    """A steering with random scores, so that about half of the gates are open.

    With `hands_over`, joint scores depend on those of the layer below.
    """
    n_layers, n_heads, d_head = shape
    generator = torch.Generator().manual_seed(seed)
    every_second = [(layer, head) for layer in range(n_layers) for head in range(0, n_heads, 2)]
    heads = tuple(sorted(as_sites(sites or every_second)))
    n = len(heads)
    scores = HeadScores(
        torch.randn(n_layers, n_heads, d_head, generator=generator, dtype=torch.float64),
        0.1 * torch.randn(n_layers, n_heads, generator=generator, dtype=torch.float64),
        torch.full((n_layers,), n_heads // 2),
        JointScores(
            torch.randn(n_layers, n_heads, d_head, generator=torch.Generator().manual_seed(seed + 1)).double(),
            torch.full((n_layers,), 0.1, dtype=torch.float64),
            hands_over * carry(n_layers).double(),
        ),
    )
    region = None
    if trust:
        eye = torch.eye(d_head, dtype=torch.float64).repeat(n, 1, 1)
        region = TrustRegion(torch.zeros(n, d_head, dtype=torch.float64), eye, torch.full((n,), float(d_head)))
    return rl.Steering(
        heads,
        make_maps(kind, n, d_head, generator, size),
        scores,
        gate,
        tuple(Certificate("test") for _ in heads),
        region,
        {"policy": {"name": f"{kind}, gate {gate}"}, "model": model or {}},
    )
