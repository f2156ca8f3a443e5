"""Cells of a study: one evaluation each, stored under a key of everything that it depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radiant_lens._files import check_target, sha256
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.models.sources import EMBEDDED
from radiant_lens.policies.registry import make_policy
from radiant_lens.studies.arms import Arm
from radiant_lens.tiny import model_folder

CELL_FORMAT = 1
UNSTEERED, RANDOM, SHUFFLED = "no steering", "random direction", "shuffled labels"


@dataclass(frozen=True)
class Cell:
    """One evaluation: an arm or one of its controls, with one seed.

    Attributes:
        row: of the results that it belongs to.
        arm: what is steered; for the unsteered model, whose model and data it stands for.
        control: None for the arm itself, else `UNSTEERED`, `RANDOM` or `SHUFFLED`.
        seed: of splits, detectors and samples.
        draw: which shuffle.
        key: hash of everything that the result depends on.
    """

    row: str
    arm: Arm
    control: str | None
    seed: int
    draw: int
    key: str


class CellStore:
    """Evaluations by the keys of their cells.

    Args:
        folder: where they are kept, one file each; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.memory: dict[str, Evaluation] = {}

    def __contains__(self, key: str) -> bool:
        """Whether a cell has been computed; its file is not read."""
        return key in self.memory if self.folder is None else self._path(self.folder, key).is_file()

    def check(self) -> None:
        """Raise `OutputError` where nothing can be written."""
        if self.folder is not None:
            check_target(self._path(self.folder, "any"))

    def load(self, key: str) -> Evaluation:
        """The evaluation of a cell.

        Raises:
            ArtefactError: its file is damaged.
        """
        return self.memory[key] if self.folder is None else Evaluation.load(self._path(self.folder, key))

    def save(self, key: str, evaluation: Evaluation) -> None:
        """Keep the evaluation of a cell."""
        if self.folder is None:
            self.memory[key] = evaluation
        else:
            evaluation.save(self._path(self.folder, key))

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / "cells" / f"{key}.json"


class Fingerprints:
    """Hashes of models and data sets by name, each computed once.

    Args:
        data: data sets by name.
        weights: hashes of models that were given as objects.
    """

    def __init__(self, data: Mapping[str, Dataset], weights: Mapping[str, Any]) -> None:
        self._data, self._models, self._hashes = data, dict(weights), dict[str, str]()

    def model(self, name: str) -> Any:
        """Hash of a model's folder or weights; "" for a Hub id, which stands for itself."""
        if name not in self._models:
            folder = model_folder() if name in EMBEDDED else Path(name)
            self._models[name] = folder_fingerprint(folder) if folder.is_dir() else ""
        return self._models[name]

    def data(self, name: str) -> str:
        """Hash of a data set."""
        if name not in self._hashes:
            self._hashes[name] = data_fingerprint(self._data[name])
        return self._hashes[name]


def cell_key(settings: dict[str, Any]) -> str:
    """Hash of settings; the same for the same settings, in whatever order.

    Example:
        >>> cell_key({"a": 1, "b": 2}) == cell_key({"b": 2, "a": 1})
        True
    """
    head = {"format": CELL_FORMAT, "version": version("radiant-lens")}
    text = json.dumps({**head, **settings}, sort_keys=True, ensure_ascii=False)
    return sha256([text.encode()])[:24]


def arm_settings(arm: Arm) -> dict[str, Any]:
    """All that decides an arm's steering, defaults written out; its name is not part of it."""
    if arm.hooks is not None:
        return {"hooks": arm.hooks}
    policy = make_policy(arm.policy, arm.policy_options)
    detector = arm.make_detector(0).get_params()
    options = {k: v for k, v in asdict(policy).items() if k not in ("heads", "n_layers", "n_heads")}
    return {
        "policy": arm.policy,
        "options": options,
        "heads": arm.heads,
        "detector": {k: v for k, v in detector.items() if k != "seed"},
        "positions": arm.positions,
    }


def data_fingerprint(data: Dataset) -> str:
    """Hash of a data set's content."""
    parts = [getattr(data, f.name) for f in fields(data) if f.name != "skipped"]
    return sha256([repr(parts).encode()])[:16]


def folder_fingerprint(folder: Path) -> str:
    """Hash of a model's folder: names, sizes, and both ends of every file."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin"))
    return sha256(piece for path in paths for piece in _both_ends(path))[:16]


def _both_ends(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        yield file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        yield file.read()
