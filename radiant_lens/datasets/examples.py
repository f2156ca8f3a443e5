"""Labelled statements, prompts with reference answers, and the data set that holds both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from radiant_lens import _checks
from radiant_lens._errors import DataError
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.splits import split_groups


@dataclass(frozen=True)
class Dataset:
    """Statements to detect on and prompts to generate from, tied together by groups (questions).

    With `contexts` the statements and prompts that are seen are made from the atomic ones: each may be
    preceded by other questions of the same part. They are made anew within each part of a split, so
    that no question of one part is ever read in another.

    Attributes:
        name: what the data set is called in results.
        atoms: labelled statements as they were given.
        bare_prompts: prompts as they were given.
        contexts: how statements and prompts are put in context; None to use them as they are.
        judge: which judge of `radiant_lens.evaluation` fits: "exact", "contains" or "lexicon".
        stop: strings that end a generated answer.
    """

    name: str
    atoms: tuple[Statement, ...]
    bare_prompts: tuple[Prompt, ...] = ()
    contexts: Contexts | None = None
    judge: str = "contains"
    stop: tuple[str, ...] = field(default=("\n",))

    def __post_init__(self) -> None:
        """There is something in it."""
        if not self.atoms and not self.bare_prompts:
            raise DataError(f"Data set {self.name!r} is empty.")

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Labelled texts, in context where the data set has one."""
        return self.contexts.statements(self.atoms) if self.contexts else self.atoms

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompts to answer, under each condition where the data set has contexts."""
        return self.contexts.prompts(self.bare_prompts, self.atoms) if self.contexts else self.bare_prompts

    @property
    def groups(self) -> frozenset[str]:
        """Names of all groups."""
        return frozenset(r.group for r in (*self.atoms, *self.bare_prompts))

    def __len__(self) -> int:
        """Number of statements."""
        return len(self.statements)

    def __repr__(self) -> str:
        """Counts, in one line."""
        return (
            f"Dataset({self.name!r}: {len(self.statements)} statements, {len(self.prompts)} prompts, "
            f"{len(self.groups)} groups)"
        )

    def only(self, groups: frozenset[str] | set[str]) -> Dataset:
        """The part that belongs to the given groups."""
        return replace(
            self,
            atoms=tuple(a for a in self.atoms if a.group in groups),
            bare_prompts=tuple(p for p in self.bare_prompts if p.group in groups),
        )

    def split(self, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, seed: int = 0) -> tuple[Dataset, ...]:
        """Parts that share no group, with about these fractions of the groups.

        Raises:
            InvalidArgumentError: fractions that do not add up to 1, or fewer groups than parts.
        """
        return tuple(self.only(part) for part in split_groups(self.groups, fractions, seed=seed))

    def head(self, n_groups: int) -> Dataset:
        """The part that belongs to the first `n_groups` groups in alphabetical order, for a quick look."""
        _checks.whole("n_groups", n_groups, 1)
        return self.only(set(sorted(self.groups)[:n_groups]))
