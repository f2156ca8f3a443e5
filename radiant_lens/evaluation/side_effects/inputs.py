"""Inputs of `side_effects`: neutral texts, requests and benchmark questions, given or of the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from radiant_lens import _checks
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.harmless import (
    as_requests,
    harmless_requests,
    neutral_statements,
    world_requests,
    world_statements,
)
from radiant_lens.datasets.loading import load_dataset
from radiant_lens.datasets.records import DESIRABLE, Prompt, Statement
from radiant_lens.datasets.templates import ChatTemplate, Template, as_template
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.evaluation.multiple_choice import choices
from radiant_lens.models.tokens import encode

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MOST_UNKNOWN = 0.1
"""Share of unknown tokens above which a tokenizer is taken not to have been made for English."""


class Requests(NamedTuple):
    """Prompts with the strings that end their answers."""

    prompts: Sequence[Prompt]
    stop: tuple[str, ...]


def choose_template(model: TransformerBridge, template: str | Template | None) -> Template:
    """Return the template of the caller, else the tokenizer's own for chats, else the default of questions."""
    tokenizer: Any = model.tokenizer
    if template is None and getattr(tokenizer, "chat_template", None):
        return ChatTemplate(tokenizer)
    return as_template(template)


def read_texts(model: TransformerBridge, data: Dataset | Sequence[str] | None) -> list[Statement]:
    """Return the neutral texts as statements.

    Raises:
        DataError: there are none, or the model has no tokens for those of the package.
    """
    if data is None:
        return world_statements() if _lacks_words(model) else neutral_statements()
    if isinstance(data, Dataset):
        statements = [s for s in data.statements if s.label == DESIRABLE]
    else:
        statements = [Statement(text, DESIRABLE, text) for text in _listed("data", data)]
    _checks.some("The neutral text (`data`)", len(statements))
    return statements


def read_requests(model: TransformerBridge, requests: Dataset | Sequence[str] | None, template: Template) -> Requests:
    """Return the requests as prompts; texts are laid out by the template.

    Raises:
        DataError: there are none.
    """
    if isinstance(requests, Dataset):
        prompts, stop = requests.prompts, requests.stop
    elif requests is not None:
        prompts, stop = as_requests(_listed("requests", requests), template), template.stop
    elif _lacks_words(model):
        prompts, stop = world_requests(), (".",)
    else:
        prompts, stop = harmless_requests(template), template.stop
    _checks.some("`requests`", len(prompts))
    return Requests(prompts, stop)


def read_benchmark(benchmark: Dataset | str | Path | None, template: Template) -> list[Prompt]:
    """Return the benchmark's questions that have correct and incorrect answers; without a benchmark none.

    Raises:
        DataError: no question has both.
        InvalidArgumentError: not a data set or a file.
    """
    if benchmark is None:
        return []
    if not isinstance(benchmark, Dataset | str | Path):
        raise InvalidArgumentError(f"`benchmark` must be a Dataset or a file of questions; got {benchmark!r:.80}.")
    prompts = (
        benchmark.prompts if isinstance(benchmark, Dataset) else load_dataset(benchmark, template=template).prompts
    )
    answerable = [p for p in prompts if choices_of(p)]
    if not answerable:
        raise DataError("`benchmark` has no question with correct and incorrect answers.")
    return answerable


def choices_of(question: Prompt) -> tuple[str, ...]:
    """Return all choices of a question; none if it lacks correct or incorrect answers."""
    options = choices(question)
    return () if options is None else options.texts


def _listed(name: str, texts: Sequence[str]) -> Sequence[str]:
    # A single text is a sequence, too: of its letters.
    _checks.each(name, texts, str)
    return texts


def _lacks_words(model: TransformerBridge) -> bool:
    """True if the tokenizer has no tokens for the package's English, as that of the embedded model has not."""
    tokenizer: Any = model.tokenizer
    if tokenizer.unk_token_id is None:
        return False
    tokens = [token for row in encode(model, neutral_statements()) for token in row.ids]
    return tokens.count(tokenizer.unk_token_id) > MOST_UNKNOWN * len(tokens)
