"""Saved steerings on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from radiant_lens._files import ARTEFACT_FILES
from radiant_lens.errors import ArtefactError, http_errors


def upload(folder: str | Path, repo_id: str, *, private: bool | None, revision: str | None, message: str) -> str:
    """Upload a saved folder to a repository, which is created if needed; returns the address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(repo_id):
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, revision=revision, commit_message=message)
    return str(repo)


def download(repo_id: str, *, revision: str | None) -> Path:
    """Download the files of a steering from the Hub; returns the local folder."""
    from huggingface_hub import snapshot_download

    # Only the files of an artefact: a repository may hold gigabytes of other things, or code.
    with _hub_errors(repo_id):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(ARTEFACT_FILES)))


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A path for a folder that does not exist yet; it is removed at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "steering"


@contextmanager
def _hub_errors(repo_id: str) -> Generator[None]:
    """Turn the errors of the Hub into one sentence with the remedy."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, *http_errors(), HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArtefactError(
            f"{repo_id!r} could not be downloaded or uploaded: the Hugging Face Hub says {reason!r}. Check the id, the "
            "network and your login, or use `save` and `load` with a folder."
        ) from error
