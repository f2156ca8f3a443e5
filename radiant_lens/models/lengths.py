"""Records beyond a model's context: skipped, cut or refused, and counted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from radiant_lens import _checks
from radiant_lens.datasets.dataset import ON_LONG, Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.errors import DataError
from radiant_lens.models.tokens import check_texts, encode_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Record = TypeVar("Record", Statement, Prompt)


class Fitting(NamedTuple, Generic[Record]):
    """The records that fit a model's context, and how many were skipped or cut for that."""

    records: tuple[Record, ...]
    n_skipped: int = 0
    n_cut: int = 0


def long_rule(data: object, on_long: str | None) -> str:
    """Return what happens to texts beyond the context: `on_long`, or for None the rule of the data set, or "skip"."""
    if on_long is not None:
        return on_long
    return data.on_long if isinstance(data, Dataset) else "skip"


def fit_context(
    model: TransformerBridge,
    records: Sequence[Record],
    on_long: str,
    *,
    n_new: int = 0,
    answers: bool = False,
    stacklevel: int = 3,
) -> Fitting[Record]:
    """Return the records that fit the model's context; warn if some do not.

    Args:
        model: from `load_model`.
        records: statements or prompts.
        on_long: "skip" leaves out records that are too long. "cut" ends statements where the context ends, and leaves
            out those of whose answer nothing would remain, and prompts, which cannot end before the answer. "error"
            refuses the first.
        n_new: tokens to be generated after each record.
        answers: prompts must also leave room for each of their answers.
        stacklevel: of the warning; 3 is the caller of the caller.

    Raises:
        InvalidArgumentError: another value of `on_long`.
        DataError: all records are too long, or one of them and `on_long` is "error".
    """
    _checks.choice("on_long", on_long, ON_LONG)
    check_texts(records)
    limit = model.cfg.n_ctx
    if not limit:
        return Fitting(tuple(records))
    room = limit - max(n_new - 1, 0)
    fitting: list[Record] = []
    refusal, n_cut = "", 0
    for i, record in enumerate(records):
        variants = _variants(record) if answers and isinstance(record, Prompt) else [record]
        length = max(_length(model, variant, room) for variant in variants)
        if length <= room:
            fitting.append(record)
            continue
        refusal = refusal or _refusal(i, length, limit, n_new, record)
        if on_long == "error":
            raise DataError(f"{refusal} shorten it, or give on_long='skip' to leave it out.")
        cut = _cut(model, record, room) if on_long == "cut" else None
        fitting.extend([] if cut is None else [cut])
        n_cut += cut is not None
    n_skipped = len(records) - len(fitting)
    if n_skipped and not fitting:
        which = "no other text is there" if n_skipped == 1 else f"all {n_skipped} texts are too long"
        raise DataError(f"{refusal} {which}, so none is left; shorten them, or load a model with a longer context.")
    if n_skipped or n_cut:
        warnings.warn(_warning(n_skipped, n_cut, len(records), room), UserWarning, stacklevel=stacklevel)
    return Fitting(tuple(fitting), n_skipped, n_cut)


def within_context(model: TransformerBridge, data: Dataset) -> Dataset:
    """Return the groups of a data set whose texts all fit the model's context; warn if some do not.

    For work that compares a group's texts with each other, to which a text that is cut would be another one.

    Raises:
        DataError: a text that is too long, where the rule of the data set is "error".
    """
    rule = "error" if data.on_long == "error" else "skip"
    statements = fit_context(model, data.statements, rule, stacklevel=3).records
    prompts = fit_context(model, data.prompts, rule, answers=True, stacklevel=3).records
    fitting = set(map(id, (*statements, *prompts)))
    lost = {record.group for record in (*data.statements, *data.prompts) if id(record) not in fitting}
    return data.only(data.groups - lost) if lost else data


def _refusal(number: int, length: int, limit: int, n_new: int, record: Statement | Prompt) -> str:
    new = f", {n_new} new ones included" if n_new else ""
    return f"Text {number} has {length} tokens; the model's context holds {limit}{new} ({record.text[:40]!r}...):"


def _warning(n_skipped: int, n_cut: int, n: int, room: int) -> str:
    counts = [f"{count} {what}" for count, what in ((n_skipped, "skipped"), (n_cut, "cut")) if count]
    return (
        f"{n_skipped + n_cut} of {n} texts are longer than the {room} tokens for which the model's context has room: "
        f"{' and '.join(counts)}; on_long='skip', 'cut' or 'error' decides."
    )


def _variants(prompt: Prompt) -> list[Prompt | Statement]:
    answers = (
        *prompt.correct_answers,
        *prompt.incorrect_answers,
        *(prompt.mc1_incorrect or ()),
        *([prompt.best_answer] if prompt.best_answer else ()),
    )
    return [prompt, *map(prompt.answered, dict.fromkeys(answers))]


def _length(model: TransformerBridge, record: Statement | Prompt, room: int) -> int:
    """Return the number of tokens, or 0 for a text so short that it need not be tokenized."""
    # A token holds at least one byte, a character has at most four. Should a tokenizer make more tokens of a short
    # text, `encode` refuses it later.
    if 4 * len(record.text) + 8 <= room:
        return 0
    return len(encode_text(model, record.text, record.rendered).ids)


def _cut(model: TransformerBridge, record: Record, room: int) -> Record | None:
    """Return a statement of the longest beginning that has room; None for a prompt, or if the answer is not in it."""
    if not isinstance(record, Statement):
        return None
    ends = encode_text(model, record.text, record.rendered).ends
    # A beginning may have more tokens than it has within the whole text, so it is tokenized again.
    for end in reversed(ends[:room]):
        text = record.text[:end]
        if end <= record.answer_start:
            return None
        if len(encode_text(model, text, record.rendered).ids) <= room:
            return replace(record, text=text)
    return None
