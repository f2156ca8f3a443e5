"""Artefacts on disk: tensors as safetensors and the rest as JSON, written beside and renamed; never pickle."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import ArtefactError, OutputError

TENSORS, META = "tensors.safetensors", "meta.json"
_CARD = "README.md"
ARTEFACT_FILES = (TENSORS, META, _CARD)
FORMAT_VERSION = 2
UNHASHED = "not taken"
"""In place of the hash of tensors that were written piece by piece."""


def save_folder(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, card: str | None = None
) -> Path:
    """Write tensors, meta data and a card for readers as a folder at `path`; one of the same kind there is replaced.

    The files are written into a new folder beside `path`, which then takes its name, so an interruption
    leaves what was there before: at `path`, or (where the process was killed between two renames) beside it, where
    `load_folder` looks too.

    Raises:
        ArtefactError: something else than an artefact of this kind stands at `path`.
        OutputError: it cannot be written; what was there is left.
    """
    path = Path(path)
    _require_kind(path, kind)
    with write_errors(path):
        _save_folder(path, kind, tensors, meta, card)
    return path


def _require_kind(path: Path, kind: str) -> None:
    if path.exists() and _kind_at(path) != kind:
        raise ArtefactError(f"{str(path)!r} exists and is not a saved {kind}; it is left alone, choose another path.")


def _save_folder(
    path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], card: str | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        # Tensors that share memory are refused by safetensors: each gets its own.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, beside / TENSORS)
        write_meta(beside, kind, {"sha256": file_hash(beside / TENSORS), **meta})
        if card is not None:
            (beside / _CARD).write_text(card, encoding="utf-8")
        _take_name(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in _beside(path):
        shutil.rmtree(old)


def check_target(path: str | Path, kind: str | None = None) -> None:
    """Raise now what saving at `path` would raise after hours of work; nothing is left there.

    Args:
        path: of the folder (`kind` given) or the file to be written.
        kind: of artefact.

    Raises:
        ArtefactError: something else than an artefact of this kind stands at `path`.
        OutputError: nothing can be written there.
    """
    path = Path(path)
    if kind is not None:
        _require_kind(path, kind)
    with write_errors(path):
        if kind is None:
            _require_ordinary(path)
        there = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def _require_ordinary(path: Path) -> None:
    """A folder, or a device such as /dev/stdout, is not to be replaced by a file."""
    if path.exists() and not path.is_file():
        raise OSError("it is no ordinary file")


@contextmanager
def write_errors(path: Path, kept: str = "what stood there is as it was") -> Generator[None]:
    """What a disk says becomes one sentence with what is `kept` and the remedy; a file's, that of its folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise OutputError(
            f"{str(path)!r} cannot be written ({said}); {kept}. Free some space, or choose a folder that you may "
            "write to."
        ) from cause


def write_meta(folder: Path, kind: str, meta: Mapping[str, Any]) -> None:
    """Write the meta data by which a folder is an artefact of this kind."""
    encoder = json.JSONEncoder(indent=1, ensure_ascii=False)
    # Piece by piece: the whole as one text would be several copies of all texts of a cache.
    write_text(folder / META, encoder.iterencode({"format": FORMAT_VERSION, "kind": kind, **meta}))


def _take_name(beside: Path, path: Path) -> None:
    beside.chmod(0o755)
    if not path.exists():
        os.replace(beside, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    os.replace(path, old / "was")
    try:
        os.replace(beside, path)
    except BaseException:
        os.replace(old / "was", path)
        raise
    finally:
        shutil.rmtree(old)


def _kind_at(path: Path) -> str | None:
    try:
        return parsed(json.loads, (path / META).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        return None


def _set_aside(path: Path) -> list[Path]:
    """Good artefacts that were about to be replaced when a process was killed, the newest first."""
    found = [old / "was" for old in _beside(path) if (old / "was").is_dir()]
    return sorted(found, key=lambda was: was.stat().st_mtime, reverse=True)


def _beside(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}-old-*"))


def sha256(pieces: Iterable[bytes | memoryview]) -> str:
    """Hash of several pieces of bytes, as if they were one, in hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return sha256(iter(lambda: file.read(1 << 20), b""))


def load_folder(path: str | Path, kind: str, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (memory-mapped) and meta data of a folder written by `save_folder`.

    Args:
        path: of the folder.
        kind: what it must hold.
        verify: read all tensors once and compare them with the hash that was saved, where one was.

    Raises:
        ArtefactError: the folder is missing, damaged, of another kind, or of a later format.
    """
    _checks.instance("path", path, (str, os.PathLike))
    path = Path(path)
    if not path.exists():
        path = next(iter(_set_aside(path)), path)
    if not (path / META).is_file():
        raise ArtefactError(f"{str(path)!r} is not a saved {kind}: it has no {META}.")
    try:
        meta = parsed(json.loads, (path / META).read_text(encoding="utf-8"))
        _check_head(meta, path, kind)
        # The first format had no hash at first; since then one that is missing was lost.
        tensors, saved_as = read_tensors(path, kind), meta.pop("sha256", UNHASHED if meta["format"] == 1 else None)
        if verify and saved_as != UNHASHED and saved_as != file_hash(path / TENSORS):
            raise ArtefactError(f"The saved {kind} at {str(path)!r} is damaged: {TENSORS} is not what was saved.")
        return tensors, meta
    except ArtefactError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(path, kind, error) from error


def read_tensors(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of an artefact alone, memory-mapped.

    Raises:
        ArtefactError: they are missing or damaged.
    """
    try:
        return load_file(path / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> ArtefactError:
    return ArtefactError(f"The saved {kind} at {str(path)!r} is damaged: {error}.")


def parsed(parse: Callable[[str], Any], text: str) -> Any:
    """What `json.loads` or `yaml.safe_load` makes of a text.

    Raises:
        ValueError: whatever is wrong with the text, also where it is nested more deeply than Python goes.
    """
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_head(meta: Any, path: Path, kind: str) -> None:
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        raise ArtefactError(f"{str(path)!r} is not a saved {kind}.")
    if not isinstance(meta.get("format"), int) or meta["format"] > FORMAT_VERSION:
        raise ArtefactError(
            f"{str(path)!r} has format {meta.get('format')!r}; this version reads up to {FORMAT_VERSION}: "
            "update radiant-lens."
        )


def save_json(path: str | Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Write an artefact as one JSON file, beside and renamed."""
    return write_text(path, json.dumps({"format": FORMAT_VERSION, "kind": kind, **content}, ensure_ascii=False))


def load_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Content of a file written by `save_json`.

    Raises:
        ArtefactError: the file is missing, damaged, of another kind, or of a later format.
    """
    path = Path(path)
    try:
        content = parsed(json.loads, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"The saved {kind} at {str(path)!r} cannot be read: {error}.") from error
    _check_head(content, path, kind)
    return content


def write_text(path: str | Path, text: str | Iterable[str]) -> Path:
    """Write a text, or its pieces, beside and rename the file, so that a good one is never replaced by half of one.

    Raises:
        OutputError: it cannot be written; what was there is left.
    """
    path = Path(path)
    with write_errors(path):
        _require_ordinary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    return path
