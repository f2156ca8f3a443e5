"""Advice where torch has more threads than there are free cores: `doctor` and all commands that run a model give it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        # "max" if there is no quota.
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def load_average() -> float | None:
    """Mean number of running threads of the whole machine in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def threads_advice(threads: int, cores: int, load: float | None) -> str:
    """Return the remedy if torch has more threads than there are free cores; empty if it has not.

    Threads without a core of their own are far slower than fewer threads: each operation waits for the last of them.
    """
    # This process has been part of the load itself, by about one thread.
    free = cores if load is None else max(1, round(cores - max(0.0, load - 1)))
    if threads <= free:
        return ""
    state = "can be used" if load is None else f"have a load of {load:g}"
    remedy = f"set OMP_NUM_THREADS={free}, or call torch.set_num_threads({free}), or wait for other work to end"
    return f"torch uses {threads} threads, and {cores} cores {state}: {remedy}"


def advice_now() -> str:
    """Return the remedy for this process on this machine as it is; empty if it needs none."""
    return threads_advice(torch.get_num_threads(), usable_cores(), load_average())
