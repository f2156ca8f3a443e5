"""The steering that a request asks for: read from its extra arguments, checked, and written back in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.serving.catalog import NO_STEERING, Catalog
from radiant_lens.serving.request_traces import TracedRequest
from radiant_lens.serving.rows import SteeredRequest
from radiant_lens.steering.maps import ResampleMaps


class Choice(NamedTuple):
    """The steering of a request by its name, its strength, and whether its votes and edits are written down."""

    steering: str
    strength: float
    trace: bool = False


def choose(extra_args: Mapping[str, Any] | None, catalog: Catalog) -> Choice | None:
    """Return the steering that a request asks for, or the default of the server; None: no edits.

    Args:
        extra_args: of `SamplingParams`; `vllm_xargs` in `extra_body` of an OpenAI client.
        catalog: the steerings of the server.

    Raises:
        UnknownNameError: a steering that the server does not have.
        InvalidArgumentError: a strength that is no finite number from -1e6 to 1e6, a strength without a steering, or
            one for resample ablation; a trace that is neither true nor false, or of a server or a request that has
            none.
    """
    arguments = extra_args or {}
    name = arguments.get("steering", catalog.default)
    trace = _wants_trace(arguments, catalog)
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
    return Choice(name, float(strength), trace) if strength else None


def _wants_trace(arguments: Mapping[str, Any], catalog: Catalog) -> bool:
    trace = arguments.get("trace", False)
    # The OpenAI server of vLLM makes numbers of `true` and `false`.
    if trace not in (0, 1):
        raise InvalidArgumentError(f"`trace` must be true or false; got {_checks.shown(trace)}.")
    if not trace:
        return False
    if catalog.trace_file is None:
        raise InvalidArgumentError(
            "`trace` needs a server that writes traces: start it with `--trace-file FILE` (`engine_config(..., "
            "trace_file=FILE)`), or leave `trace` out."
        )
    if arguments.get("steering", catalog.default) in (None, NO_STEERING) or not arguments.get("strength", 1.0):
        raise InvalidArgumentError(
            "`trace` needs a `steering` with a strength other than 0: without one, nothing is edited."
        )
    return True


def resolved(extra_args: Mapping[str, Any] | None, choice: Choice | None) -> dict[str, Any] | None:
    """The extra arguments with the choice in full, so that workers need no default."""
    others = {key: value for key, value in (extra_args or {}).items() if key not in Choice._fields}
    if choice is not None:
        others.update(steering=choice.steering, strength=choice.strength, **({"trace": True} if choice.trace else {}))
    return others or None


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


def as_traced(extra_args: Mapping[str, Any] | None, n_prompt: int, catalog: Catalog) -> TracedRequest | None:
    """A request as its trace needs it; None for one without.

    Args:
        extra_args: resolved.
        n_prompt: number of prompt tokens.
        catalog: the steerings of the server.
    """
    if not extra_args or not extra_args.get("trace"):
        return None
    name = extra_args["steering"]
    return TracedRequest(name, catalog.number(name), extra_args["strength"], n_prompt - 1)
