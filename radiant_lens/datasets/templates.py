"""Templates: from a question and an answer to the text that a model reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter
from typing import Any, ClassVar, TypeAlias

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError

# Neither contains the other: a template that writes the last turn alone must not pass for one that writes both.
_QUESTION_PROBE, _ANSWER_PROBE = "radiant-lens-question", "radiant-lens-answer"
# Arguments of `apply_chat_template` that decide the form of its result; the template's own options are all others.
_FIXED_OPTIONS = (
    "tokenize", "add_generation_prompt", "continue_final_message", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "padding", "truncation", "max_length",
)  # fmt: skip
# Arguments that `apply_chat_template` reads itself, so that the template need not name them.
_TOKENIZER_OPTIONS = ("chat_template", "tools", "documents")

Turn: TypeAlias = Mapping[str, str]
"""A turn of a chat: its "role" and its "content"."""


@dataclass(frozen=True)
class TextTemplate:
    r"""A format string with `{question}` that ends in `{answer}`.

    The default is the statement of ITI (arXiv 2306.03341). The prompt is the text before the answer without the
    blanks at its end: most tokenizers join a blank to the word after it, so the blanks belong to the answer.

    Raises:
        InvalidArgumentError: other placeholders, or text after the answer (it would count as the answer's).

    Example:
        >>> TextTemplate("Question: {question}\nAnswer: {answer}").prompt("who?")
        'Question: who?\nAnswer:'
    """

    text: str = "Q: {question} A: {answer}"
    rendered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the two placeholders."""
        _checks.instance("text", self.text, str)
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.text) if name is not None]
        except ValueError as error:
            raise InvalidArgumentError(f"`template` is not a format string: {error}; got {self.text!r}.") from error
        if set(names) != {"question", "answer"} or names.count("answer") != 1 or not self.text.endswith("{answer}"):
            raise InvalidArgumentError(
                f"`template` must hold '{{question}}' and end in '{{answer}}', with no other placeholder; "
                f"got {self.text!r}."
            )

    @property
    def _head(self) -> str:
        return self.text.removesuffix("{answer}")

    @property
    def joint(self) -> str:
        """Text between a prompt and its answer."""
        return self._head[len(self._head.rstrip(" ")) :]

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a generated answer: a line break, and the beginning of the next question."""
        marker = self._head.split("{question}")[0].rsplit("\n", 1)[-1].strip()
        return ("\n", marker) if marker else ("\n",)

    def prompt(self, question: str) -> str:
        """Return the text before the answer."""
        return self._head.rstrip(" ").format(question=question)


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer: the question is the user's turn, the answer the assistant's.

    A statement ends with the answer's last character: no end-of-turn mark counts as answer. Texts hold every special
    token that the template writes, BOS included, and are marked as rendered, so that no other is added when they are
    tokenized: the tokens are those of `apply_chat_template(..., tokenize=True)`.

    Args:
        tokenizer: a tokenizer of Hugging Face, or any object with its `apply_chat_template`.
        system: content of a system turn before all others; None for none.
        options: options of the template itself, such as {"enable_thinking": False}.

    Raises:
        InvalidArgumentError: the tokenizer has no chat template, its template refuses these turns, drops or changes
            the question, the system turn or the answer, or reads no option of that name.
    """

    tokenizer: Any
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    stop: ClassVar[tuple[str, ...]] = ()
    rendered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options, and that the template renders a question and an answer."""
        if not callable(getattr(self.tokenizer, "apply_chat_template", None)):
            raise InvalidArgumentError(
                f"`tokenizer` must have a chat template, such as model.tokenizer; got {type(self.tokenizer).__name__}: "
                "transformers.AutoTokenizer.from_pretrained(name) loads one."
            )
        self._check_options()
        self.prompt(_QUESTION_PROBE)
        _ = self.joint

    def _check_options(self) -> None:
        fixed = [name for name in self.options if name in _FIXED_OPTIONS]
        if fixed:
            raise InvalidArgumentError(f"`options` must be options of the chat template itself; got {fixed[0]!r}.")
        # A template ignores a name that it does not read, so a typo would go unnoticed. Only the text of the template
        # shows this; a tokenizer with several templates (a dict) or without one is not checked.
        source: Any = getattr(self.tokenizer, "chat_template", None)
        for name in set(self.options) - set(_TOKENIZER_OPTIONS) if isinstance(source, str) else ():
            if not re.search(rf"\b{re.escape(name)}\b", source):
                raise InvalidArgumentError(f"The tokenizer's chat template reads no option {name!r}; check `options`.")

    @cached_property
    def joint(self) -> str:
        """Text that the template writes between the assistant's header and the answer."""
        turns = [{"role": "user", "content": _QUESTION_PROBE}]
        head = self.conversation(turns)
        answer = {"role": "assistant", "content": _ANSWER_PROBE}
        whole = self._render([*self._with_system(turns), answer], add_generation_prompt=False)
        # Some templates write another header for an answer to come than for a past one; generation sees the first.
        return whole[len(head) : whole.rfind(_ANSWER_PROBE)] if whole.startswith(head) else ""

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> str:
        """Return the chat up to the assistant's answer; `before` are earlier questions and answers."""
        earlier = [turn for q, a in before for turn in (("user", q), ("assistant", a))]
        return self.conversation([{"role": role, "content": text} for role, text in [*earlier, ("user", question)]])

    def conversation(self, turns: Sequence[Turn]) -> str:
        """Return any turns as text, up to where the assistant answers.

        Raises:
            InvalidArgumentError: the template cannot render the turns, or drops or changes one of them.
        """
        return self._render(self._with_system(turns), add_generation_prompt=True)

    def _with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        if self.system is None:
            return list(turns)
        if turns and turns[0]["role"] == "system":
            raise InvalidArgumentError("The chat has a system turn of its own; leave out `system` of `ChatTemplate`.")
        return [{"role": "system", "content": self.system}, *turns]

    def _render(self, turns: list[Turn], *, add_generation_prompt: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, **self.options
            )
        except Exception as error:  # Templates raise errors of any kind.
            raise InvalidArgumentError(f"The tokenizer's chat template cannot render these turns: {error}") from error
        for turn in turns:
            # Templates may strip white space around a turn; everything else of it must be in the text.
            if turn["content"].strip() not in text:
                raise InvalidArgumentError(
                    f"The tokenizer's chat template drops or changes the {turn['role']} turn {turn['content']!r:.60}; "
                    "use another template, such as 'Q: {question} A: {answer}'."
                )
        return text


Template: TypeAlias = TextTemplate | ChatTemplate


PLAIN = "plain"
"""Name of the default text template, for models that have a chat template as well."""


def chat_template(model: Any, *, system: str | None = None) -> ChatTemplate | None:
    """Return the chat template of a model or tokenizer; None if it has none, as base models do.

    Args:
        model: anything with a `tokenizer`, or a tokenizer.
        system: content of a system turn before all others.

    Raises:
        InvalidArgumentError: neither, a template that cannot render a question and its answer, or a system turn for a
            model without a template.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not callable(getattr(tokenizer, "apply_chat_template", None)):
        raise InvalidArgumentError(f"`model` must be a model with its tokenizer; got {type(model).__name__}.")
    if getattr(tokenizer, "chat_template", None) is None:
        if system is not None:
            raise InvalidArgumentError(f"`system` needs a chat template, and the model has none; got {system!r:.60}.")
        return None
    return ChatTemplate(tokenizer, system)


def as_template(template: str | Template | None) -> Template:
    """Return a template from a format string, the template itself, or the default (None or "plain").

    Raises:
        InvalidArgumentError: something else.
    """
    if template is None or template == PLAIN:
        return TextTemplate()
    if isinstance(template, str):
        return TextTemplate(template)
    if not isinstance(template, TextTemplate | ChatTemplate):
        kind = type(template).__name__
        raise InvalidArgumentError(
            f"`template` must be a format string such as 'Q: {{question}} A: {{answer}}', a TextTemplate, or "
            f"ChatTemplate(tokenizer); got {kind if len(repr(template)) > 40 else repr(template)}."
        )
    return template
