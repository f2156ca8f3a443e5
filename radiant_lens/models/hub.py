"""The Hugging Face Hub: reaching it without long waits, and models in its local cache."""

from __future__ import annotations

from difflib import get_close_matches

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import get_session

from radiant_lens.errors import http_errors

SECONDS = 3.0
"""Time within which the Hub must answer."""


def unreachable() -> str | None:
    """The reason why the Hub cannot be reached; None if it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        # Any answer will do. The loaders of transformers try five times for each file, 23 seconds in all.
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (*http_errors(), OSError) as error:
        return str(error).strip() or type(error).__name__
    return None


def cached_folder(repository: str) -> str | None:
    """Folder of a repository's files in the local cache; None if its configuration is not there."""
    try:
        if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
            return None
        return snapshot_download(repository, local_files_only=True)
    except (ValueError, OSError):
        # Not a valid name of a repository, or an incomplete copy.
        return None


def near_name(name: str, names: list[str]) -> bool:
    """Return True if a name is most likely one of `names`, mistyped."""
    return bool(get_close_matches(name, names, n=1, cutoff=0.7))
