"""Cells of a study: one evaluation each, stored under a hash of everything that it depends on."""

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

# Part of every key: a new number makes all kept cells of older formats unknown, so that they are computed again.
CELL_FORMAT = 4
UNSTEERED, RANDOM, SHUFFLED = "no steering", "random direction", "shuffled labels"
RANDOM_TOTAL = "random direction, total covariance"


@dataclass(frozen=True)
class Cell:
    """One evaluation: an arm or one of its controls, with one seed.

    Attributes:
        row: name of its row in the results.
        arm: the arm; for the unsteered model, an arm with the same model and test data.
        control: None for the arm itself, else `UNSTEERED`, `RANDOM`, `RANDOM_TOTAL` or `SHUFFLED`.
        seed: of splits, detectors and samples.
        draw: number of the shuffle.
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
        folder: folder for one file each; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.memory: dict[str, Evaluation] = {}

    def __contains__(self, key: str) -> bool:
        """Return True if a cell has been computed; its file is not read."""
        # Files are written under another name and then renamed, so a file that exists is complete.
        return key in self.memory if self.folder is None else self._path(self.folder, key).is_file()

    def check(self) -> None:
        """Raise `OutputError` if the folder cannot be written to."""
        if self.folder is not None:
            check_target(self._path(self.folder, "any"))

    def load(self, key: str) -> Evaluation:
        """The evaluation of a cell.

        Raises:
            ArtefactError: its file is damaged.
        """
        return self.memory[key] if self.folder is None else Evaluation.load(self._path(self.folder, key))

    def save(self, key: str, evaluation: Evaluation) -> None:
        """Store the evaluation of a cell."""
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
        weights: hashes of models passed as objects.
    """

    def __init__(self, data: Mapping[str, Dataset], weights: Mapping[str, Any]) -> None:
        self._data, self._models, self._hashes = data, dict(weights), dict[str, str]()

    def model(self, name: str) -> Any:
        """Hash of a model's folder or weights; "" for a Hub id, whose name is in the key anyway."""
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
    """Hash of settings, whatever their order.

    Example:
        >>> cell_key({"a": 1, "b": 2}) == cell_key({"b": 2, "a": 1})
        True
    """
    head = {"format": CELL_FORMAT, "version": version("radiant-lens")}
    text = json.dumps({**head, **settings}, sort_keys=True, ensure_ascii=False)
    return sha256([text.encode()])[:24]


def arm_settings(arm: Arm) -> dict[str, Any]:
    """Settings that decide an arm's steering, defaults included; the arm's name is not one of them."""
    if arm.hooks is not None:
        return {"hooks": arm.hooks}
    # Defaults are written out, so that a default that changes in a later version changes the keys of cells.
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
    # Rows that the reader skipped are no content: another reader of the same data may skip others.
    values = [getattr(data, f.name) for f in fields(data) if f.name != "skipped"]
    return sha256([repr(values).encode()])[:16]


def folder_fingerprint(folder: Path) -> str:
    """Hash of a model's folder: the name, the size, and both ends of every file."""
    # Both ends only: reading gigabytes for every study would take minutes. A change of weights in the middle of a file
    # alone stays unseen; files of other training runs differ at their ends too.
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin"))
    return sha256(piece for path in paths for piece in _both_ends(path))[:16]


def _both_ends(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        yield file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        yield file.read()
