"""Rows that hold the turns of a chat: rendered by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radiant_lens.datasets.readers import columns as fields
from radiant_lens.datasets.readers.labels import LabelRule
from radiant_lens.datasets.readers.parsing import Records
from radiant_lens.datasets.readers.questions import QuestionReader, normalize
from radiant_lens.datasets.readers.rows import Row
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.datasets.templates import ChatTemplate, Template, Turn
from radiant_lens.errors import DataError


@dataclass(frozen=True)
class ChatReader:
    """Reads one row of turns; the last assistant turn is the answer, all turns before it are context.

    Attributes:
        template: the chat template; rows of turns need one.
        labels: rule for the labels of `messages`.
    """

    template: Template
    labels: LabelRule

    def messages(self, row: Row, place: str) -> Records:
        """Read `messages` and `label`: a statement. Chats with the same context share a group."""
        fields.require(row, ("messages", "label"))
        chat = self._chat()
        context, answer = _split_answer(_read_turns(row["messages"], "messages"), "messages")
        head = chat.conversation(context) + chat.joint
        group = fields.identifier(row, "group", _default_group(context))
        statement = Statement(
            head + answer, self.labels.read(row), group, len(head), _only_question(context), rendered=True
        )
        return Records((statement,))

    def preference(self, row: Row, place: str) -> Records:
        """Read `prompt` (optional for chats), `chosen` and `rejected`: texts, or lists of turns."""
        fields.require(row, ("chosen", "rejected"))
        if not any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected")):
            return QuestionReader(self.template).preference(row, place)
        chat = self._chat()
        context, answer = _read_completion(row, "chosen")
        other_context, other = _read_completion(row, "rejected")
        if context != other_context:
            raise DataError("`chosen` and `rejected` must answer the same turns; their contexts differ.")
        if normalize(answer) == normalize(other):
            raise DataError("`chosen` and `rejected` are the same answer.")
        prompt = Prompt(
            chat.conversation(context),
            (answer,),
            (other,),
            fields.identifier(row, "group", _default_group(context)),
            answer,
            question=_only_question(context),
            joint=chat.joint,
            rendered=True,
        )
        return Records((prompt.answered(answer), prompt.answered(other)), (prompt,))

    def _chat(self) -> ChatTemplate:
        if not isinstance(self.template, ChatTemplate):
            raise DataError(
                "chat turns are rendered by the model's chat template; give "
                "template=radiant_lens.datasets.ChatTemplate(tokenizer)."
            )
        return self.template


def _read_turns(value: Any, name: str) -> list[Turn]:
    turns: Sequence[Any] = value if isinstance(value, list | tuple) else ()
    if not turns or not all(map(_is_turn, turns)):
        raise DataError(f"`{name}` must be a list of turns, each with texts 'role' and 'content'; got {value!r:.80}.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _read_completion(row: Row, name: str) -> tuple[list[Turn], str]:
    """Return the context and the answer of `chosen` or `rejected`, in each form that preference data has.

    A text or a list with one turn answers `prompt`; a longer list holds the whole chat, and `prompt`, if it is a list
    as well, comes before it.
    """
    prompt, value = row.get("prompt"), row[name]
    context: list[Turn] = []
    if isinstance(value, str):
        answer = value.strip()
    else:
        context, answer = _split_answer(_read_turns(value, name), name)
    if isinstance(prompt, list):
        context = [*_read_turns(prompt, "prompt"), *context]
    elif not context:
        context = [{"role": "user", "content": fields.text(row, "prompt").strip()}]
    if not answer or not context[-1]["content"].strip():
        raise DataError(f"`prompt` and `{name}` must not be empty.")
    return context, answer


def _split_answer(turns: list[Turn], name: str) -> tuple[list[Turn], str]:
    *context, last = turns
    answer = last["content"].strip()
    if last["role"] != "assistant" or not answer:
        raise DataError(f"`{name}` must end in an assistant turn with text; it ends in {dict(last)!r:.80}.")
    return context, answer


def _default_group(context: Sequence[Turn]) -> str:
    # Without the system turn: the same question under two system turns must not be split.
    return normalize("\n".join(turn["content"] for turn in context if turn["role"] != "system"))


def _only_question(context: Sequence[Turn]) -> str:
    """Return the question of a chat of one question, for few-shot prompting; "" for any other chat."""
    return context[0]["content"] if len(context) == 1 and context[0]["role"] == "user" else ""
