"""Precisions: of loading a model, and of comparing two results."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Largest difference between two results that are equal but for rounding, as a share of the largest value (at least 1),
by precision."""

# Flags of processors that multiply bfloat16 matrices: x86 (AVX-512, AMX) and ARM.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the precision of a name, or the precision itself; None for "auto" and None.

    Raises:
        InvalidArgumentError: not a floating-point precision.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        if dtype is not None and dtype not in DTYPES.values():
            raise InvalidArgumentError(f"`dtype` must be one of {', '.join(map(repr, DTYPES))} or 'auto'; got {dtype}.")
        return dtype
    _checks.instance("dtype", dtype, (str, torch.dtype))
    name = dtype.removeprefix("torch.")
    _checks.choice("dtype", name, ["auto", *DTYPES])
    return None if name == "auto" else DTYPES[name]


def default_dtype(checkpoint: torch.dtype, device: torch.device | None) -> torch.dtype:
    """Choose the precision in which to load a checkpoint that was saved in `checkpoint`, on a device.

    On accelerators it is the checkpoint's own. On a CPU it is bfloat16 for a bfloat16 checkpoint on a processor
    with bfloat16 arithmetic, float64 for a float64 checkpoint, and else float32. The processor's flags decide, never a
    measurement, so that the same machine always gives the same activations.
    """
    if device is None or device.type != "cpu":
        return checkpoint
    if checkpoint == torch.bfloat16 and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float64 if checkpoint == torch.float64 else torch.float32


@cache
def cpu_has_bfloat16() -> bool:
    """Return True if the processor's flags name bfloat16 arithmetic; False also if they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return line is not None and not _BFLOAT16_FLAGS.isdisjoint(line[1].split())
