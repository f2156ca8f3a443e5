"""Versions, devices, threads, and the check-up of a model, as one table or object."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from radiant_lens.checkup import Finding, check_up
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_model, load_plain

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PACKAGES = ("radiant-lens", "transformer-lens", "transformers", "torch", "scikit-learn")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Entries of a model's signature that say nothing to a reader of the table.
_HIDDEN = ("config", "weights", "content")


def examine(
    name: str, device: str | None = None, *, dtype: str | None = None, prepend_bos: bool | None = None
) -> dict[str, Any]:
    """Return versions, devices, threads, the model, and a finding for each check; "ok" is True if all checks hold.

    Args:
        name: the model, loaded as `load_model` loads it.
        device, dtype, prepend_bos: those of `load_model`, so that what is checked is what is used.
    """
    versions = {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}}
    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    # Before the check-up, which itself loads the machine.
    threads, cores, load = torch.get_num_threads(), usable_cores(), load_average()
    model, findings = _check(name, device=device, dtype=dtype, prepend_bos=prepend_bos)
    return {
        "versions": versions,
        "devices": devices,
        "threads": {"torch": threads, "cores": cores, "load": load, "advice": threads_advice(threads, cores, load)},
        "model": model,
        "checks": [finding._asdict() for finding in findings],
        "ok": all(finding.holds for finding in findings),
    }


def _check(name: str, **options: Any) -> tuple[dict[str, Any], list[Finding]]:
    try:
        bridge = load_model(name, **options)
        model = {**signature(bridge), "device": str(bridge.cfg.device), "special tokens": token_rule(bridge)}
        return model, [Finding("load", True, ""), *check_up(bridge, load_plain(name, bridge))]
    except ModelLoadError as error:
        return {"name": name}, [Finding("load", False, str(error))]


def token_rule(bridge: TransformerBridge) -> str:
    """Return a sentence about the BOS token in front of texts."""
    config: Any = bridge.cfg
    prepends = bool(config.default_prepend_bos)
    bos = repr(bridge.tokenizer.bos_token) if prepends else "a BOS token"
    source = "as by the model's own tokenizer"
    if prepends != bool(config.tokenizer_prepends_bos):
        source = "set by `prepend_bos`; the model's own tokenizer does otherwise"
    return f"texts begin {'with' if prepends else 'without'} {bos} ({source})"


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


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """Return the report of `examine` as rows of a table: facts first, then each check with its result."""
    model = {key: value for key, value in report["model"].items() if key not in _HIDDEN}
    threads = report["threads"]
    facts = {
        **report["versions"],
        "devices": ", ".join(report["devices"]),
        "threads": threads["advice"] or f"{threads['torch']} on {threads['cores']} cores",
        **model,
    }
    table = [{"check": key, "result": str(value)} for key, value in facts.items()]
    for finding in report["checks"]:
        verdict = "ok" if finding["holds"] else "FAILED"
        table.append({"check": finding["check"], "result": f"{verdict}  {finding['detail']}".strip()})
    return table
