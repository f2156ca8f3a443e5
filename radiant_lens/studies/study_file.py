"""Studies as YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from radiant_lens import _checks
from radiant_lens._files import parsed
from radiant_lens.errors import DataError, InvalidArgumentError, RadiantError
from radiant_lens.studies.arms import Arm, grid
from radiant_lens.studies.study import Study

KEYS = (
    "name",
    "arms",
    "grid",
    "model",
    "data",
    "seeds",
    "n_samples",
    "max_new_tokens",
    "temperature",
    "metrics",
    "judge",
    "fluency_model",
    "controls",
    "n_shuffles",
    "n_groups",
    "out",
)


def read_study(path: str | Path, **changes: Any) -> Study:
    """Read a study from a YAML file.

    The file is a mapping with `arms` (a list of mappings with an arm's fields), `grid` (a mapping of axes to
    values, or a list of such mappings), or both, and any other option of `Study`:

        name: strengths
        seeds: [0, 1, 2]
        arms:
          - {name: RADIANT}
        grid:
          policy: iti
          heads: [least_risk:8, least_risk:16]
          alpha: [1, 2, 4]

    Args:
        path: of the file.
        changes: options that replace the file's.

    Raises:
        DataError: the file is not YAML or not a mapping, or has values of the wrong type.
        UnknownNameError: an unknown key.
        InvalidArgumentError: neither arms nor a grid.
    """
    path = Path(path)
    try:
        content = parsed(yaml.safe_load, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Study file {path.name!r} cannot be read: {error}.") from error
    if not isinstance(content, Mapping):
        raise DataError(f"Study file {path.name!r} must hold a mapping; it holds {type(content).__name__}.")
    for key in content:
        _checks.known("key of a study file", str(key), KEYS)
    options = {**{k: v for k, v in content.items() if k not in ("name", "arms", "grid")}, **changes}
    try:
        return Study(str(content.get("name", path.stem)), _arms(content), **options)
    except RadiantError:
        raise
    # YAML holds any type in any place, and not every argument of `Study` has a check of its own.
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"Study file {path.name!r} has a value of the wrong type: {error}.") from error


def _arms(content: Mapping[str, Any]) -> list[Arm]:
    listed, grids = content.get("arms", []), content.get("grid", [])
    _checks.instance("arms", listed, list, hint="a list of mappings, each with a `name`")
    _checks.instance("grid", grids, (Mapping, list), hint="a mapping of axes to values, or a list of such mappings")
    arms = [Arm.from_mapping(values) for values in listed]
    for axes in [grids] if isinstance(grids, Mapping) else grids:
        _checks.instance("grid", axes, Mapping, hint="a mapping of axes to values")
        arms += grid(**axes)
    if not arms:
        raise InvalidArgumentError("A study file needs `arms`, `grid`, or both.")
    return arms
