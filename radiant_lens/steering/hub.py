"""Saved steerings on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from radiant_lens._files import ARTEFACT_FILES
from radiant_lens.errors import ArtefactError


def upload(folder: str | Path, repo_id: str, *, private: bool | None, revision: str | None, message: str) -> str:
    """Upload a saved folder, into a repository that is made where there is none; returns the address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(repo_id):
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, revision=revision, commit_message=message)
    return str(repo)


def download(repo_id: str, *, revision: str | None) -> Path:
    """The folder of a steering on the Hub, of which only an artefact's own files are fetched."""
    from huggingface_hub import snapshot_download

    with _hub_errors(repo_id):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(ARTEFACT_FILES)))


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A path that does not exist yet, whose surroundings are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "steering"


@contextmanager
def _hub_errors(repo_id: str) -> Generator[None]:
    """Whatever the Hub says becomes one sentence with the remedy."""
    from httpx import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArtefactError(
            f"{repo_id!r} could not be had from or sent to the Hugging Face Hub ({said}); check the id, the network "
            "and your login, or use `save` and `load` with a folder."
        ) from error
