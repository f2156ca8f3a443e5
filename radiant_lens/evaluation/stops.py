"""Stop strings: the places at which a generated answer ends."""

from __future__ import annotations

import re
from collections.abc import Sequence

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError

SENTENCE_ENDS = (".", "!", "?")


def check_stop(stop: object) -> None:
    """Check that stop strings are a list of texts, none of them empty."""
    # A single string is a sequence too: its letters would each end an answer.
    _checks.each("stop", stop, str)
    if isinstance(stop, (tuple, list)) and "" in stop:
        raise InvalidArgumentError("`stop` must not hold the empty string: every answer would end at once.")


def cut_answer(text: str, stop: Sequence[str]) -> str:
    r"""Cut a generated text at its first stop string; a stop string that ends a sentence is kept.

    Blanks and line breaks before the answer are no end of it. A stop string with a letter or a digit is the marker of
    a next question, such as "Q:", and counts at the start of a line only; any other counts everywhere.

    Example:
        >>> cut_answer("\n See the FAQ: it is so.\nQ: what?", ("\n", "Q:"))
        'See the FAQ: it is so.'
    """
    text = text.lstrip()
    ends = [end for string in stop if (end := _find(text, string)) is not None]
    return text[: min(ends)[1]].strip() if ends else text.strip()


def has_ended(text: str, stop: Sequence[str]) -> bool:
    """Return True if `cut_answer` cuts a text, and so would cut every continuation of it at the same place."""
    text = text.lstrip()
    return any(_find(text, string) is not None for string in stop)


def _find(text: str, string: str) -> tuple[int, int] | None:
    """Find a stop string: the place where it starts, and the place where the text is cut; None without a match."""
    match = _pattern(string).search(text)
    if match is None:
        return None
    return match.start(), match.start() + len(string) * (string.strip() in SENTENCE_ENDS)


def _pattern(string: str) -> re.Pattern[str]:
    if not any(map(str.isalnum, string)):
        return re.compile(re.escape(string))
    marker = string.strip()
    # "Q" is not the beginning of "Queen". While text still grows, a marker at its very end may become a longer word:
    # a character must follow, else generation would stop in the middle of that word.
    boundary = r"(?=\W)" if marker[-1].isalnum() else ""
    return re.compile(rf"^[^\S\n]*{re.escape(marker)}{boundary}", re.MULTILINE)
