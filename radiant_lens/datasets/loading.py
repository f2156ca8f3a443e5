"""`load_dataset`: a name or a file becomes a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from radiant_lens import _checks
from radiant_lens._errors import DataError
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.examples import Dataset
from radiant_lens.datasets.files import read_records


def data_folder() -> Path:
    """Where the data sets of the package lie: beside it in a checkout, inside it once installed."""
    installed = Path(str(resources.files("radiant_lens"))) / "data"
    return installed if installed.is_dir() else installed.parent.parent / "data"


def _tiny_facts() -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-facts.jsonl")
    return Dataset("tiny-facts", statements, prompts, contexts=Contexts(), judge="exact", stop=(".",))


def _tiny_tone() -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-tone.jsonl")
    return Dataset("tiny-tone", statements, prompts, contexts=Contexts(), judge="lexicon", stop=(".",))


_NAMED: dict[str, Callable[[], Dataset]] = {"tiny-facts": _tiny_facts, "tiny-tone": _tiny_tone}


def load_dataset(name_or_path: str | Path, *, contexts: Contexts | None = None) -> Dataset:
    """Load a data set of the package by name, or any file of statements and prompts.

    Args:
        name_or_path: "tiny-facts", "tiny-tone", or a path that ends in .csv, .json or .jsonl (see
            `radiant_lens.datasets.read_records` for its columns).
        contexts: put the statements and prompts of a file in context; the named data sets bring their own.

    Raises:
        UnknownNameError: neither a known name nor a file; the nearest names are given.
        DataError: a file that cannot be used.

    Example:
        >>> load_dataset("tiny-facts").split((0.6, 0.2, 0.2), seed=0)[2].name
        'tiny-facts'
    """
    name = str(name_or_path)
    if name in _NAMED:
        return _NAMED[name]()
    path = Path(name)
    if path.suffix not in (".csv", ".json", ".jsonl"):
        _checks.known("data set", name, _NAMED, hint="A file must end in .csv, .json or .jsonl.")
    statements, prompts = read_records(path)
    if not statements and not prompts:
        raise DataError(f"{path.name} has no rows.")
    return Dataset(path.stem, statements, prompts, contexts=contexts)
