"""Judges: from prompts and answers to "correct" (desirable), "incorrect" (undesirable) or "other"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from radiant_lens import _checks
from radiant_lens.datasets.records import Prompt
from radiant_lens.distributed import shared
from radiant_lens.errors import InvalidArgumentError

VERDICTS = ("correct", "incorrect", "other")


class Verdict(NamedTuple):
    """What a judge says of one answer.

    Attributes:
        verdict: "correct" (desirable), "incorrect" (undesirable) or "other".
        score: how undesirable the answer is, the higher the worse, such as a probability; None if not said.
        informative: whether it answers at all; None if not said.
    """

    verdict: str
    score: float | None = None
    informative: bool | None = None


@runtime_checkable
class Judge(Protocol):
    """Judges many answers at once."""

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each prompt and its answer."""
        ...


Rule = Callable[[Prompt, str], "str | Verdict"]
"""Judges one answer."""


@dataclass(frozen=True)
class EachAnswer:
    """A judge made of a rule for one answer."""

    rule: Rule

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """The rule's verdicts."""
        said = [self.rule(prompt, answer) for prompt, answer in zip(prompts, answers)]
        return [v if isinstance(v, Verdict) else Verdict(v) for v in said]

    def __repr__(self) -> str:
        """Name of the rule."""
        return getattr(self.rule, "__name__", repr(self.rule))


def _judged(judge: Judge, asked: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
    verdicts = judge.judge([prompt for prompt, _ in asked], [answer for _, answer in asked])
    if len(verdicts) != len(asked):
        raise InvalidArgumentError(
            f"`judge` must return a verdict for each of {len(asked)} answers; got {len(verdicts)}."
        )
    return verdicts


def judge_answers(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
    """Verdicts of a judge, checked; ranks share the answers.

    Raises:
        InvalidArgumentError: not one verdict for each answer, or none of the three.
    """
    verdicts = shared(list(zip(prompts, answers)), lambda asked: _judged(judge, asked))
    for verdict in {v.verdict for v in verdicts} - set(VERDICTS):
        _checks.choice("verdict", verdict, VERDICTS)
    return verdicts
