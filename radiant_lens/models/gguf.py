"""GGUF files as models: dequantised once and saved as a folder in Hugging Face format, next to the Hub's cache."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from radiant_lens._files import file_hash
from radiant_lens.errors import MissingPackageError, ModelLoadError
from radiant_lens.models.quiet import quiet

_RECEIPT = "radiant_lens.json"
_WEIGHTS = "model.safetensors"


def converted_folder(file: Path) -> Path:
    """Return the folder of a GGUF file's model, after converting the file if that has not been done.

    The folder's name contains the hash of the file, and a receipt in it the hash of the converted weights: another file
    of the same name, and a damaged conversion, are converted again. Several processes wait for the one that converts.

    Args:
        file: a GGUF file that transformers can read.

    Raises:
        MissingPackageError: the package `gguf` is not installed.
        ModelLoadError: the file cannot be read, or its model type is not supported by transformers.
    """
    if not file.is_file():
        raise ModelLoadError(f"There is no file {str(file)!r}.")
    if find_spec("gguf") is None:
        raise MissingPackageError(f"Reading {file.name!r} needs the package gguf: pip install gguf.")
    cache = Path(constants.HF_HOME) / "radiant-lens"
    target = cache / f"{file.stem}-{file_hash(file)[:16]}"
    if _is_whole(target):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        # Another process may have converted the file while this one waited.
        if not _is_whole(target):
            _convert(file, target)
    return target


def _is_whole(folder: Path) -> bool:
    try:
        receipt = json.loads((folder / _RECEIPT).read_text(encoding="utf-8"))
        return receipt["sha256"] == file_hash(folder / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _convert(file: Path, target: Path) -> None:
    # Written next to the target and then renamed: an interrupted conversion never has the name of a finished one.
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_model(file, beside)
        receipt = {"source": file.name, "sha256": file_hash(beside / _WEIGHTS)}
        (beside / _RECEIPT).write_text(json.dumps(receipt), encoding="utf-8")
        beside.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_model(file: Path, folder: Path) -> None:
    try:
        with quiet():
            packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **_dequantised())
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelLoadError(
            f"The GGUF file {str(file)!r} cannot be read by transformers ({reason}); use the model's folder in Hugging "
            "Face format."
        ) from error
    vars(packed.config).pop("quantization_config", None)
    # A model that was loaded from GGUF cannot be saved while its quantizer is attached: a plain one takes its weights.
    plain: Any = type(packed)(packed.config)
    plain.to(packed.dtype).load_state_dict(packed.state_dict())
    with quiet():
        # One file, so that the receipt's hash covers all weights.
        plain.save_pretrained(folder, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)


def _dequantised() -> dict[str, Any]:
    """Options that unpack every weight; transformers before 5.20 has no other way."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {"dtype": torch.bfloat16}
    return {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
