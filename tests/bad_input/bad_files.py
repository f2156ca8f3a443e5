"""Files and artefacts as people have them, each damaged in one way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

import radiant_lens as rl

LONG = "the " * 300


def write_bad_files(place: Path) -> None:
    """Files as people have them: one of each kind of damage."""
    rows = {
        "no-label": [{"text": "a"}],
        "label-typo": [{"text": "a", "label": 1}, {"text": "b", "label": "flase"}],
        "label-two": [{"text": "a b c d", "label": 0}, {"text": "e f g h", "label": 2}],
        "one-class": [{"text": f"the soup {i}", "label": 0} for i in range(9)],
        "no-answers": [{"prompt": "who ?", "correct_answers": [], "incorrect_answers": []}],
        "surrogate": [{"text": "a \ud800", "label": 0}],
        "long": [{"text": LONG, "label": 0}, {"text": LONG, "label": 1}],
        "empty": [],
    }
    for name, records in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    (place / "binary.csv").write_bytes(b"\xff\xfe\x00\x00")
    (place / "broken.json").write_text('[{"text": "a", ')
    studies = {
        "no-mapping": "- a",
        "arms-are-numbers": "arms: [1]",
        "arms-is-a-number": "arms: 1",
        "key-typo": "arm: []",
        "code": "arms: !!python/object/apply:os.getcwd []",
        "seeds": "grid: {gamma: [0.1]}\nseeds: 3",
    }
    for name, text in studies.items():
        (place / f"{name}.yaml").write_text(text)


def write_bad_artefacts(place: Path, cache: rl.HeadCache, steering: rl.Steering) -> None:
    """A good artefact of each kind, and copies that are damaged in one way each."""
    steering.save(place / "steering")
    cache.save(place / "cache")
    (place / "file").write_text("mine")
    torch.save({"weights": torch.zeros(3)}, place / "steering.pt")
    for name in ("cut", "later", "climbing", "absolute", "pickled", "no-weights"):
        shutil.copytree(place / "steering", place / name)
    for name in ("flat", "cut-cache"):
        shutil.copytree(place / "cache", place / name)
    for name in ("cut", "cut-cache"):
        whole = (place / name / "tensors.safetensors").read_bytes()
        (place / name / "tensors.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copy(place / "steering.pt", place / "pickled" / "tensors.safetensors")
    change_meta(place / "later", format=99)
    change_meta(place / "climbing", map_kind="../../../etc/passwd")
    change_meta(place / "absolute", hook="/etc/passwd")
    change_meta(place / "no-weights", sites=[[99, 0]])
    change_meta(place / "flat", texts=7)
    (place / "a-model").mkdir()
    (place / "a-model" / "config.json").write_text("{")
    (place / "evaluation.json").write_text('{"format": 1, "kind": "evaluation", "settings": {}')


def change_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def read_files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() if p.is_file() else b"" for p in place.rglob("*")}
