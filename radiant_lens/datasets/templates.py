"""Templates: from a question and an answer to the text that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any, ClassVar, TypeAlias

from radiant_lens.errors import InvalidArgumentError

_PROBE = "radiant-lens-probe"


@dataclass(frozen=True)
class TextTemplate:
    r"""A format string with `{question}`, that ends in `{answer}`.

    The default is the statement of ITI (arXiv 2306.03341). The prompt is what precedes the answer, without
    the blanks at its end; they stand between prompt and answer, as most tokenizers want them.

    Raises:
        InvalidArgumentError: other placeholders, or text after the answer (it would count as the answer's).

    Example:
        >>> TextTemplate("Question: {question}\nAnswer: {answer}").prompt("who?")
        'Question: who?\nAnswer:'
    """

    text: str = "Q: {question} A: {answer}"
    rendered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """The two placeholders stand where they must."""
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
        """What stands between a prompt and its answer."""
        return self._head[len(self._head.rstrip(" ")) :]

    @property
    def stop(self) -> tuple[str, ...]:
        """Where a generated answer ends: at a new line, or where the next question would begin."""
        marker = self._head.split("{question}")[0].rsplit("\n", 1)[-1].strip()
        return ("\n", marker) if marker else ("\n",)

    def prompt(self, question: str) -> str:
        """The text before the answer."""
        return self._head.rstrip(" ").format(question=question)


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer: the question is the user's turn, the answer the assistant's.

    A statement ends with the answer's last character: no end-of-turn mark counts as answer. Texts hold every special
    token that the template writes, BOS included, and are marked as rendered, so that no other is added when they are
    tokenized: the tokens are those of `apply_chat_template(..., tokenize=True)`.

    Args:
        tokenizer: of Hugging Face, or anything with its `apply_chat_template` and `bos_token`.
        system: a system turn before all others; None for none.

    Raises:
        InvalidArgumentError: the tokenizer has no chat template, or its template refuses these turns.
    """

    tokenizer: Any
    system: str | None = None
    stop: ClassVar[tuple[str, ...]] = ()
    rendered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """A question can be rendered."""
        self.prompt(_PROBE)

    @cached_property
    def joint(self) -> str:
        """What the template puts between the assistant's header and the answer."""
        head = self._render(self._turns(_PROBE), add_generation_prompt=True)
        answer = {"role": "assistant", "content": _PROBE * 2}
        whole = self._render([*self._turns(_PROBE), answer], add_generation_prompt=False)
        # Where the header of an answer to come is another than that of an answer given, the former holds.
        return whole[len(head) : whole.rfind(_PROBE * 2)] if whole.startswith(head) and _PROBE * 2 in whole else ""

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> str:
        """The conversation up to where the assistant answers; `before` are earlier questions and answers."""
        return self._render(self._turns(question, before), add_generation_prompt=True)

    def _turns(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
        said = [("system", self.system)] if self.system is not None else []
        said += [turn for q, a in before for turn in (("user", q), ("assistant", a))]
        return [{"role": role, "content": content} for role, content in [*said, ("user", question)]]

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # Templates raise whatever they like.
            raise InvalidArgumentError(f"The tokenizer's chat template cannot render these turns: {error}") from error
        return text


Template: TypeAlias = TextTemplate | ChatTemplate


def as_template(template: str | Template | None) -> Template:
    """A template from a format string, itself, or the default.

    Raises:
        InvalidArgumentError: something else.
    """
    if template is None:
        return TextTemplate()
    if isinstance(template, str):
        return TextTemplate(template)
    if not isinstance(template, TextTemplate | ChatTemplate):
        raise InvalidArgumentError(f"`template` must be a format string or a template; got {template!r}.")
    return template
