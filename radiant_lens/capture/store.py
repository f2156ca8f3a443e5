"""A saved head cache that is written shard by shard, and that an interrupted run can continue.

A store is the folder that `HeadCache.save` writes. Its tensors are laid out at full size first (parts that are not
written yet take no space on disk). Each shard is written at its final place and then marked as done; `meta.json`,
without which a folder is not a head cache, is written last. `load` gives one memory-mapped tensor, however many shards
there were.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens._files import META, TENSORS, UNHASHED, parsed, read_tensors, write_errors, write_meta, write_text
from radiant_lens.errors import ArtefactError

Column = Callable[[], Iterable[Int[Tensor, " _"]]]
"""A column of a head cache, whole numbers (int64) for every example, in chunks that need not be in memory together."""

TRANSFORMERS = "transformers"
"""Setting "engine" of stores that passes of transformers fill, as all do that do not record it."""

SEPARATE_ROWS, SHARED_ROWS, SHORT_ROWS = ROWS = ("separate", "shared", "short")
"""Rules by which texts share rows, which decide the examples of each shard: a new rule needs a new name."""

_PLAN, _DONE = "plan.json", "shard-*.done"
_KIND = "head cache"
_REST = "its shards that are done stay, and the same call goes on from there"
# Settings that stores of version 0.1 do not record. They recorded a hash of a sample of the weights and the positions
# of all examples, which are still compared.
_NEW_SETTINGS = {"model content", "model quantization", "model adapters", "model prepend_bos", "tokens", "rows"}
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


class CacheStore:
    """A folder to which activations are written during collection.

    Args:
        path: of the folder; a new one, or a store that was begun with the same plan.
        plan: every setting that the content depends on; must be JSON.
        shape: of `z`, axes `example layer head d_head`.
        dtype: of `z`.
        columns: the other tensors of a head cache, whole numbers for every example.

    Raises:
        ArtefactError: `path` is something else, or a store with another plan; names the difference.
        OutputError: it cannot be written, now or later; shards that are written stay.
    """

    def __init__(
        self,
        path: str | Path,
        plan: Mapping[str, Any],
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        columns: Mapping[str, Column],
    ) -> None:
        self.path = Path(path)
        self._layers, self._slot = shape[1], shape[2] * shape[3] * dtype.itemsize
        plan = dict(json.loads(json.dumps({**plan, "shape": shape, "dtype": str(dtype)})))
        header, self._begin = _header(shape, dtype, columns)
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            with write_errors(self.path):
                self._lay_out(plan, header, columns)
        _require_same_plan(self.path, plan)

    def _lay_out(self, plan: Mapping[str, Any], header: bytes, columns: Mapping[str, Column]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
        try:
            with open(beside / TENSORS, "wb") as file:
                file.write(header)
                for chunk in chain.from_iterable(chunks() for chunks in columns.values()):
                    file.write(_bytes(chunk))
                # Longer than what was written: the rest is a hole, which most file systems store as nothing.
                file.truncate(self._begin + plan["shape"][0] * self._layers * self._slot)
            write_text(beside / _PLAN, json.dumps(plan, indent=1))
            # `mkdtemp` lets the owner alone in; other processes of a launch may be other users.
            beside.chmod(0o755)
            os.replace(beside, self.path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @property
    def complete(self) -> bool:
        """True if everything is written, so that the folder is a head cache."""
        return (self.path / META).is_file()

    @property
    def done(self) -> set[int]:
        """Numbers of the shards that are written completely."""
        return {int(mark.stem.removeprefix("shard-")) for mark in self.path.glob(_DONE)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the head cache, memory-mapped.

        Raises:
            ArtefactError: the file is damaged.
        """
        return read_tensors(self.path, _KIND)

    def write(
        self,
        shard: int,
        examples: Int[Tensor, " kept"],
        layers: Sequence[int],
        z: Float[Tensor, "kept chosen head d_head"],
    ) -> None:
        """Write the activations of `examples` (ascending) at `layers` (ascending), then mark the shard as done.

        Three steps in this order make the mark a proof: the values are written, `fsync` brings them to the disk, and
        only then the mark is made. A process that is killed in between leaves values without a mark, and the shard is
        computed again. After a loss of power the mark may be missing, never the values.
        """
        # Activations of one example at one layer are a slot. Neighbouring slots are written together.
        slots = (examples[:, None] * self._layers + torch.tensor(layers)).flatten()
        starts = torch.cat([torch.tensor([0]), (slots.diff() != 1).nonzero().flatten() + 1, torch.tensor([len(slots)])])
        content = _bytes(z)
        with write_errors(self.path, _REST):
            with open(self.path / TENSORS, "r+b") as file:
                for first, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
                    file.seek(self._begin + int(slots[first]) * self._slot)
                    file.write(content[first * self._slot : end * self._slot])
                file.flush()
                os.fsync(file.fileno())
            (self.path / f"shard-{shard:06d}.done").touch()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Write `meta.json`, which makes the folder a head cache, and remove the marks of shards."""
        with write_errors(self.path, _REST):
            write_meta(self.path, _KIND, {"sha256": UNHASHED, **meta})
        self.tidy()

    def tidy(self) -> None:
        """Remove the marks of shards, which a complete store does not need."""
        for mark in self.path.glob(_DONE):
            mark.unlink(missing_ok=True)


def _header(shape: tuple[int, ...], dtype: torch.dtype, columns: Iterable[str]) -> tuple[bytes, int]:
    """Header of the safetensors file, with `z` after the other tensors, and the offset of its first byte.

    The format: eight bytes with the length of the header, the header (JSON, padded with blanks to a multiple of eight
    bytes so that tensors are aligned), then the tensors, at offsets counted from the end of the header.
    """
    entries, end = {}, 0
    sized = [(name, torch.int64, shape[:1]) for name in columns]
    for name, kind, axes in [*sized, ("z", dtype, shape)]:
        begin, end = end, end + kind.itemsize * torch.Size(axes).numel()
        entries[name] = {"dtype": _NAMES[kind], "shape": list(axes), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + entries["z"]["data_offsets"][0]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def rows_of(path: str | Path) -> str:
    """Name of the rule by which texts share rows in a store: it decides the examples of each shard.

    Stores that were begun by an earlier version say "shared", or nothing: each text has a row of its own.
    """
    plan = Path(path) / _PLAN
    try:
        recorded = json.loads(plan.read_text(encoding="utf-8")).get("rows", SEPARATE_ROWS)
    except (OSError, AttributeError, ValueError):
        recorded = None
    # None: not begun yet, or no store, which is refused when it is opened.
    return recorded if recorded in ROWS else SHORT_ROWS


def _require_same_plan(path: Path, plan: Mapping[str, Any]) -> None:
    try:
        recorded = dict(parsed(json.loads, (path / _PLAN).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        raise ArtefactError(
            f"{str(path)!r} exists and is not a store; it is left alone, choose another path."
        ) from None
    recorded.setdefault("engine", TRANSFORMERS)
    compared = [name for name in plan if name in recorded or name not in _NEW_SETTINGS]
    changes = [
        f"{name} = {recorded.get(name)!r}, now {plan[name]!r}" for name in compared if recorded.get(name) != plan[name]
    ]
    if changes:
        raise ArtefactError(
            f"The store at {str(path)!r} was begun with other settings: {'; '.join(changes)}. Choose another path, or "
            "go back to those settings."
        )
