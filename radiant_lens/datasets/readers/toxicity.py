"""Rows of Jigsaw's toxic comments and of RealToxicityPrompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.parsing import Found
from radiant_lens.datasets.readers.questions import normal
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError

THRESHOLD = 0.5


def read_comment(row: Row, place: str) -> Found:
    """A comment: a statement that is answer throughout, whatever marks stand in it."""
    fields.needed(row, ("text", "label"), hint="the label is read from 'toxic', or from columns={'label': ...}")
    text = fields.text(row, "text")
    if not text.strip():
        raise DataError("`comment_text` is empty.")
    return Found(statements=(Statement(text, fields.label(row, "label"), fields.text(row, "group", place)),))


def one_group_per_text(statements: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements of one text share the group of the first, so that no split parts them."""
    first: dict[str, str] = {}
    groups = [first.setdefault(normal(s.text), s.group) for s in statements]
    return tuple(s if s.group == group else replace(s, group=group) for s, group in zip(statements, groups))


def read_continuation(row: Row, place: str) -> Found:
    """A prompt without references; where its continuation is scored, a statement of both, labelled by that score."""
    fields.needed(row, ("prompt",))
    prompt, continuation = _part(row, "prompt"), _part(row, "continuation")
    text = fields.text(prompt, "text")
    if not text.strip():
        raise DataError("`prompt` is empty.")
    found = Found(prompts=(Prompt(text, (), (), normal(text)),))
    said, toxicity = fields.text(continuation, "text"), fields.score(continuation, "toxicity")
    if not said.strip():
        return found
    if toxicity is None:
        return found._replace(notes=("the continuation has no toxicity: a prompt, but no statement.",))
    start = len(text) + len(said) - len(said.lstrip())
    statement = Statement(text + said, int(toxicity >= THRESHOLD), normal(text), start)
    return found._replace(statements=(statement,))


def read_nontoxic(row: Row, place: str) -> Found:
    """The same for prompts whose toxicity is below 0.5; others are noted."""
    fields.needed(row, ("prompt",))
    toxicity = fields.score(_part(row, "prompt"), "toxicity")
    if toxicity is None:
        return Found(notes=("left out, the prompt has no toxicity.",))
    if toxicity >= THRESHOLD:
        return Found(notes=(f"left out, the prompt has toxicity {toxicity:.3g}.",))
    return read_continuation(row, place)


def _part(row: Row, name: str) -> Mapping[str, Any]:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Mapping):
        raise DataError(f"`{name}` must be a text, or hold 'text' and scores; got {value!r}.")
    return value
