"""Errors of the package. Each is also one of the built-in errors that people catch."""

from __future__ import annotations

import sys


class RadiantError(Exception):
    """Base of all errors that the package raises on purpose; `exit_status` is the exit status of the command line."""

    exit_status = 1


class InvalidArgumentError(RadiantError, ValueError):
    """An argument has a value, type or shape that is not allowed."""

    exit_status = 2


class InvalidIndexError(InvalidArgumentError, IndexError):
    """An index is out of range."""


class UnknownNameError(RadiantError, KeyError):
    """A name (of a model, data set, layer, hook, option) that is not known."""

    exit_status = 2

    def __str__(self) -> str:
        """Return the message."""
        # `KeyError` would return its repr, in quotes.
        return str(self.args[0]) if self.args else ""


class DataError(RadiantError, ValueError):
    """Data that cannot be used: missing columns, no examples, one class only, values that are not finite."""


class LeakageError(DataError):
    """Examples of one group are in two parts of a split."""


class NotFittedError(RadiantError, ValueError, AttributeError):
    """A fitted attribute or method was used before `fit`."""


class ConvergenceError(RadiantError, RuntimeError):
    """A solver did not reach its tolerance; the message names the layer and the head."""


class GuaranteeError(RadiantError, RuntimeError):
    """A requested guarantee cannot be given on this data."""


class NothingToEditError(RadiantError, RuntimeError):
    """A policy would not change any activation."""


class RankError(RadiantError, RuntimeError):
    """One of several processes that work together has died, or cannot see the files of the others."""


class ModelLoadError(RadiantError, OSError):
    """A model could not be loaded."""


class ModelMismatchError(RadiantError, ValueError):
    """An artefact was made for another model."""


class ArtefactError(RadiantError, ValueError):
    """A saved file is damaged, incomplete, or of a format that this version does not read."""


class OutputError(RadiantError, OSError):
    """A file could not be written; an older file in its place is unchanged."""


class MissingPackageError(RadiantError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


class TokenRuleWarning(UserWarning):
    """A steering acts on texts that begin with other special tokens than those it was fitted on."""


def http_errors() -> tuple[type[BaseException], ...]:
    """Classes of the errors of a broken connection: of httpx, and of the fork of it that newer Hub clients use."""
    # Imported here: every module imports this one, and the command line starts without the Hub's client.
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    fork = sys.modules.get("httpx2")
    return (HTTPError, HfHubHTTPError, *([] if fork is None else [fork.HTTPError]))
