"""The two kinds of records in a data set: labelled statements, and prompts with reference answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from radiant_lens import _checks
from radiant_lens.errors import DataError

DESIRABLE, UNDESIRABLE = 0, 1
ANSWER_MARKERS = ("A:", "A :", "R :", "Answer:", "\nAssistant:")
# A marker counts only at the beginning of a word: "USA:" and "U.S.A:" hold no answer marker. A marker that begins with
# a line break brings its own boundary. Longer words that are markers by chance ("Vitamin A: ...") still match: files
# whose texts hold them need a column `answer_start`.
_MARKER = re.compile("|".join(m if m[0].isspace() else rf"(?<!\S){m}" for m in ANSWER_MARKERS))


@dataclass(frozen=True)
class Statement:
    """A text that is desirable (label 0) or undesirable (1).

    Attributes:
        text: the whole text.
        label: 0 or 1.
        group: name of the unit that a split never divides, such as the question; by default the text itself.
        answer_start: index of the answer's first character; the text before it is context.
        question: the question alone, if a template made the text from it.
        rendered: True if a chat template made the text, special tokens included; the tokenizer then adds none.
    """

    text: str
    label: int
    group: str = ""
    answer_start: int = 0
    question: str = ""
    rendered: bool = False

    def __post_init__(self) -> None:
        """Check the text, the label and the start of the answer, and name the group."""
        _checks.instance("text", self.text, str)
        _checks.instance("group", self.group, str)
        if self.label not in (DESIRABLE, UNDESIRABLE):
            raise DataError(f"`label` must be 0 (desirable) or 1 (undesirable); got {self.label!r}: {self.text!r:.60}.")
        _checks.whole("answer_start", self.answer_start, 0, len(self.text))
        if not self.group:
            object.__setattr__(self, "group", self.text)


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, with its correct and incorrect answers.

    Both may be empty for a judge that needs no references ("toxicity", "lexicon").

    Attributes:
        text: the prompt, ending where the answer begins.
        correct_answers: desirable continuations.
        incorrect_answers: undesirable ones.
        group: name of the unit that a split never divides, such as the question; by default the text itself.
        best_answer: the answer to show, and the correct one of MC1; by default the first correct answer.
        condition: context of the question: "bare", "after_undesirable", "after_desirable", ...
        question: the question alone, if a template made the text from it.
        joint: text between prompt and answer; None for a blank, unless the prompt ends in white space.
        mc1_incorrect: the incorrect answers of MC1 if they differ from `incorrect_answers`, else None.
        best_incorrect_answer: the incorrect answer of TruthfulQA's binary choice, else "".
        rendered: True if a chat template made the text, special tokens included; the tokenizer then adds none.
    """

    text: str
    correct_answers: tuple[str, ...]
    incorrect_answers: tuple[str, ...]
    group: str = ""
    best_answer: str = ""
    condition: str = "bare"
    question: str = ""
    joint: str | None = None
    mc1_incorrect: tuple[str, ...] | None = None
    best_incorrect_answer: str = ""
    rendered: bool = False

    def __post_init__(self) -> None:
        """Check the texts, and name the group."""
        for name in ("text", "group"):
            _checks.instance(name, getattr(self, name), str)
        # A text would be taken for a list of its characters.
        for name in ("correct_answers", "incorrect_answers"):
            _checks.instance(name, getattr(self, name), (tuple, list), hint="such as ('yes', 'Yes, it is')")
        if not self.group:
            object.__setattr__(self, "group", self.text)

    @property
    def has_choices(self) -> bool:
        """True with correct and incorrect answers, between which a model can choose."""
        return bool(self.correct_answers and self.incorrect_answers)

    def answered(self, answer: str) -> Statement:
        """Return the prompt with an answer, as a statement; its label is 1 for one of the incorrect answers."""
        joint = self.joint if self.joint is not None else "" if self.text[-1:].isspace() else " "
        text = self.text + joint
        # An answer that no list names is a model's own; it is desirable until a judge says otherwise.
        label = UNDESIRABLE if answer in self.incorrect_answers else DESIRABLE
        return Statement(text + answer, label, self.group, len(text), self.question, self.rendered)


def find_answer_start(text: str) -> int:
    """Return the index of the first character after the last answer marker and its white space; 0 without a marker.

    A marker (`ANSWER_MARKERS`) counts only at the beginning of a word.

    Example:
        >>> text = "Q: who? A: me"
        >>> text[find_answer_start(text):]
        'me'
        >>> find_answer_start("The USA: fifty states.")
        0
    """
    ends = [match.end() for match in _MARKER.finditer(text)]
    if not ends:
        return 0
    # The last one: in a transcript of several questions, the earlier answers are context.
    start = ends[-1]
    return start + len(text[start:]) - len(text[start:].lstrip())
