"""Contexts for statements and prompts: transcripts of several questions by one kind of source."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from radiant_lens import _checks
from radiant_lens.datasets.records import DESIRABLE, UNDESIRABLE, Prompt, Statement
from radiant_lens.errors import DataError

CONDITIONS = {"bare": None, "after_undesirable": UNDESIRABLE, "after_desirable": DESIRABLE}


@dataclass(frozen=True)
class Contexts:
    """Transcripts of 1 to several question-answer pairs, all of one label; the last pair counts.

    Attributes:
        n_pairs: lengths, in pairs, of the transcripts made for every group and label.
        n_before: pairs before a prompt under the conditions other than "bare".
        conditions: conditions of the prompts, out of "bare", "after_undesirable", "after_desirable".
        separator: text between two pairs.
        seed: seed of the draw of other questions; the same seed gives the same transcripts of the same part.
    """

    n_pairs: tuple[int, ...] = (1, 2, 3, 4)
    n_before: int = 2
    conditions: tuple[str, ...] = ("bare", "after_undesirable", "after_desirable")
    separator: str = " "
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings; raises `InvalidArgumentError`."""
        _checks.instance("n_pairs", self.n_pairs, (tuple, list))
        _checks.seed(self.seed)
        for n in self.n_pairs:
            _checks.whole("n_pairs", n, 1)
        _checks.whole("n_before", self.n_before, 1)
        for condition in self.conditions:
            _checks.choice("conditions", condition, CONDITIONS)

    def statements(self, atoms: Sequence[Statement]) -> tuple[Statement, ...]:
        """Make one transcript for each group, label and length; the pairs before the last belong to other groups.

        Raises:
            DataError: too few groups of a label for the longest transcript.
        """
        rng = random.Random(self.seed)
        # One generator for all draws, so the order of labels, groups and lengths is part of the result: it is sorted.
        return tuple(
            _after(rng.choice(pool.of[group]), self._before(pool, group, n - 1, rng), self.separator)
            for _, pool in sorted(_by_label_and_group(atoms).items())
            for group in pool.groups
            for n in self.n_pairs
        )

    def prompts(self, prompts: Sequence[Prompt], atoms: Sequence[Statement]) -> tuple[Prompt, ...]:
        """Make every bare prompt under every condition; prompts of another condition stay unchanged."""
        pool = _by_label_and_group(atoms)
        # Another generator than that of statements: a prompt does not see the same draws as its own statements.
        rng = random.Random(self.seed + 1)
        in_context = [p for p in prompts if p.condition != "bare"]
        for condition in self.conditions:
            label = CONDITIONS[condition]
            for prompt in (p for p in prompts if p.condition == "bare"):
                before = [] if label is None else self._before(pool[label], prompt.group, self.n_before, rng)
                text = self.separator.join([*(s.text for s in before), prompt.text])
                in_context.append(replace(prompt, text=text, condition=condition))
        return tuple(in_context)

    def _before(self, pool: _Pool, group: str, n: int, rng: random.Random) -> list[Statement]:
        n_others = len(pool.groups) - (group in pool.of)
        if n_others < n:
            raise DataError(
                f"Contexts of {n} other questions need {n + 1} groups of each label; there are {n_others + 1}."
            )
        # The draw skips the own group by its index: a list without it would cost a pass over all groups at every draw.
        own = bisect_left(pool.groups, group) if group in pool.of else n_others
        drawn = (i + (i >= own) for i in rng.sample(range(n_others), n))
        return [rng.choice(pool.of[pool.groups[i]]) for i in drawn]


class _Pool(NamedTuple):
    """Statements of one label by their group, and the names of the groups in order."""

    of: dict[str, list[Statement]]
    groups: list[str]


def _by_label_and_group(atoms: Sequence[Statement]) -> dict[int, _Pool]:
    by_label: dict[int, dict[str, list[Statement]]] = {DESIRABLE: {}, UNDESIRABLE: {}}
    for atom in atoms:
        by_label[atom.label].setdefault(atom.group, []).append(atom)
    return {label: _Pool(of, sorted(of)) for label, of in by_label.items()}


def _after(last: Statement, before: Sequence[Statement], separator: str) -> Statement:
    context = "".join(s.text + separator for s in before)
    return replace(last, text=context + last.text, answer_start=len(context) + last.answer_start)
