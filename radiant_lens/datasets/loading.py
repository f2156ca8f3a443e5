"""`load_dataset`: a name or a file becomes a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers.columns import Columns, check_columns
from radiant_lens.datasets.readers.parsing import ON_BAD_ROWS, gather
from radiant_lens.datasets.readers.published import FORMATS, PUBLISHED, Reading, check_format, detect
from radiant_lens.datasets.readers.records import COMPARING_JUDGES, read_records
from radiant_lens.datasets.readers.rows import ENDINGS, file_rows, hub_rows
from radiant_lens.datasets.readers.toxicity import one_group_per_text
from radiant_lens.datasets.templates import Template, as_template
from radiant_lens.errors import DataError, InvalidArgumentError


def data_folder() -> Path:
    """Where the data sets of the package lie: beside it in a checkout, inside it once installed."""
    installed = Path(str(resources.files("radiant_lens"))) / "data"
    return installed if installed.is_dir() else installed.parent.parent / "data"


def _tiny_facts() -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-facts.jsonl")
    return Dataset("tiny-facts", statements, prompts, contexts=Contexts(), judge="exact", stop=(".",))


def _tiny_tone() -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-tone.jsonl")
    return Dataset("tiny-tone", statements, prompts, contexts=Contexts(), judge="lexicon", stop=(".",))


_OWN: dict[str, Callable[[], Dataset]] = {"tiny-facts": _tiny_facts, "tiny-tone": _tiny_tone}


def load_dataset(
    name_or_path: str | Path,
    *,
    path: str | Path | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    template: str | Template | None = None,
    contexts: Contexts | None = None,
    judge: str | None = None,
    on_bad_rows: str = "raise",
) -> Dataset:
    """Load a data set of the package, a published one, or any file with named columns.

    Rows that cannot be used at all raise, or are reported; single answers or continuations that cannot be used are
    left out. Either way `Dataset.skipped` names each by its line. What the published formats are, how
    they differ and what is done about it is told in `radiant_lens.datasets.readers.published`.

    Args:
        name_or_path: "tiny-facts" or "tiny-tone" (embedded); "truthfulqa", "nq_open", "trivia_qa", "jigsaw" or
            "realtoxicityprompts" (from the Hub, or from `path`); or a path that ends in .csv, .json or .jsonl,
            in a published format (seen by its columns), with columns of questions (`question`,
            `correct_answers`, `incorrect_answers`), or of statements and prompts (see `read_records`).
        path: the local file of a published data set, in any of its formats.
        format: instead of guessing: "multiple_choice", "generation", "answer_csv", "iti", "jigsaw",
            "realtoxicityprompts", "nontoxic" or "records".
        columns: our names of columns to those of the file, such as {"text": "sentence"}; "label" may be made
            of several (1 where any is 1).
        template: laid around questions: a format string, a `TextTemplate` or a `ChatTemplate`;
            default "Q: {question} A: {answer}".
        contexts: put the statements and prompts in context; the embedded data sets bring their own.
        judge: another judge than the format's.
        on_bad_rows: "raise" or "report".

    Raises:
        UnknownNameError: a name of a data set, format or column that is not known; the nearest are given.
        InvalidArgumentError: an option that does not fit this data.
        DataError: a file that cannot be used, or no way to the Hub.

    Example:
        >>> load_dataset("tiny-facts").split((0.6, 0.2, 0.2), seed=0)[2].name
        'tiny-facts'
    """
    name = str(name_or_path)
    _checks.choice("on_bad_rows", on_bad_rows, ON_BAD_ROWS)
    if name in _OWN:
        _nothing_else(name, path=path, format=format, columns=columns, template=template)
        own = _OWN[name]()
        return replace(own, contexts=contexts or own.contexts, judge=judge or own.judge)
    if name not in PUBLISHED and Path(name).suffix not in ENDINGS:
        _checks.known("data set", name, [*_OWN, *PUBLISHED], hint="A file must end in .csv, .json or .jsonl.")
    if name not in PUBLISHED:
        _nothing_else("a file", path=path)
    asked = columns or {}
    check_columns(asked)
    source, rows = _open(name, path, format)
    if format is None:
        format, rows = _detected(rows, PUBLISHED[name].formats if name in PUBLISHED else FORMATS, asked, source)
    layout = FORMATS[format]
    if not layout.templated and template is not None:
        raise InvalidArgumentError(f"`template` is laid around questions; the format {format!r} has whole texts.")
    laid = as_template(template)
    judge = judge or layout.judge
    period = name in PUBLISHED and PUBLISHED[name].period
    found = gather(
        rows,
        layout.reader(Reading(laid, period, judge in COMPARING_JUDGES)),
        name=source,
        columns={**layout.columns, **asked},
        asked=asked,
        on_bad_rows=on_bad_rows,
    )
    return Dataset(
        name if name in PUBLISHED else Path(name).stem,
        one_group_per_text(found.statements) if format == "jigsaw" else found.statements,
        found.prompts,
        contexts=contexts,
        judge=judge,
        stop=laid.stop if layout.templated else ("\n",),
        template=laid if layout.templated else None,
        skipped=found.notes,
    )


def _nothing_else(name: str, **options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise InvalidArgumentError(f"`{given[0]}` cannot be given with {name}; it is for published data sets or files.")


def _open(name: str, path: str | Path | None, format: str | None) -> tuple[str, Iterator[tuple[str, Any]]]:
    """What the source is called in messages, and its rows."""
    published = PUBLISHED.get(name)
    if format is not None:
        check_format(format, published, local=published is None or path is not None)
    if published is None or path is not None:
        file = Path(name if path is None else path)
        return file.name, file_rows(file)
    config = (format or published.configs[0]) if published.configs else None
    return published.repository, hub_rows(published.repository, config, published.split)


def _detected(
    rows: Iterator[tuple[str, Any]], allowed: Collection[str], columns: Columns, source: str
) -> tuple[str, Iterator[tuple[str, Any]]]:
    """The format by the columns of the first row, and all rows."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} has no rows.")
    there = list(first[1]) if isinstance(first[1], Mapping) else []
    named = [ours for ours, theirs in columns.items() if not isinstance(theirs, str) or theirs in there]
    return detect([*there, *named], allowed, source), chain([first], rows)
