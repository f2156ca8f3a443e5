"""Rows that hold a question and its answers: statements and a prompt by a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.parsing import Found
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt
from radiant_lens.datasets.templates import Template
from radiant_lens.errors import DataError


def normal(text: str) -> str:
    """A text without what makes no difference: case and the number of blanks."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class QuestionReader:
    """Reads one row with a question.

    Where an answer stands among the correct and the incorrect ones, up to case, it counts as correct and the
    row's notes say so; so do they for an answer that a list repeats. Rows of one question share a group.

    Attributes:
        template: laid around question and answer.
        period: every answer ends in a period, as in TruthfulQA's own evaluation.
    """

    template: Template
    period: bool = False

    def lists(self, row: Row, place: str) -> Found:
        """`question`, `correct_answers`, `incorrect_answers`, optionally `best_answer`, `best_incorrect_answer`."""
        fields.needed(row, ("question", "correct_answers", "incorrect_answers"))
        correct, best = row["correct_answers"], fields.text(row, "best_answer")
        if isinstance(correct, Mapping):
            # TriviaQA's own form: the answer and its aliases.
            best = best or fields.text(correct, "value")
            correct = correct.get("aliases")
        return self._found(
            row,
            correct=fields.answers({"correct_answers": correct}, "correct_answers"),
            incorrect=fields.answers(row, "incorrect_answers"),
            best=best,
            best_incorrect=fields.text(row, "best_incorrect_answer"),
        )

    def targets(self, row: Row, place: str) -> Found:
        """`question`, `mc1_targets`, `mc2_targets`, optionally `mc0_targets` (binary choice)."""
        fields.needed(row, ("question", "mc1_targets", "mc2_targets"))
        best, mc1 = _targets(row, "mc1_targets")
        correct, incorrect = _targets(row, "mc2_targets")
        if len(best) != 1:
            raise DataError(f"`mc1_targets` must have one correct answer; it has {len(best)}.")
        _, binary = _targets(row, "mc0_targets") if row.get("mc0_targets") else ((), ())
        return self._found(
            row, correct=correct, incorrect=incorrect, best=best[0], best_incorrect="".join(binary[:1]), mc1=mc1
        )

    def _found(
        self,
        row: Row,
        *,
        correct: Iterable[str],
        incorrect: Iterable[str],
        best: str,
        best_incorrect: str,
        mc1: Iterable[str] | None = None,
    ) -> Found:
        question = str(row["question"] or "").strip()
        if not question:
            raise DataError("`question` is empty.")
        notes: list[str] = []
        right = _once(self._finished(correct), notes)
        best, best_incorrect = ("".join(self._finished([a] if a else [])) for a in (best, best_incorrect))
        right = right if not best or best in right else (best, *right)
        wrong = self._wrong(incorrect, right, notes)
        if not right and not wrong:
            raise DataError("there are no answers.")
        of_mc1 = None if mc1 is None else self._wrong(mc1, right, [])
        group = fields.text(row, "group", normal(question))
        prompt = Prompt(
            self.template.prompt(question),
            right,
            wrong,
            group,
            best or (right[0] if right else ""),
            question=question,
            joint=self.template.joint,
            mc1_incorrect=None if of_mc1 is None or set(of_mc1) == set(wrong) else of_mc1,
            best_incorrect_answer=best_incorrect,
            rendered=self.template.rendered,
        )
        return Found(tuple(map(prompt.answered, (*right, *wrong))), (prompt,), tuple(notes))

    def _finished(self, answers: Iterable[str]) -> list[str]:
        stripped = [a.strip() for a in answers]
        return [a + "." if self.period and not a.endswith(".") else a for a in stripped if a]

    def _wrong(self, incorrect: Iterable[str], right: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
        known = {normal(a) for a in right}
        both = [a for a in self._finished(incorrect) if normal(a) in known]
        notes.extend(f"incorrect answer {a!r} is left out, it also is a correct one." for a in both)
        return _once((a for a in self._finished(incorrect) if a not in both), notes)


def _once(answers: Iterable[str], notes: list[str]) -> tuple[str, ...]:
    kept: dict[str, None] = {}
    for answer in answers:
        if answer in kept:
            notes.append(f"answer {answer!r} counts once, the list repeats it.")
        kept[answer] = None
    return tuple(kept)


def _targets(row: Row, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Correct and incorrect answers of {answer: 0 or 1}, or of the Hub's {"choices": [...], "labels": [...]}."""
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
