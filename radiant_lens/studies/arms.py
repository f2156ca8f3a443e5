"""Arms of a study: steerings described by plain values, and grids of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from radiant_lens import _checks
from radiant_lens.capture._collect import POSITIONS
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.detectors.scores import LOSSES
from radiant_lens.detectors.votes import VOTE_RULES
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.policies.heads import parse_heads
from radiant_lens.policies.registry import POLICIES, make_policy, option_names
from radiant_lens.steering.gates import require_joint

_DETECTOR = RiskAwareDetector().get_params()
DETECTOR_SETTINGS = tuple(name for name in _DETECTOR if name != "seed")


class DetectorKey(NamedTuple):
    """All settings that a fitted detector depends on."""

    model: str
    data: str
    positions: str
    seed: int
    settings: tuple[tuple[str, Any], ...]

    def make_detector(self) -> RiskAwareDetector:
        """Make the unfitted detector."""
        return RiskAwareDetector(**dict(self.settings))


@dataclass(frozen=True)
class Arm:
    """One steering of a study, described by plain values. The default is RADIANT on its effective heads.

    Args:
        name: of its row in the results.
        policy: a name in `radiant_lens.studies.POLICIES`.
        options: of the policy that differ from its defaults.
        heads: heads to edit (see `parse_heads`).
        detector: settings of `RiskAwareDetector` that differ from its defaults.
        positions: tokens to train detectors on ("answer", "last", "all").
        few_shot: number of questions of the training part, with their answers, before every test prompt.
        model: default the study's.
        data: data set to fit on; default the study's.
        test_data: data set to test on; default `data`. Another one makes the arm a transfer.
        hooks: in place of a policy, the name of hook functions in the study's `hooks`.

    Example:
        >>> Arm("ITI", "iti", {"alpha": 2.5}, heads="least_risk:16").policy
        'iti'
    """

    name: str
    policy: str = "radiant"
    options: Mapping[str, Any] | None = None
    heads: str = "effective"
    detector: Mapping[str, Any] = field(default_factory=dict)
    positions: str = "answer"
    few_shot: int = 0
    model: str | None = None
    data: str | None = None
    test_data: str | None = None
    hooks: str | None = None

    @property
    def policy_options(self) -> dict[str, Any]:
        """The policy's options; empty if `options` is None."""
        return dict(self.options or {})

    def make_detector(self, seed: int) -> RiskAwareDetector:
        """Make the unfitted detector."""
        needs_joint = self.policy_options.get("gate") == "joint"
        settings: dict[str, Any] = {**_DETECTOR, "joint": needs_joint, **self.detector, "seed": seed}
        return RiskAwareDetector(**settings)

    def detector_key(self, seed: int) -> DetectorKey:
        """Settings that the arm's detector depends on, on the split of a seed."""
        assert self.model is not None and self.data is not None
        settings = tuple(sorted(self.make_detector(seed).get_params().items()))
        return DetectorKey(self.model, self.data, self.positions, seed, settings)

    def __hash__(self) -> int:
        """Hash of the settings, for caches."""
        # Not the hash of a dataclass: options and detector settings are mappings, which have none.
        return hash(repr(self))

    def check(self) -> None:
        """Check all settings; a study does so before it computes anything.

        Raises:
            UnknownNameError: an unknown policy, option or detector setting.
            InvalidArgumentError: a value that is not allowed.
        """
        _checks.whole("few_shot", self.few_shot, 0)
        _checks.choice("positions", self.positions, POSITIONS)
        for name in self.detector:
            _checks.known("setting of the detector", name, DETECTOR_SETTINGS)
        detector = self.make_detector(0)
        _checks.choice("loss", detector.loss, LOSSES)
        _checks.choice("vote_rule", detector.vote_rule, VOTE_RULES)
        _checks.between("fnr_weight", detector.fnr_weight, 0)
        parse_heads(self.heads)
        make_policy(self.policy, self.policy_options)
        require_joint(self.policy_options.get("gate"), detector.joint)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Arm:
        """Make an arm from a mapping, as in a YAML file.

        Raises:
            UnknownNameError: a key that an arm does not have.
            InvalidArgumentError: no name.
        """
        _checks.instance("arms", values, Mapping, hint="each arm is a mapping with a `name`")
        for key in values:
            _checks.known("key of an arm", key, [f.name for f in fields(cls)])
        if "name" not in values:
            raise InvalidArgumentError(f"Every arm needs a `name`; got {dict(values)!r}.")
        return cls(**values)


def grid(base: Arm | None = None, /, **axes: Any) -> list[Arm]:
    """Make an arm of every combination of values, named by the axes that vary.

    Args:
        base: arm with the settings that all share; default `Arm`'s own.
        axes: a value or a list of values for each. Names are those of an arm's fields (`policy`, `heads`,
            `positions`, `few_shot`, `model`, `data`, `test_data`, `hooks`), of the detector's settings (`loss`,
            `fnr_weight`, `vote_rule`, ...) or of the policy's options (`gamma`, `gate`, `geometry`, ...).

    Raises:
        UnknownNameError: an unknown axis.

    Example:
        >>> [arm.name for arm in grid(gamma=[0.01, 0.1], gate="vote")]
        ['gamma=0.01', 'gamma=0.1']
    """
    base = base or Arm("RADIANT")
    values = {axis: list(v) if isinstance(v, (list, tuple)) else [v] for axis, v in axes.items()}
    varying = [axis for axis in values if len(values[axis]) > 1]
    arms = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination))
        name = ", ".join(f"{axis}={settings[axis]}" for axis in varying) or base.name
        arms.append(_with_settings(replace(base, name=name), settings))
    return arms


def _with_settings(arm: Arm, settings: Mapping[str, Any]) -> Arm:
    # Three kinds of names share one flat list of axes: fields of the arm, of its detector, and of its policy. The
    # policy comes first, since it decides which options are known.
    own = {f.name for f in fields(Arm)} - {"name", "options", "detector"}
    arm = replace(arm, **{k: v for k, v in settings.items() if k in own})
    detector = {k: v for k, v in settings.items() if k in DETECTOR_SETTINGS}
    options = {k: v for k, v in settings.items() if k not in own and k not in DETECTOR_SETTINGS}
    _checks.known("policy", arm.policy, POLICIES)
    for name in options:
        _checks.known("axis of a grid", name, [*sorted(own), *DETECTOR_SETTINGS, *option_names(arm.policy)])
    return replace(arm, detector={**arm.detector, **detector}, options={**arm.policy_options, **options} or arm.options)
