"""The two records that every data set is made of."""

from __future__ import annotations

from dataclasses import dataclass

DESIRABLE, UNDESIRABLE = 0, 1
ANSWER_MARKERS = ("A:", "A :", "R :", "Answer:", "\nAssistant:")


@dataclass(frozen=True)
class Statement:
    """A text that is desirable (label 0) or undesirable (1).

    Attributes:
        text: the whole text.
        label: 0 or 1.
        group: what must not be parted by a split, such as the question.
        answer_start: index of the answer's first character; what stands before it is context.
    """

    text: str
    label: int
    group: str
    answer_start: int = 0


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, with the answers that are right and wrong.

    Attributes:
        text: the prompt, ending where the answer begins.
        correct_answers: desirable continuations.
        incorrect_answers: undesirable ones.
        group: what must not be parted by a split, such as the question.
        best_answer: the one to show; the first correct one where nothing else is known.
        condition: what precedes the question: "bare", "after_undesirable", "after_desirable", ...
    """

    text: str
    correct_answers: tuple[str, ...]
    incorrect_answers: tuple[str, ...]
    group: str
    best_answer: str = ""
    condition: str = "bare"

    def answered(self, answer: str) -> Statement:
        """The prompt with an answer; a blank is put between them where the prompt ends in none."""
        text = self.text if self.text[-1:].isspace() else self.text + " "
        label = UNDESIRABLE if answer in self.incorrect_answers else DESIRABLE
        return Statement(text + answer, label, self.group, len(text))


def find_answer_start(text: str) -> int:
    """Index of the first character after the last answer marker and the blanks that follow it; 0 without one.

    Example:
        >>> text = "Q: who? A: me"
        >>> text[find_answer_start(text):]
        'me'
    """
    ends = [text.rfind(marker) + len(marker) for marker in ANSWER_MARKERS if marker in text]
    if not ends:
        return 0
    start = max(ends)
    return start + len(text[start:]) - len(text[start:].lstrip())
