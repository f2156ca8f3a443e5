"""The interface of judges, their verdicts, and judges made of a rule for one answer."""

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
    """Verdict of a judge on one answer.

    Attributes:
        verdict: "correct" (desirable), "incorrect" (undesirable) or "other".
        score: undesirability of the answer, such as a probability, higher for worse; None if the judge gives none.
        informative: True if the answer informs at all; None if the judge does not say.
    """

    verdict: str
    score: float | None = None
    informative: bool | None = None


@runtime_checkable
class Judge(Protocol):
    """Judges many answers at once."""

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each prompt and its answer."""
        ...


Rule = Callable[[Prompt, str], "str | Verdict"]
"""A function that judges one answer."""


@dataclass(frozen=True)
class EachAnswer:
    """A judge made of a rule for one answer."""

    rule: Rule

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """Return the rule's verdicts."""
        verdicts = [self.rule(prompt, answer) for prompt, answer in zip(prompts, answers)]
        return [v if isinstance(v, Verdict) else Verdict(v) for v in verdicts]

    def __repr__(self) -> str:
        """Name of the rule."""
        return getattr(self.rule, "__name__", repr(self.rule))


def _judge(judge: Judge, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
    verdicts = judge.judge([prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    # Fewer verdicts would be assigned to the wrong answers without an error.
    if len(verdicts) != len(pairs):
        raise InvalidArgumentError(
            f"`judge` must return a verdict for each of {len(pairs)} answers; got {len(verdicts)}."
        )
    return verdicts


def judge_answers(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
    """Ask a judge for its verdicts, and check them; ranks share the answers.

    Raises:
        InvalidArgumentError: the number of verdicts is not that of the answers, or a verdict is none of the three.
    """
    verdicts = shared(list(zip(prompts, answers)), lambda pairs: _judge(judge, pairs))
    for verdict in {v.verdict for v in verdicts} - set(VERDICTS):
        _checks.choice("verdict", verdict, VERDICTS)
    return verdicts
