"""Policies of `radiant-lens fit`: a name, the common settings as flags, and any other as `--option name=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from radiant_lens.errors import InvalidArgumentError

if TYPE_CHECKING:
    from radiant_lens.policies import LeastKLPolicy, Policy

# Flags with another name than the option of the policy.
ALIASES = {"least_kl": {"kl": "budget"}}


def policies() -> dict[str, type]:
    """Return all policies by name: those of studies, and least KL, which needs a model to fit."""
    # Imported here, as in all commands: `radiant-lens --help` then starts without torch.
    from radiant_lens.policies import LeastKLPolicy
    from radiant_lens.policies.registry import POLICIES

    return {**POLICIES, "least_kl": LeastKLPolicy}


def policy_from_flags(name: str, flags: Mapping[str, Any], assignments: Sequence[str]) -> Policy | LeastKLPolicy:
    """Create a policy and check its options.

    Args:
        name: a key of `policies()`; "-" stands for "_".
        flags: values of flags, None where a flag was left out.
        assignments: texts "name=value".

    Raises:
        UnknownNameError: no such policy, or an option that this policy does not have.
        InvalidArgumentError: an option out of its range, set twice, or not of the form name=value.
    """
    from radiant_lens import _checks

    known, name = policies(), name.replace("-", "_")
    _checks.known("policy", name, known)
    aliases = ALIASES.get(name, {})
    options = {key: value for key, value in flags.items() if value is not None}
    for key, value in map(_assignment, assignments):
        if key in options or key in (aliases.get(flag) for flag in options):
            raise InvalidArgumentError(f"`{key}` is set twice; set it once, as a flag or as an option.")
        options[key] = value
    allowed = [field.name for field in fields(known[name])]
    for key in options:
        _checks.known(f"option of policy {name!r}", key, [*allowed, *aliases])
    if isinstance(options.get("heads"), str) and options["heads"].isdigit():
        options["heads"] = int(options["heads"])
    options = {aliases.get(key, key): value for key, value in options.items()}
    policy = known[name](**options)
    policy.check()
    return policy


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InvalidArgumentError(f"`--option` must read name=value; got {text!r}.")
    return name.strip().replace("-", "_"), read_value("--option", text, value)


def read_value(flag: str, text: str, value: str) -> Any:
    """Read a value as YAML, so that numbers are numbers and null is None.

    Raises:
        InvalidArgumentError: the value cannot be read; the message shows the whole `text` of the flag.
    """
    import yaml

    from radiant_lens._files import parsed

    try:
        return parsed(yaml.safe_load, value)
    except ValueError as error:
        raise InvalidArgumentError(f"`{flag}` {text!r} cannot be read: {error}.") from error
