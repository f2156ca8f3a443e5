"""`load_dataset`: from a name or a file to a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers import labels
from radiant_lens.datasets.readers.columns import Columns, check_columns
from radiant_lens.datasets.readers.labels import Label, LabelRule
from radiant_lens.datasets.readers.parsing import ON_BAD_ROWS, Records, gather
from radiant_lens.datasets.readers.published import (
    BEHAVIOR_COLUMNS,
    FORMATS,
    PUBLISHED,
    TOXICITY_FORMATS,
    Reading,
    check_format,
    detect_format,
)
from radiant_lens.datasets.readers.questions import QuestionReader
from radiant_lens.datasets.readers.records import COMPARING_JUDGES, read_records
from radiant_lens.datasets.readers.rows import ENDINGS, ENDINGS_HINT, file_ending, file_rows, file_stem, hub_rows
from radiant_lens.datasets.readers.toxicity import THRESHOLD, one_group_per_text
from radiant_lens.datasets.templates import ChatTemplate, Template, as_template
from radiant_lens.errors import DataError, InvalidArgumentError


def data_folder() -> Path:
    """Return the folder of the package's data sets: next to the package in a checkout, inside it once installed."""
    installed = Path(str(resources.files("radiant_lens"))) / "data"
    return installed if installed.is_dir() else installed.parent.parent / "data"


def _tiny_facts(template: Template | None) -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-facts.jsonl")
    return Dataset(
        "tiny-facts", statements, prompts, contexts=Contexts(), judge="exact", stop=(".",), sense="misconception"
    )


def _tiny_tone(template: Template | None) -> Dataset:
    statements, prompts = read_records(data_folder() / "tiny-tone.jsonl")
    return Dataset("tiny-tone", statements, prompts, contexts=Contexts(), judge="lexicon", stop=(".",), sense="rude")


def _misconceptions(template: Template | None) -> Dataset:
    return _own_questions("misconceptions", template or as_template(None), {}, "misconception")


def _tone(template: Template | None) -> Dataset:
    return _own_questions("tone", template or as_template("{question} {answer}"), {"question": "prompt"}, "rude")


def _own_questions(name: str, template: Template, columns: Columns, sense: str) -> Dataset:
    path = data_folder() / f"{name}.jsonl"
    read = QuestionReader(template).lists
    records = gather(file_rows(path), read, name=path.name, columns=columns, required={}, on_bad_rows="raise")
    return Dataset(
        name,
        records.statements,
        records.prompts,
        judge="overlap",
        stop=template.stop,
        template=template,
        skipped=records.notes,
        sense=sense,
    )


_OWN: dict[str, Callable[[Template | None], Dataset]] = {
    "misconceptions": _misconceptions,
    "tone": _tone,
    "tiny-facts": _tiny_facts,
    "tiny-tone": _tiny_tone,
}
# The embedded world has whole texts, in the form on which its model was trained.
_OWN_TEMPLATED = ("misconceptions", "tone")


def load_dataset(
    name_or_path: str | Path,
    *,
    path: str | Path | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    undesirable: Label | Sequence[Label] | None = None,
    threshold: float | None = None,
    template: str | Template | None = None,
    contexts: Contexts | None = None,
    judge: str | None = None,
    on_bad_rows: str = "raise",
) -> Dataset:
    """Load a data set of the package, a published one, or any file with named columns.

    A row that cannot be used at all raises or is reported, as `on_bad_rows` says; a single answer or continuation that
    cannot be used is left out. `Dataset.skipped` names each by its line. `radiant_lens.datasets.readers.published`
    describes the published formats and their differences.

    Args:
        name_or_path: "misconceptions" or "tone" (of the package), "tiny-facts" or "tiny-tone" (of its embedded world);
            "truthfulqa", "nq_open", "trivia_qa", "jigsaw" or "realtoxicityprompts" (from the Hub, or from `path`);
            or a file that ends in .csv, .json or .jsonl (also .tsv, .parquet; .gz may follow),
            in a published format (recognised by its columns), with columns of questions (`question`,
            `correct_answers`, `incorrect_answers`), or of statements and prompts (see `read_records`).
        path: the local file of a published data set, in any of its formats.
        format: the format, if it should not be recognised: "multiple_choice", "generation", "answer_csv", "iti",
            "contrastive", "preference", "messages", "jigsaw", "realtoxicityprompts", "nontoxic" or "records".
        columns: our names of columns to those of the file, such as {"text": "sentence"}; "label" may be made
            of several (1 if any is 1). A text in a column that is named here for `correct_answers` or
            `incorrect_answers` is one answer; write several as a JSON list.
        undesirable: the labels of the file that are undesirable, such as 0 in a column in which 1 means true, or
            ["toxic", "hate"]; all others are desirable. Default: 1 is undesirable, and words are refused. For
            "contrastive", the column of the undesirable answers.
        threshold: for scores in the label column: scores at or above it are undesirable, or those below it
            with `undesirable="below"`.
        template: template around questions: a format string, a `TextTemplate` or a `ChatTemplate`;
            default "Q: {question} A: {answer}".
        contexts: put the statements and prompts in context; the embedded world brings its own.
        judge: another judge than the format's.
        on_bad_rows: "raise" or "report".

    Raises:
        UnknownNameError: an unknown name of a data set, format or column; the nearest names are listed.
        InvalidArgumentError: an option that does not fit this data, or labels whose sense must be stated.
        DataError: a file that cannot be used, or no connection to the Hub.

    Example:
        >>> load_dataset("tiny-facts").split((0.6, 0.2, 0.2), seed=0)[2].name
        'tiny-facts'
        >>> load_dataset("misconceptions")
        Dataset('misconceptions': 2655 statements, 660 prompts, 660 groups, label 1 = misconception)
    """
    name = str(name_or_path)
    _checks.choice("on_bad_rows", on_bad_rows, ON_BAD_ROWS)
    if name in _OWN:
        file_options = {"path": path, "format": format, "columns": columns}
        file_options |= {"undesirable": undesirable, "threshold": threshold}
        return _load_own(name, template, contexts, judge, file_options)
    if name not in PUBLISHED and file_ending(Path(name)) not in ENDINGS:
        _checks.known("data set", name, [*_OWN, *PUBLISHED], hint=ENDINGS_HINT)
    if name not in PUBLISHED:
        _refuse_options("a file", path=path)
    check_columns(columns or {})
    # The first row is read here, so that a wrong option is refused before the other rows are read.
    source = _open_source(name, path, format, columns or {})
    rule, swapped = _label_rule(source, undesirable, threshold)
    layout = FORMATS[source.format]
    if layout.template is None and template is not None:
        raise InvalidArgumentError(
            f"`template` is laid around questions; the format {source.format!r} has whole texts."
        )
    laid = as_template(layout.template if template is None else template)
    if source.format == "messages" and not isinstance(laid, ChatTemplate):
        raise InvalidArgumentError(
            f"{source.name} has chats, which are rendered by the model's chat template; give "
            "template=radiant_lens.datasets.ChatTemplate(tokenizer)."
        )
    records = _read_records(source, swapped, Reading(laid, source.period, True, rule), judge, on_bad_rows)
    return Dataset(
        name if name in PUBLISHED else file_stem(Path(name)),
        one_group_per_text(records.statements) if source.format == "jigsaw" else records.statements,
        records.prompts,
        contexts=contexts,
        judge=judge or layout.judge,
        stop=laid.stop if layout.template is not None else ("\n",),
        template=laid if layout.template is not None else None,
        skipped=records.notes,
        sense=_sense(source.format, swapped, rule),
    )


def _load_own(
    name: str,
    template: str | Template | None,
    contexts: Contexts | None,
    judge: str | None,
    file_options: Mapping[str, object],
) -> Dataset:
    _refuse_options(name, **file_options)
    if name not in _OWN_TEMPLATED:
        _refuse_options(name, template=template)
    own = _OWN[name](None if template is None else as_template(template))
    return replace(own, contexts=contexts or own.contexts, judge=judge or own.judge)


def _refuse_options(name: str, **options: object) -> None:
    used = [option for option, value in options.items() if value is not None]
    if used:
        raise InvalidArgumentError(f"`{used[0]}` cannot be given with {name}; it is for published data sets or files.")


@dataclass(frozen=True)
class _Source:
    """An opened source: its name in messages, its rows, its format, and columns named by the caller."""

    name: str
    rows: Iterator[tuple[str, Any]]
    format: str
    named: Columns
    period: bool


def _open_source(name: str, path: str | Path | None, format: str | None, named: Columns) -> _Source:
    published = PUBLISHED.get(name)
    if format is not None:
        check_format(format, published, local=published is None or path is not None)
    if published is None or path is not None:
        file = Path(name if path is None else path)
        source, rows = file.name, file_rows(file)
    else:
        config = (format or published.configs[0]) if published.configs else None
        source, rows = published.repository, hub_rows(published.repository, config, published.split)
    allowed = FORMATS if published is None else published.formats
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} has no rows.")
    format = format or _detect(first[1], allowed, named, source)
    return _Source(source, chain([first], rows), format, named, published is not None and published.period)


def _detect(row: Any, allowed: Collection[str], named: Columns, source: str) -> str:
    """Return the format by the columns of the first row."""
    names = list(row) if isinstance(row, Mapping) else []
    renamed = [ours for ours, theirs in named.items() if not isinstance(theirs, str) or theirs in names]
    return detect_format([*names, *renamed], allowed, source)


def _label_rule(
    source: _Source, undesirable: Label | Sequence[Label] | None, threshold: float | None
) -> tuple[LabelRule, Columns]:
    """Return the rule for labels, and our names of columns to the file's.

    Raises:
        InvalidArgumentError: the options do not fit the format, or the sense must be stated.
    """
    layout = FORMATS[source.format]
    columns = {**layout.columns, **source.named}
    if source.format == "contrastive" and undesirable is not None:
        _checks.choice("undesirable", undesirable, BEHAVIOR_COLUMNS)
        good = BEHAVIOR_COLUMNS[1 - BEHAVIOR_COLUMNS.index(str(undesirable))]
        return LabelRule(), {**columns, "incorrect_answers": str(undesirable), "correct_answers": good}
    # RealToxicityPrompts has scores but no column of labels: a threshold fits, a value does not.
    scored = source.format in TOXICITY_FORMATS and undesirable is None
    if not layout.labelled and not scored and (undesirable is not None or threshold is not None):
        raise InvalidArgumentError(
            f"`undesirable` and `threshold` read a column of labels, and the format {source.format!r} has none."
        )
    label = columns.get("label", "label")
    if layout.labelled and undesirable is None and threshold is None and isinstance(label, str):
        labels.check_sense(str(columns.get("text", "text")), label)
    return labels.make_rule(undesirable, threshold), columns


def _read_records(source: _Source, columns: Columns, reading: Reading, judge: str | None, on_bad_rows: str) -> Records:
    layout = FORMATS[source.format]
    reading = reading._replace(references=(judge or layout.judge) in COMPARING_JUDGES)
    records = gather(
        source.rows,
        layout.reader(reading),
        name=source.name,
        columns=columns,
        required=source.named,
        on_bad_rows=on_bad_rows,
    )
    # Only now: a value of `undesirable` may appear in the last row alone.
    reading.labels.check_seen(source.name)
    return records


def _sense(format: str, columns: Columns, rule: LabelRule) -> str:
    """Return the meaning of label 1 in a format, for the data set's repr."""
    layout = FORMATS[format]
    if format in TOXICITY_FORMATS:
        return f"toxicity at or above {THRESHOLD if rule.threshold is None else rule.threshold:g}"
    if layout.labelled:
        column = columns.get("label", "label")
        return rule.sense(column if isinstance(column, str) else " or ".join(column))
    return layout.sense or str(columns.get("incorrect_answers", "incorrect_answers"))
