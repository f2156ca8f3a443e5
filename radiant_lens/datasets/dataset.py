"""Labelled statements, prompts with reference answers, and the data set that holds both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from radiant_lens import _checks
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.few_shot import FewShot, drawn, from_pairs, questions
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.datasets.templates import ChatTemplate, Template
from radiant_lens.errors import DataError, InvalidArgumentError
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
        judge: which judge of `radiant_lens.evaluation` fits: "exact", "contains", "lexicon" or "toxicity".
        stop: strings that end a generated answer.
        template: what was laid around the questions; None where texts were given whole.
        few_shot: question-answer pairs before each prompt; see `with_few_shot`.
        skipped: what of the source could not be used, each by its line. Parts of a split keep all of it.
    """

    name: str
    atoms: tuple[Statement, ...]
    bare_prompts: tuple[Prompt, ...] = ()
    contexts: Contexts | None = None
    judge: str = "contains"
    stop: tuple[str, ...] = field(default=("\n",))
    template: Template | None = None
    few_shot: FewShot | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """There is something in it, and its settings go together."""
        if not self.atoms and not self.bare_prompts:
            raise DataError(f"Data set {self.name!r} is empty.")
        if self.contexts is not None and isinstance(self.template, ChatTemplate):
            raise InvalidArgumentError(
                "`contexts` join texts, and rendered chats cannot be joined; use `with_few_shot` for earlier turns."
            )

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Labelled texts, in context where the data set has one."""
        made = self.contexts.statements(self.atoms) if self.contexts else self.atoms
        if self.few_shot is None or not self.few_shot.statements:
            return made
        return tuple(self.few_shot.before(s, self.template) for s in made)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompts to answer, under each condition where the data set has contexts."""
        made = self.contexts.prompts(self.bare_prompts, self.atoms) if self.contexts else self.bare_prompts
        return tuple(self.few_shot.before(p, self.template) for p in made) if self.few_shot else made

    @property
    def groups(self) -> frozenset[str]:
        """Names of all groups."""
        return frozenset(r.group for r in (*self.atoms, *self.bare_prompts))

    def __len__(self) -> int:
        """Number of statements."""
        return len(self.statements)

    def __repr__(self) -> str:
        """Counts, in one line."""
        shots = f", {len(self.few_shot.shots)} shots" if self.few_shot else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"Dataset({self.name!r}: {len(self.statements)} statements, {len(self.prompts)} prompts, "
            f"{len(self.groups)} groups{shots}{skipped})"
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

    def with_few_shot(
        self,
        examples: Dataset | Sequence[tuple[str, str]],
        k: int | None = None,
        *,
        seed: int = 0,
        separator: str = "\n\n",
        statements: bool = False,
    ) -> Dataset:
        """The same data with `k` questions and their best answers before each prompt; 0 takes them away.

        In a chat they are earlier turns. For pairs of the same part, whatever it is, use `Contexts`.

        Args:
            examples: another part, such as the training part, or (question, answer) pairs such as
                `radiant_lens.datasets.TRUTHFULQA_PAIRS`, which are laid out by this data set's template.
            k: how many; default all pairs, or 5 of a data set.
            seed: which questions of a data set are drawn.
            separator: between the examples, where the template is no chat.
            statements: put them before statements, too, so that detectors are trained as prompts are read.

        Raises:
            LeakageError: an example's question belongs to this part.
            DataError: too few examples.
            InvalidArgumentError: pairs for a data set without a template.
        """
        if isinstance(examples, Dataset):
            shots = drawn(examples.bare_prompts, 5 if k is None else k, seed=seed)
        elif self.template is None:
            raise InvalidArgumentError("Pairs need a template to lay them out; give a data set of examples instead.")
        else:
            shots = from_pairs(examples, self.template, len(examples) if k is None else k)
        own = questions((*self.atoms, *self.bare_prompts))
        _checks.disjoint_groups(questions(shots), own, ("Few-shot examples", f"the part of {self.name!r}"))
        return replace(self, few_shot=FewShot(shots, separator, statements) if shots else None)
