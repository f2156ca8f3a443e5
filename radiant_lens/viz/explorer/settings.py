"""The settings that a user of the explorer can move, and the values that a model, a steering and data allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.sites import Heads, HeadSite, as_sites
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.maps import ResampleMaps
from radiant_lens.steering.steering import Steering

MOST_NEW_TOKENS = 400
MOST_KL = 10.0
"""Largest budget of KL, in nats a token: beyond it nothing of the model's text is left."""


@dataclass(frozen=True)
class Settings:
    """The state of the explorer.

    Attributes:
        prompt: as typed.
        form: how the prompt is read: "text", "chat" (the user's turn of the chat template) or "rendered" (a chat with
            all its special tokens).
        strength: factor of every displacement.
        budget: KL in nats a token from which the strength follows; None for a strength that was set by hand.
        gate: one of `GATES`.
        off: heads that are taken out of the steering.
        max_new_tokens: tokens of an answer at most.
    """

    prompt: str = ""
    form: str = "text"
    strength: float = 1.0
    budget: float | None = None
    gate: str = "none"
    off: frozenset[HeadSite] = frozenset()
    max_new_tokens: int = 20

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them; heads by their names."""
        return {**asdict(self), "off": [str(site) for site in sorted(self.off)]}


@dataclass(frozen=True)
class Allowed:
    """Values that can be set; a reason other than "" says why something cannot.

    Attributes:
        sites: heads of the steering.
        gates: the reason of each gate.
        forms: forms of a prompt.
        strength: reason against another strength than 1.
        budget: reason against a budget of KL.
    """

    sites: tuple[HeadSite, ...]
    gates: Mapping[str, str]
    forms: tuple[str, ...]
    strength: str
    budget: str

    def changed(self, settings: Settings, changes: Mapping[str, object]) -> Settings:
        """Return the settings with some of them changed; a strength that is set by hand ends the budget.

        Raises:
            UnknownNameError: a setting that does not exist.
            InvalidArgumentError: a value that is not allowed; says what is.
        """
        for name in changes:
            _checks.known("setting of the explorer", name, [field.name for field in fields(Settings)])
        values: dict[str, Any] = {name: getattr(self, f"_{name}")(value) for name, value in changes.items()}
        if "strength" in values:
            values.setdefault("budget", None)
        return replace(settings, **values)

    def _prompt(self, value: object) -> object:
        _checks.instance("prompt", value, str)
        return value

    def _form(self, value: object) -> object:
        _checks.choice("form", value, self.forms)
        return value

    def _strength(self, value: object) -> float:
        _checks.between("strength", value, -1e6, 1e6, closed="both")
        number = float(str(value))
        if self.strength and number != 1:
            raise InvalidArgumentError(f"`strength` must stay 1; got {number:g}: {self.strength}.")
        return number

    def _budget(self, value: object) -> float | None:
        if value is None:
            return None
        if self.budget:
            raise InvalidArgumentError(f"`budget` cannot be set to {_checks.shown(value)}: {self.budget}.")
        _checks.between("budget", value, 0, MOST_KL)
        return float(str(value))

    def _gate(self, value: object) -> object:
        _checks.choice("gate", value, self.gates)
        if self.gates[str(value)]:
            raise InvalidArgumentError(f"`gate` cannot be {value!r}: {self.gates[str(value)]}.")
        return value

    def _off(self, value: Heads) -> frozenset[HeadSite]:
        if not isinstance(value, Iterable):
            raise InvalidArgumentError(f"`off` must be heads such as ['L0H3']; got {_checks.shown(value)}.")
        heads = value if isinstance(value, str) else list(value)
        sites = as_sites(heads) if heads else set[HeadSite]()
        unknown = sorted(sites.difference(self.sites))
        if unknown:
            raise InvalidArgumentError(
                f"`off` must be some of the {len(self.sites)} edited heads, such as {self.sites[0]}; got {unknown[0]}."
            )
        return frozenset(sites)

    def _max_new_tokens(self, value: object) -> object:
        _checks.whole("max_new_tokens", value, 1, MOST_NEW_TOKENS)
        return value


def allowed_settings(steering: Steering, *, forms: Sequence[str], no_budget: str) -> Allowed:
    """Return what can be set for a steering.

    Args:
        steering: whose heads, gates and strength are moved.
        forms: of a prompt.
        no_budget: the reason against a budget of KL; "" for none.
    """
    # Least KL without a detector stores scores of zero, on which no gate can decide.
    no_votes = "" if bool(steering.scores.weights.any()) else "this steering was fitted without a detector"
    no_joint = "" if steering.scores.joint is not None else "this steering's detector has no joint scores of layers"
    no_strength = "resample ablation has no strength" if isinstance(steering.head_maps, ResampleMaps) else ""
    return Allowed(
        sites=steering.sites,
        gates={
            "none": "",
            **{gate: no_votes for gate in GATES if gate not in ("none", "joint")},
            "joint": no_votes or no_joint,
        },
        forms=tuple(forms),
        strength=no_strength,
        budget=no_budget or no_strength,
    )
