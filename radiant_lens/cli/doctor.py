"""Versions, devices, and the check-up of a model, as one table or object."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from radiant_lens.checkup import Finding, check_up
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_model, load_plain

_PACKAGES = ("radiant-lens", "transformer-lens", "transformers", "torch", "scikit-learn")


def examine(name: str, device: str | None) -> dict[str, Any]:
    """Versions, devices, the model, and a finding for each check; `ok` says whether all hold."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}}
    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    model, findings = _checked(name, device)
    return {
        "versions": versions,
        "devices": devices,
        "model": model,
        "checks": [finding._asdict() for finding in findings],
        "ok": all(finding.holds for finding in findings),
    }


def _checked(name: str, device: str | None) -> tuple[dict[str, Any], list[Finding]]:
    try:
        bridge = load_model(name, device=device)
        described = signature(bridge) | {"device": str(bridge.cfg.device)}
        return described, [Finding("load", True, ""), *check_up(bridge, load_plain(name, bridge))]
    except ModelLoadError as error:
        return {"name": name}, [Finding("load", False, str(error))]


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The same for people: what is there, then each check with what was found."""
    model = {key: value for key, value in report["model"].items() if key not in ("config", "weights")}
    there = {**report["versions"], "devices": ", ".join(report["devices"]), **model}
    told = [{"check": key, "result": str(value)} for key, value in there.items()]
    for finding in report["checks"]:
        verdict = "ok" if finding["holds"] else "FAILED"
        told.append({"check": finding["check"], "result": f"{verdict}  {finding['detail']}".strip()})
    return told
