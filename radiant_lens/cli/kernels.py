"""Bounds on what oneDNN and torch keep on a CPU for passes of lengths that do not come again."""

from __future__ import annotations

import os

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables that hold how many compiled kernels oneDNN keeps, and how many torch keeps of what it asks of oneDNN."""
N_KERNELS = 64
"""More than one pass of a model needs, so a pass of the same length finds all of its own."""


def bound_kernels(n: int = N_KERNELS, caches: tuple[str, ...] = CACHES) -> None:
    """Have memory on a CPU stay as it is after the first passes, unless the user says otherwise.

    A kernel is compiled for every number of tokens in a pass, and both keep the last 1,024: memory grows for thousands
    of passes of mixed lengths. The variables are read at the first product of matrices in a process, so a command calls
    this before it loads a model.

    Args:
        n: kernels that each keeps.
        caches: of `CACHES`, those to bound.
    """
    for name in caches:
        os.environ.setdefault(name, str(n))
