"""The steering that a request asks for: read from its extra arguments, checked, and written back in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.serving.catalog import NO_STEERING, Catalog
from radiant_lens.serving.rows import SteeredRequest
from radiant_lens.steering.maps import ResampleMaps


class Choice(NamedTuple):
    """The steering of a request by its name, and its strength."""

    steering: str
    strength: float


def choose(extra_args: Mapping[str, Any] | None, catalog: Catalog) -> Choice | None:
    """Return the steering that a request asks for, or the default of the server; None: no edits.

    Args:
        extra_args: of `SamplingParams`; `vllm_xargs` in `extra_body` of an OpenAI client.
        catalog: the steerings of the server.

    Raises:
        UnknownNameError: a steering that the server does not have.
        InvalidArgumentError: a strength that is no finite number from -1e6 to 1e6, a strength without a steering, or
            one for resample ablation.
    """
    arguments = extra_args or {}
    name = arguments.get("steering", catalog.default)
    strength = arguments.get("strength", 1.0)
    _checks.between("strength", strength, -1e6, 1e6, closed="both")
    if name is None or name == NO_STEERING:
        if "strength" in arguments:
            raise InvalidArgumentError(
                f"`strength` needs a `steering`; got {strength!r} alone: name one of "
                f"{', '.join(map(repr, catalog.steerings))}."
            )
        return None
    if not isinstance(name, str):
        raise InvalidArgumentError(f"`steering` must be the name of a steering; got {_checks.shown(name)}.")
    _checks.known("steering", name, catalog.steerings, hint="`/v1/models` lists those of the server.")
    if strength != 1 and isinstance(catalog.steerings[name].head_maps, ResampleMaps):
        raise InvalidArgumentError(
            f"Steering {name!r} is a resample ablation, which has no strength; got {strength!r}: leave `strength` out."
        )
    return Choice(name, float(strength)) if strength else None


def resolved(extra_args: Mapping[str, Any] | None, choice: Choice | None) -> dict[str, Any] | None:
    """The extra arguments with the chosen steering and strength in full, so that workers need no default."""
    others = {key: value for key, value in (extra_args or {}).items() if key not in ("steering", "strength")}
    return ({**others, **choice._asdict()} if choice else others) or None


def cache_key(extra_args: Mapping[str, Any] | None, n_prompt: int, end: int) -> tuple[str, str] | None:
    """Key of a block of the prefix cache beside its tokens; None for a block that holds no edited token.

    Keys and values of edited tokens depend on the steering, its strength and the token at which edits begin. Those
    before do not, so a prompt's prefix is shared by requests with any steering and with none.

    Args:
        extra_args: of a request, resolved.
        n_prompt: number of prompt tokens.
        end: position after the last token of the block.
    """
    if not extra_args or "steering" not in extra_args or end < n_prompt:
        return None
    return CONFIG_TAG, f"{extra_args['steering']}*{extra_args['strength']!r}@{n_prompt - 1}"


CONFIG_TAG = "radiant_lens"


def as_row(extra_args: Mapping[str, Any] | None, n_prompt: int, catalog: Catalog) -> SteeredRequest | None:
    """A request as the rows of a pass need it; None without a steering.

    Args:
        extra_args: resolved.
        n_prompt: number of prompt tokens.
        catalog: the steerings of the server.
    """
    if not extra_args or "steering" not in extra_args:
        return None
    return SteeredRequest(catalog.number(extra_args["steering"]), extra_args["strength"], n_prompt - 1)
