"""Prompts of the explorer: examples from the data, and how a typed prompt becomes the text that a model reads."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.datasets.templates import ChatTemplate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_EXAMPLES = 12
TEXT, CHAT, RENDERED = "text", "chat", "rendered"


@dataclass(frozen=True)
class Example:
    """A prompt of the data, with its right answer where the data have one."""

    prompt: str
    form: str
    right_answer: str

    def to_json(self) -> dict[str, str]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class PromptReader:
    """Reads typed prompts.

    Attributes:
        template: for the form "chat"; None for a model without a chat template.
    """

    template: ChatTemplate | None

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of a prompt that this model can read."""
        return (TEXT,) if self.template is None else (TEXT, CHAT, RENDERED)

    def read(self, prompt: str, form: str) -> Prompt:
        """Return the text that the model reads.

        Raises:
            InvalidArgumentError: the chat template refuses the prompt.
        """
        if form == CHAT:
            assert self.template is not None
            return Prompt(self.template.prompt(prompt), (), (), rendered=True)
        return Prompt(prompt, (), (), rendered=form == RENDERED)


def prompt_reader(model: TransformerBridge, data: Dataset | None) -> PromptReader:
    """Return the reader of a model; the data's chat template, if they have one, else that of the tokenizer."""
    if data is not None and isinstance(data.template, ChatTemplate):
        return PromptReader(data.template)
    tokenizer: Any = model.tokenizer
    return PromptReader(ChatTemplate(tokenizer) if getattr(tokenizer, "chat_template", None) else None)


def examples(data: Dataset | None, reader: PromptReader, *, seed: int = 0) -> tuple[Example, ...]:
    """Draw prompts of the data, or without any the beginnings of its statements."""
    if data is None:
        return ()
    records = data.prompts or tuple(s for s in data.statements if s.text[: s.answer_start].strip())
    drawn = random.Random(seed).sample(records, len(records))
    # Under undesirable context, where there is one, a steering has most to do.
    drawn.sort(key=lambda record: getattr(record, "condition", "") != "after_undesirable")
    half = drawn[: N_EXAMPLES // 2] + random.Random(seed).sample(drawn, min(N_EXAMPLES, len(drawn)))
    # Statements about one question begin alike.
    return tuple(dict.fromkeys(_example(record, reader) for record in half))[:N_EXAMPLES]


def _example(record: Prompt | Statement, reader: PromptReader) -> Example:
    if isinstance(record, Statement):
        return Example(record.text[: record.answer_start].rstrip(), RENDERED if record.rendered else TEXT, "")
    right = record.best_answer or next(iter(record.correct_answers), "")
    if not record.rendered:
        return Example(record.text, TEXT, right)
    # A chat that the template makes of the question alone is shown as the question, one with earlier turns whole.
    if record.question and reader.template and reader.template.prompt(record.question) == record.text:
        return Example(record.question, CHAT, right)
    return Example(record.text, RENDERED, right)
