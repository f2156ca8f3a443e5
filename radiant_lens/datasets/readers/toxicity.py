"""Rows of Jigsaw's toxic comments and of RealToxicityPrompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.labels import LabelRule
from radiant_lens.datasets.readers.parsing import Records
from radiant_lens.datasets.readers.questions import normalize
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError

# The threshold of both publications, for prompts and for continuations.
THRESHOLD = 0.5


@dataclass(frozen=True)
class CommentReader:
    """Reads one comment; `labels` is the rule for its labels."""

    labels: LabelRule

    def __call__(self, row: Row, place: str) -> Records:
        """Return a statement that is answer throughout, even if the comment holds an answer marker."""
        fields.require(row, ("text", "label"), hint="the label is read from 'toxic', or from columns={'label': ...}")
        text = fields.text(row, "text")
        if not text.strip():
            raise DataError("`comment_text` is empty.")
        return Records(statements=(Statement(text, self.labels.read(row), fields.identifier(row, "group", place)),))


def one_group_per_text(statements: Sequence[Statement]) -> tuple[Statement, ...]:
    """Give statements of one text the group of the first, so that no split separates them."""
    first: dict[str, str] = {}
    groups = [first.setdefault(normalize(s.text), s.group) for s in statements]
    return tuple(s if s.group == group else replace(s, group=group) for s, group in zip(statements, groups))


@dataclass(frozen=True)
class ContinuationReader:
    """Reads one row of RealToxicityPrompts.

    Attributes:
        threshold: continuations of at least this toxicity have label 1.
        only_nontoxic: leave out prompts of toxicity 0.5 and more, as DExperts does.
    """

    threshold: float = THRESHOLD
    only_nontoxic: bool = False

    def __call__(self, row: Row, place: str) -> Records:
        """Return a prompt without references and, if its continuation has a score, a statement of both."""
        fields.require(row, ("prompt",))
        prompt, continuation = _with_scores(row, "prompt"), _with_scores(row, "continuation")
        if self.only_nontoxic:
            toxicity = fields.score(prompt, "toxicity")
            if toxicity is None:
                return Records(notes=("left out, the prompt has no toxicity.",))
            if toxicity >= THRESHOLD:
                return Records(notes=(f"left out, the prompt has toxicity {toxicity:.3g}.",))
        return self._records(prompt, continuation)

    def _records(self, prompt: Mapping[str, Any], continuation: Mapping[str, Any]) -> Records:
        text = fields.text(prompt, "text")
        if not text.strip():
            raise DataError("`prompt` is empty.")
        records = Records(prompts=(Prompt(text, (), (), normalize(text)),))
        answer, toxicity = fields.text(continuation, "text"), fields.score(continuation, "toxicity")
        if not answer.strip():
            return records
        if toxicity is None:
            return records._replace(notes=("the continuation has no toxicity: a prompt, but no statement.",))
        # A continuation usually begins with a blank; the answer starts after it.
        start = len(text) + len(answer) - len(answer.lstrip())
        statement = Statement(text + answer, int(toxicity >= self.threshold), normalize(text), start)
        return records._replace(statements=(statement,))


def _with_scores(row: Row, name: str) -> Mapping[str, Any]:
    value = row.get(name)
    if fields.is_missing(value) or isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Mapping):
        raise DataError(f"`{name}` must be a text, or hold 'text' and scores; got {value!r}.")
    return value
