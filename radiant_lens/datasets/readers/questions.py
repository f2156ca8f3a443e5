"""Rows that hold a question and its answers: statements and a prompt by a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.parsing import Records
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import DESIRABLE, UNDESIRABLE, Prompt, Statement, find_answer_start
from radiant_lens.datasets.templates import Template
from radiant_lens.errors import DataError


def normalize(text: str) -> str:
    """Return a text in lower case with single blanks, so that equal questions compare as equal."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class QuestionReader:
    """Reads one row with a question.

    An answer that is both correct and incorrect, up to case, counts as correct, and one that a list repeats counts
    once; the row's notes name both. Rows of one question share a group.

    Attributes:
        template: template around question and answer.
        period: add a period to every answer without one, as TruthfulQA's own evaluation does.
    """

    template: Template
    period: bool = False

    def lists(self, row: Row, place: str) -> Records:
        """Read `question` and both lists of answers, optionally `best_answer` and `best_incorrect_answer`."""
        fields.require(row, ("question", "correct_answers", "incorrect_answers"))
        correct, best = row["correct_answers"], fields.one_answer(row, "best_answer")
        if isinstance(correct, Mapping):
            # TriviaQA's own form: the answer and its aliases.
            best = best or fields.one_answer(correct, "value")
            correct = correct.get("aliases")
        return self._records(
            row,
            correct=fields.answers({"correct_answers": correct}, "correct_answers"),
            incorrect=fields.answers(row, "incorrect_answers"),
            best=best,
            best_incorrect=fields.one_answer(row, "best_incorrect_answer"),
        )

    def targets(self, row: Row, place: str) -> Records:
        """Read `question`, `mc1_targets`, `mc2_targets`, optionally `mc0_targets` (binary choice)."""
        fields.require(row, ("question", "mc1_targets", "mc2_targets"))
        best, mc1 = _read_targets(row, "mc1_targets")
        correct, incorrect = _read_targets(row, "mc2_targets")
        if len(best) != 1:
            raise DataError(f"`mc1_targets` must have one correct answer; it has {len(best)}.")
        binary = () if fields.is_missing(row.get("mc0_targets")) else _read_targets(row, "mc0_targets")[1]
        return self._records(
            row, correct=correct, incorrect=incorrect, best=best[0], best_incorrect="".join(binary[:1]), mc1=mc1
        )

    def preference(self, row: Row, place: str) -> Records:
        """Read `prompt`, `chosen`, `rejected`: one correct and one incorrect answer, neither cut anywhere."""
        fields.require(row, ("prompt", "chosen", "rejected"))
        correct, incorrect = (fields.one_answer(row, name) for name in ("chosen", "rejected"))
        if not correct.strip() or not incorrect.strip():
            raise DataError("`chosen` and `rejected` must each hold an answer.")
        question = {**row, "question": fields.text(row, "prompt")}
        return self._records(question, correct=[correct], incorrect=[incorrect], best=correct, best_incorrect="")

    def whole_pair(self, row: Row, place: str) -> Records:
        """Read `chosen` and `rejected` that are whole texts: two statements of one group.

        If both answer the same text, such as the same transcript, it becomes a prompt and names the group.
        """
        texts = [fields.one_answer(row, name) for name in ("chosen", "rejected")]
        # A marker within one of the answers is not shared.
        shared = _shared_beginning(*texts)
        context = shared[: find_answer_start(shared)].rstrip()
        if not context:
            return _two_statements(texts, fields.identifier(row, "group", place))
        rests = [text[len(context) :] for text in texts]
        blank = rests[0][: len(rests[0]) - len(rests[0].lstrip())]
        answer, other = (rest.strip() for rest in rests)
        if not answer or not other:
            raise DataError("`chosen` and `rejected` must each hold an answer.")
        if normalize(answer) == normalize(other):
            raise DataError("`chosen` and `rejected` are the same answer.")
        group = fields.identifier(row, "group", normalize(context))
        prompt = Prompt(context, (answer,), (other,), group, answer, joint=blank)
        return Records((prompt.answered(answer), prompt.answered(other)), (prompt,))

    def _records(
        self,
        row: Row,
        *,
        correct: Iterable[str],
        incorrect: Iterable[str],
        best: str,
        best_incorrect: str,
        mc1: Iterable[str] | None = None,
    ) -> Records:
        question = fields.text(row, "question").strip()
        if not question:
            raise DataError("`question` is empty.")
        notes: list[str] = []
        right = _once(self._finish(correct), notes)
        best, best_incorrect = ("".join(self._finish([a] if a else [])) for a in (best, best_incorrect))
        # The best answer counts even if no list names it.
        right = right if not best or best in right else (best, *right)
        wrong = self._only_wrong(incorrect, right, notes)
        if not right and not wrong:
            raise DataError("there are no answers.")
        mc1_wrong = None if mc1 is None else self._only_wrong(mc1, right, [])
        prompt = Prompt(
            self.template.prompt(question),
            right,
            wrong,
            fields.identifier(row, "group", normalize(question)),
            best or (right[0] if right else ""),
            question=question,
            joint=self.template.joint,
            mc1_incorrect=None if mc1_wrong is None or set(mc1_wrong) == set(wrong) else mc1_wrong,
            best_incorrect_answer=best_incorrect,
            rendered=self.template.rendered,
        )
        return Records(tuple(map(prompt.answered, (*right, *wrong))), (prompt,), tuple(notes))

    def _finish(self, answers: Iterable[str]) -> list[str]:
        stripped = [a.strip() for a in answers]
        return [a + "." if self.period and not a.endswith(".") else a for a in stripped if a]

    def _only_wrong(self, incorrect: Iterable[str], right: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
        correct = {normalize(a) for a in right}
        both = [a for a in self._finish(incorrect) if normalize(a) in correct]
        notes.extend(f"incorrect answer {a!r} is left out, it also is a correct one." for a in both)
        return _once((a for a in self._finish(incorrect) if a not in both), notes)


def _shared_beginning(one: str, other: str) -> str:
    differs = (i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    return one[: next(differs, min(len(one), len(other)))]


def _two_statements(texts: Sequence[str], group: str) -> Records:
    if not all(text.strip() for text in texts):
        raise DataError("`chosen` and `rejected` must each hold a text.")
    labelled = zip(texts, (DESIRABLE, UNDESIRABLE))
    return Records(tuple(Statement(text, label, group, find_answer_start(text)) for text, label in labelled))


def _once(answers: Iterable[str], notes: list[str]) -> tuple[str, ...]:
    # A dict, not a set: it keeps the order of the file.
    unique: dict[str, None] = {}
    for answer in answers:
        if answer in unique:
            notes.append(f"answer {answer!r} counts once, the list repeats it.")
        unique[answer] = None
    return tuple(unique)


def _read_targets(row: Row, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return correct and incorrect answers of {answer: 0 or 1}, or of the Hub's {"choices": [...], "labels": [...]}."""
    value: Any = row[name]
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list) and isinstance(value.get("labels"), list):
        pairs = list(zip(value["choices"], value["labels"]))
        fits = len(value["choices"]) == len(value["labels"])
    else:
        fits = isinstance(value, Mapping)
        pairs = list(value.items()) if isinstance(value, Mapping) else []
    if not fits or not all(isinstance(a, str) and label in (0, 1) for a, label in pairs):
        raise DataError(f"`{name}` must give each answer 0 or 1, as a mapping or as 'choices' and 'labels'.")
    return tuple(a for a, label in pairs if label == 1), tuple(a for a, label in pairs if label == 0)
