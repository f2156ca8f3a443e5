"""Every error of the package. Each also is one of the built-ins that people catch."""

from __future__ import annotations


class RadiantError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command line returns for it."""

    exit_status = 1


class InvalidArgumentError(RadiantError, ValueError):
    """An argument has a value, type or shape that is not allowed."""

    exit_status = 2


class InvalidIndexError(InvalidArgumentError, IndexError):
    """An index lies outside what it counts in."""


class UnknownNameError(RadiantError, KeyError):
    """A name (of a model, data set, layer, hook, option) that is not known."""

    exit_status = 2

    def __str__(self) -> str:
        """The message itself; `KeyError` would print its repr."""
        return str(self.args[0]) if self.args else ""


class DataError(RadiantError, ValueError):
    """Data that cannot be used: missing columns, no examples, one class only, values that are not finite."""


class LeakageError(DataError):
    """Examples of one group stand on both sides of a split."""


class NotFittedError(RadiantError, ValueError, AttributeError):
    """A fitted attribute or method was used before `fit`."""


class ConvergenceError(RadiantError, RuntimeError):
    """A solver did not reach its tolerance; the message names the layer and the head."""


class GuaranteeError(RadiantError, RuntimeError):
    """What was asked to be guaranteed cannot be, on this data."""


class NothingToEditError(RadiantError, RuntimeError):
    """A policy would leave every activation as it is."""


class RankError(RadiantError, RuntimeError):
    """Of several processes that work together, one has died or cannot see what the others wrote."""


class ModelLoadError(RadiantError, OSError):
    """A model could not be loaded."""


class ModelMismatchError(RadiantError, ValueError):
    """An artefact was made for another model."""


class ArtefactError(RadiantError, ValueError):
    """A saved file is damaged, incomplete, or of a format that this version does not read."""


class OutputError(RadiantError, OSError):
    """A file could not be written; what stood in its place is as it was."""


class MissingPackageError(RadiantError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""
