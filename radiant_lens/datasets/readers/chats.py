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
from radiant_lens.datasets.templates import ChatTemplate, Template, TextTemplate, Turn
from radiant_lens.errors import DataError

PLAIN = TextTemplate("{question} {answer}")
"""The default template of prompts and their completions: nothing but a blank between them."""
# Names of roles in chats of "from" and "value".
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class ChatReader:
    """Reads one row of turns; the last assistant turn is the answer, all turns before it are context.

    Attributes:
        template: the chat template; rows of turns need one.
        labels: rule for the labels of `messages` and `completion`.
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
        """Read `chosen` and `rejected`, texts or lists of turns, and optionally `prompt` or `question`."""
        fields.require(row, ("chosen", "rejected"))
        row = _with_prompt(row)
        if not any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected")):
            reader = QuestionReader(self.template)
            if "prompt" in row:
                return reader.preference(row, place)
            if self.template != PLAIN:
                raise DataError(
                    "there is no `prompt` to lay the template around: leave out `template` for whole texts."
                )
            return reader.whole_pair(row, place)
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

    def completion(self, row: Row, place: str) -> Records:
        """Read `prompt`, `completion` and `label`: a statement. Completions of one prompt share a group."""
        fields.require(row, ("prompt", "completion", "label"))
        if any(isinstance(row[name], list) for name in ("prompt", "completion")):
            chat = self._chat()
            context, answer = _read_completion(row, "completion")
            head, joint = chat.conversation(context), chat.joint
            group, question = _default_group(context), _only_question(context)
        else:
            question, answer = (fields.text(row, name).strip() for name in ("prompt", "completion"))
            if not question or not answer:
                raise DataError("`prompt` and `completion` must not be empty.")
            head, joint, group = self.template.prompt(question), self.template.joint, normalize(question)
        start = len(head) + len(joint)
        group = fields.identifier(row, "group", group)
        text = head + joint + answer
        statement = Statement(text, self.labels.read(row), group, start, question, self.template.rendered)
        return Records((statement,))

    def _chat(self) -> ChatTemplate:
        if not isinstance(self.template, ChatTemplate):
            raise DataError(
                "chat turns are rendered by the model's chat template; give "
                "template=radiant_lens.datasets.ChatTemplate(tokenizer)."
            )
        return self.template


def _with_prompt(row: Row) -> Row:
    """Return a row of a pair whose `question`, if it has no prompt, is its prompt."""
    if fields.is_missing(row.get("prompt")) and not fields.is_missing(row.get("question")):
        return {**row, "prompt": row["question"]}
    return row


def _read_turns(value: Any, name: str) -> list[Turn]:
    turns: Sequence[Any] = value if isinstance(value, list | tuple) else ()
    read = [_read_turn(turn) for turn in turns]
    if not read or None in read:
        raise DataError(f"`{name}` must be a list of turns, each with texts 'role' and 'content'; got {value!r:.80}.")
    return [turn for turn in read if turn is not None]


def _read_turn(value: Any) -> Turn | None:
    """Return a turn of "role" and "content", or of "from" and "value"; None for anything else."""
    for role, content in (("role", "content"), ("from", "value")):
        name, text = (value.get(role), value.get(content)) if isinstance(value, Mapping) else (None, None)
        if isinstance(name, str) and isinstance(text, str):
            return {"role": _ROLES.get(name, name), "content": text}
    return None


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
