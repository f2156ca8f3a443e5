"""Versions, devices, threads, and the check-up of a model, as one table or object."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from radiant_lens.checkup import Finding, check_up
from radiant_lens.cli.threads import load_average, threads_advice, usable_cores
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_model, load_plain

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PACKAGES = ("radiant-lens", "transformer-lens", "transformers", "torch", "scikit-learn")
# Entries of a model's signature that say nothing to a reader of the table.
_HIDDEN = ("config", "weights", "content")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}}


def examine(
    name: str, device: str | None = None, *, dtype: str | None = None, prepend_bos: bool | None = None
) -> dict[str, Any]:
    """Return versions, devices, threads, the model, and a finding for each check; "ok" is True if all checks hold.

    Args:
        name: the model, loaded as `load_model` loads it.
        device, dtype, prepend_bos: those of `load_model`, so that what is checked is what is used.
    """
    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    # Before the check-up, which itself loads the machine.
    threads, cores, load = torch.get_num_threads(), usable_cores(), load_average()
    model, findings = _check(name, device=device, dtype=dtype, prepend_bos=prepend_bos)
    return {
        "versions": versions(),
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
