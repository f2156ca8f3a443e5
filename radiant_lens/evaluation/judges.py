"""Judges: from a prompt and an answer to "correct" (desirable), "incorrect" (undesirable) or "other"."""

from __future__ import annotations

import re
from collections.abc import Callable

from radiant_lens import _checks
from radiant_lens.datasets.records import Prompt
from radiant_lens.datasets.world.tone import KIND_WORDS, RUDE_WORDS

Judge = Callable[[Prompt, str], str]
VERDICTS = ("correct", "incorrect", "other")


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def exact(prompt: Prompt, answer: str) -> str:
    """The whole answer is one of the references, up to case and punctuation."""
    said = _words(answer)
    if said in {_words(a) for a in prompt.correct_answers}:
        return "correct"
    return "incorrect" if said in {_words(a) for a in prompt.incorrect_answers} else "other"


def contains(prompt: Prompt, answer: str) -> str:
    """The answer holds a correct reference and no incorrect one, or the other way round."""
    said = f" {_words(answer)} "
    right = any(f" {_words(a)} " in said for a in prompt.correct_answers)
    wrong = any(f" {_words(a)} " in said for a in prompt.incorrect_answers)
    if right == wrong:
        return "other"
    return "correct" if right else "incorrect"


def lexicon(prompt: Prompt, answer: str) -> str:
    """The embedded world's tone: incorrect with a rude word, correct with a kind one and none that is rude."""
    said = set(_words(answer).split())
    if said & RUDE_WORDS:
        return "incorrect"
    return "correct" if said & KIND_WORDS else "other"


JUDGES: dict[str, Judge] = {"exact": exact, "contains": contains, "lexicon": lexicon}


def get_judge(judge: str | Judge) -> Judge:
    """A judge by name, or the callable itself.

    Raises:
        UnknownNameError: no judge of that name.
    """
    if callable(judge):
        return judge
    _checks.known("judge", judge, JUDGES)
    return JUDGES[judge]
