"""Helpers for tests of detectors: caches with other contents, and fitted attributes to compare."""

from __future__ import annotations

import torch

from radiant_lens import HeadCache


def altered(cache, **changes):
    names = ("z", "labels", "text_index", "positions", "texts", "group_names")
    return HeadCache(**{**{n: getattr(cache, n) for n in names}, **changes})


def fitted_attributes(detector):
    return {n: v for n, v in vars(detector).items() if n.endswith("_")}


def same(one, other):
    return all(
        torch.equal(a, other[n]) if isinstance(a, torch.Tensor) else a == other[n] for n, a in one.items()
    ) and one.keys() == other.keys()  # fmt: skip
