"""Artefacts on disk: tensors as safetensors, the rest as JSON, never pickle.

Every file and folder is written under a temporary name in the target's folder and then renamed, so a process that is
killed leaves either the old artefact or the new one. A power failure may leave less, because nothing is flushed to the
disk; the hash in the meta data detects it.
"""

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
# A fit without a steering saves its detector. A later one replaces that by its steering, but never the other way round.
_LESSER = {"steering": "detector"}
UNHASHED = "not taken"
"""Value in place of the hash of tensors that were written piece by piece."""

# `mkstemp`, `mkdtemp` and safetensors make files that their owner alone can read. An artefact must be readable for the
# people with whom it is shared.
FILE_MODE, FOLDER_MODE = 0o644, 0o755


def save_folder(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, card: str | None = None
) -> Path:
    """Write tensors, meta data and a card for readers as a folder; an artefact of the same kind is replaced.

    An interruption leaves the old artefact: at `path`, or, if the process is killed between two renames, next to it,
    where `load_folder` looks too.

    Raises:
        ArtefactError: `path` exists and is not an artefact of this kind.
        OutputError: the folder cannot be written; the old artefact is left.
    """
    path = Path(path)
    _require_kind(path, kind)
    with write_errors(path):
        _save_folder(path, kind, tensors, meta, card)
    return path


def _require_kind(path: Path, kind: str) -> None:
    if path.exists() and _kind_at(path) not in (kind, _LESSER.get(kind, kind)):
        raise ArtefactError(f"{str(path)!r} exists and is not a saved {kind}; it is left alone, choose another path.")


def _save_folder(
    path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], card: str | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the target's own folder, because a rename is atomic within one file system only.
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        # safetensors refuses tensors that share memory, so each is copied.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, new / TENSORS)
        (new / TENSORS).chmod(FILE_MODE)
        # The meta data comes last: a folder without it is not an artefact.
        write_meta(new, kind, {"sha256": file_hash(new / TENSORS), **meta})
        if card is not None:
            write_text(new / _CARD, card)
        _swap(new, path)
    finally:
        # After a swap nothing is left to remove.
        shutil.rmtree(new, ignore_errors=True)
    # Remains of earlier processes that were killed; they are safe to remove only now that `path` is whole.
    for remains in _set_aside_folders(path):
        shutil.rmtree(remains)


def check_target(path: str | Path, kind: str | None = None) -> None:
    """Raise the errors of a save before hours of work; nothing is written.

    Args:
        path: of the artefact's folder, or of a file.
        kind: of the artefact; None for a file.

    Raises:
        ArtefactError: `path` exists and is not an artefact of this kind.
        OutputError: `path` cannot be written.
    """
    path = Path(path)
    if kind is not None:
        _require_kind(path, kind)
    with write_errors(path):
        if kind is None:
            _require_ordinary(path)
        # Permission bits do not tell all (read-only file systems, quotas): only a write shows whether one can write.
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass


def _require_ordinary(path: Path) -> None:
    """Refuse to replace a folder, or a device such as /dev/stdout, by a file."""
    if path.exists() and not path.is_file():
        raise OSError("it is not an ordinary file")


@contextmanager
def write_errors(path: Path, unchanged: str = "what was there is unchanged") -> Generator[None]:
    """Turn errors of the disk into one sentence: the path, the cause, what is unchanged, and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # An artefact's folder contains its files' writes: the error names the folder, which the user chose.
        cause = error.__cause__ if isinstance(error, OutputError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise OutputError(
            f"{str(path)!r} cannot be written ({reason}); {unchanged}. Free some space, or choose a folder that you "
            "may write to."
        ) from cause


def write_meta(folder: Path, kind: str, meta: Mapping[str, Any]) -> None:
    """Write the meta data that make a folder an artefact of this kind."""
    encoder = json.JSONEncoder(indent=1, ensure_ascii=False)
    # Piece by piece: one text of everything would be several copies of all texts of a cache.
    write_text(folder / META, encoder.iterencode({"format": FORMAT_VERSION, "kind": kind, **meta}))


def _swap(new: Path, path: Path) -> None:
    """Rename a finished folder to `path`, where an older artefact may be."""
    new.chmod(FOLDER_MODE)
    if not path.exists():
        os.replace(new, path)
        return
    # A folder that is not empty cannot be replaced in one rename, so the old one is set aside first. The process may
    # end in three ways before all is done:
    # 1. by an exception between the renames, such as Ctrl-C: the old one is put back here;
    # 2. by a kill between the renames: nothing is at `path`, and `load_folder` finds the old one by its name;
    # 3. by a kill after both: the old one is left over, `load_folder` ignores it, and the next save removes it.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    os.replace(path, aside / "was")
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside / "was", path)
        raise
    finally:
        shutil.rmtree(aside)


def _kind_at(path: Path) -> str | None:
    try:
        return parsed(json.loads, (path / META).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        return None


def _set_aside(path: Path) -> list[Path]:
    """Find artefacts that were being replaced when a process was killed, the newest first."""
    artefacts = [folder / "was" for folder in _set_aside_folders(path) if (folder / "was").is_dir()]
    return sorted(artefacts, key=lambda was: was.stat().st_mtime, reverse=True)


def _set_aside_folders(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}-old-*"))


def sha256(pieces: Iterable[bytes | memoryview]) -> str:
    """Hash pieces of bytes as if they were one; returns hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hash a file's content; returns hexadecimal digits."""
    with path.open("rb") as file:
        return sha256(iter(lambda: file.read(1 << 20), b""))


def load_folder(path: str | Path, kind: str, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (memory-mapped) and meta data of a folder written by `save_folder`.

    Args:
        path: of the folder.
        kind: of artefact that it must hold.
        verify: read all tensors once and compare them with the saved hash, if there is one.

    Raises:
        ArtefactError: the folder is missing, damaged, of another kind, or of a later format.
    """
    _checks.instance("path", path, (str, os.PathLike))
    path = Path(path)
    if not path.exists():
        path = next(iter(_set_aside(path)), path)
    if not path.exists():
        raise ArtefactError(f"There is no folder {str(path)!r} with a saved {kind}: check the path.")
    if not (path / META).is_file():
        raise ArtefactError(f"{str(path)!r} is not a saved {kind}: it has no {META}.")
    try:
        meta = parsed(json.loads, (path / META).read_text(encoding="utf-8"))
        _check_head(meta, path, kind)
        # Files of format 1 may have no hash. In later ones a missing hash was lost, so it must not pass as "unhashed".
        tensors, digest = read_tensors(path, kind), meta.pop("sha256", UNHASHED if meta["format"] == 1 else None)
        if verify and digest != UNHASHED and digest != file_hash(path / TENSORS):
            raise ArtefactError(f"The saved {kind} at {str(path)!r} is damaged: {TENSORS} is not what was saved.")
        return tensors, meta
    except ArtefactError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(path, kind, error) from error


def read_tensors(path: Path, kind: str) -> dict[str, Tensor]:
    """Read the tensors of an artefact without its meta data, memory-mapped.

    Raises:
        ArtefactError: the tensors are missing or damaged.
    """
    try:
        return load_file(path / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> ArtefactError:
    return ArtefactError(f"The saved {kind} at {str(path)!r} is damaged: {error}.")


def parsed(parse: Callable[[str], Any], text: str) -> Any:
    """Parse a text with `json.loads` or `yaml.safe_load`.

    Raises:
        ValueError: anything wrong with the text, also if it is nested more deeply than Python's recursion limit.
    """
    try:
        return parse(text)
    except yaml.YAMLError as error:
        # Its message has a line for each place in the text.
        raise ValueError(" ".join(str(error).split())) from error
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
    """Write an artefact as one JSON file."""
    return write_text(path, json.dumps({"format": FORMAT_VERSION, "kind": kind, **content}, ensure_ascii=False))


def load_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Read a file written by `save_json`.

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
    """Write a text, or its pieces, to a temporary file and rename it, so that no good file is replaced by half of one.

    Raises:
        OutputError: the file cannot be written; the old one is left.
    """
    path = Path(path)
    with write_errors(path):
        _require_ordinary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)
            os.chmod(name, FILE_MODE)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    return path
