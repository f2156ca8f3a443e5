"""Labelled statements, prompts with reference answers, and the data set that holds both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from radiant_lens import _checks
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.few_shot import FewShot, draw_shots, question_names, shots_from_pairs
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.datasets.templates import ChatTemplate, Template
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.splits import classes_by_group, split_groups

ON_LONG = ("skip", "cut", "error")
"""What happens to a text beyond a model's context."""


@dataclass(frozen=True)
class Dataset:
    """Statements to detect on and prompts to generate from, tied together by groups (questions).

    With `contexts`, `statements` and `prompts` are transcripts made from the atomic ones: other questions of the same
    part precede each. Every part of a split makes its own, so no question of one part is read in another.

    Attributes:
        name: name of the data set in results.
        atoms: labelled statements as loaded.
        bare_prompts: prompts as loaded.
        contexts: how statements and prompts are put in context; None to use them as they are.
        judge: name of the fitting judge of `radiant_lens.evaluation`, such as "exact" or "toxicity".
        stop: strings that end a generated answer.
        template: template around the questions; None for whole texts.
        few_shot: question-answer pairs before each prompt; see `with_few_shot`.
        skipped: everything in the source that could not be used, each by its line. Parts of a split keep all of it.
        sense: meaning of label 1 in the source, such as "is_false" (a column) or "label is 0"; "" if not known.
        reading: what had to be found out to read the file, such as "separated by semicolons"; "" if nothing had.
        on_long: what `collect` and `evaluate` do with texts beyond a model's context: "skip", "cut" or "error".
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
    sense: str = ""
    reading: str = ""
    on_long: str = "skip"

    def __post_init__(self) -> None:
        """Check that the data set holds records and its settings fit together."""
        _checks.instance("name", self.name, str)
        _checks.choice("on_long", self.on_long, ON_LONG)
        for name, kind in (("atoms", Statement), ("bare_prompts", Prompt)):
            _checks.each(name, getattr(self, name), kind)
        if not self.atoms and not self.bare_prompts:
            raise DataError(f"Data set {self.name!r} is empty.")
        # Records that were written to a file and loaded again have no template, but remain rendered chats.
        rendered = isinstance(self.template, ChatTemplate) or any(r.rendered for r in (*self.atoms, *self.bare_prompts))
        if self.contexts is not None and rendered:
            raise InvalidArgumentError(
                "`contexts` join texts, and rendered chats cannot be joined; use `with_few_shot` for earlier turns."
            )

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Labelled texts, in context if the data set has contexts."""
        statements = self.contexts.statements(self.atoms) if self.contexts else self.atoms
        if self.few_shot is None or not self.few_shot.statements:
            return statements
        return tuple(self.few_shot.before(s, self.template) for s in statements)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompts to answer, under each condition if the data set has contexts."""
        prompts = self.contexts.prompts(self.bare_prompts, self.atoms) if self.contexts else self.bare_prompts
        return tuple(self.few_shot.before(p, self.template) for p in prompts) if self.few_shot else prompts

    @property
    def groups(self) -> frozenset[str]:
        """Names of all groups."""
        return frozenset(r.group for r in (*self.atoms, *self.bare_prompts))

    def __len__(self) -> int:
        """Return the number of statements."""
        return len(self.statements)

    def __repr__(self) -> str:
        """Return counts, the sense of label 1 and how the file was read, in one line."""
        shots = f", {len(self.few_shot.shots)} shots" if self.few_shot else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        sense = f", label 1 = {self.sense}" if self.sense and self.atoms else ""
        reading = f", file {self.reading}" if self.reading else ""
        return (
            f"Dataset({self.name!r}: {len(self.statements)} statements, {len(self.prompts)} prompts, "
            f"{len(self.groups)} groups{shots}{skipped}{sense}{reading})"
        )

    def only(self, groups: frozenset[str] | set[str]) -> Dataset:
        """Return the records of these groups.

        Raises:
            DataError: no record has one of them.
        """
        _checks.instance("groups", groups, (set, frozenset))
        atoms = tuple(a for a in self.atoms if a.group in groups)
        prompts = tuple(p for p in self.bare_prompts if p.group in groups)
        if not atoms and not prompts:
            raise DataError(f"{self.name!r} has none of these groups; one of its own is {min(self.groups)!r:.60}.")
        return replace(self, atoms=atoms, bare_prompts=prompts)

    def split(self, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, seed: int = 0) -> tuple[Dataset, ...]:
        """Split the data into parts that share no group, with about these fractions of the groups of each kind.

        Groups are of one kind if they hold the same labels: 0 alone, 1 alone, both, or prompts without statements.
        Groups stay whole, so the shares of labels are about equal only as far as groups are, and a kind of fewer groups
        than parts is missing from some part.

        Args:
            fractions: shares of the groups, positive, adding up to 1.
            seed: the same seed gives the same parts.

        Raises:
            InvalidArgumentError: fractions that are no list or do not add up to 1, or fewer groups than parts.
        """
        kinds = classes_by_group(self.groups, ((atom.group, atom.label) for atom in self.atoms))
        parts = split_groups(self.groups, fractions, seed=seed, strata=kinds)
        return tuple(self.only(part) for part in parts)

    def head(self, n_groups: int) -> Dataset:
        """Return the records of the first `n_groups` groups in alphabetical order, for a quick look."""
        _checks.whole("n_groups", n_groups, 1)
        return self.only(set(sorted(self.groups)[:n_groups]))

    def sample(self, n_groups: int, *, seed: int = 0) -> Dataset:
        """Return the records of `n_groups` groups drawn at random, or of all if there are no more.

        The first ones by name are no sample: questions that begin with the same word stand together.
        """
        _checks.whole("n_groups", n_groups, 1)
        _checks.seed(seed)
        # Sorted, so that the draw depends on the seed and not on the order of a set.
        groups = sorted(self.groups)
        return self.only(set(random.Random(seed).sample(groups, min(n_groups, len(groups)))))

    def with_template(self, template: Template) -> Dataset:
        """Return the same questions and answers in another template.

        Raises:
            DataError: a text that was not made of a question by a template, or data in context.
        """
        records = (*self.atoms, *self.bare_prompts)
        if self.template is None or self.contexts is not None or not all(r.question for r in records):
            raise DataError(f"{self.name!r} has whole texts; a template is laid around questions.")
        return replace(
            self,
            atoms=tuple(_laid_statement(s, template) for s in self.atoms),
            bare_prompts=tuple(_laid_prompt(p, template) for p in self.bare_prompts),
            template=template,
            stop=template.stop,
        )

    def with_few_shot(
        self,
        examples: Dataset | Sequence[tuple[str, str]],
        k: int | None = None,
        *,
        seed: int = 0,
        separator: str = "\n\n",
        statements: bool = False,
    ) -> Dataset:
        """Return the same data with `k` questions and their best answers before each prompt; 0 removes them.

        In a chat they are earlier turns. For pairs of the same part, use `Contexts`.

        Args:
            examples: another part, such as the training part, or (question, answer) pairs such as
                `radiant_lens.datasets.TRUTHFULQA_PAIRS`, in the layout of this data set's template.
            k: number of examples; default all pairs, or 5 of a data set.
            seed: seed of the draw from a data set.
            separator: text between the examples, unless the template is a chat.
            statements: put them before statements, too, so that detectors see texts as prompts are read.

        Raises:
            LeakageError: an example's question belongs to this part.
            DataError: too few examples.
            InvalidArgumentError: pairs for a data set without a template.
        """
        _checks.instance("examples", examples, (Dataset, list, tuple), hint="another part, or question-answer pairs")
        if isinstance(examples, Dataset):
            shots = draw_shots(examples.bare_prompts, 5 if k is None else k, seed=seed)
        elif self.template is None:
            raise InvalidArgumentError("Pairs need a template to lay them out; give a data set of examples instead.")
        else:
            shots = shots_from_pairs(examples, self.template, len(examples) if k is None else k)
        # By words as well as by group: an example may come from another file, with other names of groups.
        own = question_names((*self.atoms, *self.bare_prompts))
        _checks.disjoint_groups(question_names(shots), own, ("Few-shot examples", f"the part of {self.name!r}"))
        return replace(self, few_shot=FewShot(shots, separator, statements) if shots else None)


def _laid_statement(statement: Statement, template: Template) -> Statement:
    head = template.prompt(statement.question) + template.joint
    text = head + statement.text[statement.answer_start :]
    return replace(statement, text=text, answer_start=len(head), rendered=template.rendered)


def _laid_prompt(prompt: Prompt, template: Template) -> Prompt:
    text = template.prompt(prompt.question)
    return replace(prompt, text=text, joint=template.joint, rendered=template.rendered)
