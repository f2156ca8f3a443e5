"""The two records that every data set is made of."""

from __future__ import annotations

from dataclasses import dataclass

from radiant_lens.errors import DataError

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
        question: the question alone, where a template was laid around it.
        rendered: whether a chat template made the text, special tokens included; the tokenizer then adds none.
    """

    text: str
    label: int
    group: str
    answer_start: int = 0
    question: str = ""
    rendered: bool = False

    def __post_init__(self) -> None:
        """The label is one of both."""
        if self.label not in (DESIRABLE, UNDESIRABLE):
            raise DataError(f"`label` must be 0 (desirable) or 1 (undesirable); got {self.label!r}: {self.text!r:.60}.")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, with the answers that are right and wrong.

    Both may be missing where the judge needs no references ("toxicity", "lexicon").

    Attributes:
        text: the prompt, ending where the answer begins.
        correct_answers: desirable continuations.
        incorrect_answers: undesirable ones.
        group: what must not be parted by a split, such as the question.
        best_answer: the one to show, and the correct one of MC1; the first where nothing else is known.
        condition: what precedes the question: "bare", "after_undesirable", "after_desirable", ...
        question: the question alone, where a template was laid around it.
        joint: what stands between prompt and answer; None for a blank where the prompt ends in none.
        mc1_incorrect: the incorrect answers of MC1 where they are others than `incorrect_answers`, else None.
        best_incorrect_answer: the one set against the best answer in TruthfulQA's binary choice, else "".
        rendered: whether a chat template made the text, special tokens included; the tokenizer then adds none.
    """

    text: str
    correct_answers: tuple[str, ...]
    incorrect_answers: tuple[str, ...]
    group: str
    best_answer: str = ""
    condition: str = "bare"
    question: str = ""
    joint: str | None = None
    mc1_incorrect: tuple[str, ...] | None = None
    best_incorrect_answer: str = ""
    rendered: bool = False

    def answered(self, answer: str) -> Statement:
        """The prompt with an answer."""
        joint = self.joint if self.joint is not None else "" if self.text[-1:].isspace() else " "
        text = self.text + joint
        label = UNDESIRABLE if answer in self.incorrect_answers else DESIRABLE
        return Statement(text + answer, label, self.group, len(text), self.question, self.rendered)


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
