"""`load_dataset`: from a name, a file or an object in memory to a `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiant_lens import _checks
from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.dataset import ON_LONG, Dataset
from radiant_lens.datasets.few_shot import QA_PAIRS
from radiant_lens.datasets.packaged import PACKAGED, TEMPLATED, load_packaged
from radiant_lens.datasets.packaged import data_folder as data_folder
from radiant_lens.datasets.readers import labels
from radiant_lens.datasets.readers.columns import Columns, check_columns
from radiant_lens.datasets.readers.labels import Label, LabelRule
from radiant_lens.datasets.readers.parsing import ON_BAD_ROWS, Records, gather
from radiant_lens.datasets.readers.published import CHAT_FORMATS, FORMATS, TOXICITY_FORMATS, Format, Reading
from radiant_lens.datasets.readers.questions import normalize
from radiant_lens.datasets.readers.records import COMPARING_JUDGES
from radiant_lens.datasets.readers.toxicity import THRESHOLD, one_group_per_text
from radiant_lens.datasets.sources import Source, open_source
from radiant_lens.datasets.templates import ChatTemplate, Template, TextTemplate, as_template, chat_template
from radiant_lens.errors import InvalidArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset as HubDataset
    from datasets import IterableDataset


def load_dataset(
    source: str
    | Path
    | pd.DataFrame
    | HubDataset
    | IterableDataset
    | Sequence[Mapping[str, Any] | tuple[str, Any]]
    | Mapping[str, Sequence[Any]],
    *,
    path: str | Path | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    undesirable: Label | Sequence[Label] | None = None,
    threshold: float | None = None,
    template: str | Template | None = None,
    model: Any = None,
    contexts: Contexts | None = None,
    judge: str | None = None,
    on_bad_rows: str = "raise",
    on_long: str = "skip",
) -> Dataset:
    """Load a data set of the package, a published one, or any file or table with named columns.

    A row that cannot be used at all raises or is reported, as `on_bad_rows` says; a single answer or continuation that
    cannot be used is left out. `Dataset.skipped` names each by its place: its line in a file of text, else its number
    counted from 1. `radiant_lens.datasets.readers.published` describes the formats and their differences.

    Args:
        source: one of

            - a name: "misconceptions" or "tone" (of the package), "tiny-facts" or "tiny-tone" (of its embedded world),
              "truthfulqa", "nq_open", "trivia_qa", "jigsaw" or "realtoxicityprompts" (from the Hub, or from `path`);
            - a file that ends in .csv, .tsv, .json, .jsonl, .ndjson or .parquet, or in .txt (a prompt on each line),
              in any case; .gz may follow. The separator of a table, its encoding and the layout of a .json file are
              found out, and `Dataset.reading` says so;
            - a pandas DataFrame, a Hugging Face `Dataset`, a list of dicts, a list of (text, label) pairs, or a dict
              of columns. Class labels of Hugging Face are read by their names.

            The format of the rows is recognised by their columns: statements (`text`, `label`), prompts (see
            `read_records`), questions (`question`, `correct_answers`, `incorrect_answers`; or `question`, `choices`,
            `answer`), contrastive pairs (`chosen` and `rejected`, or `positive` and `negative`, with or without a
            `prompt`), labelled completions (`prompt`, `completion`, `label`), chats (`messages`, `label`), or one of a
            published data set.
        path: the local file of a published data set, in any of its formats.
        format: the format, if it should not be recognised: a key of `readers.published.FORMATS`, such as
            "preference", "messages" or "records".
        columns: our names of columns to those of the source, such as {"text": "sentence"}. "label" may be made of
            several columns (1 if any is 1), `correct_answers` and `incorrect_answers` too (one answer each). A text in
            a column that is named here for these is one answer; write several as a JSON list.
        undesirable: the labels of the source that are undesirable, such as 0 in a column in which 1 means true, or
            ["toxic", "hate"]; all others are desirable. With one of 0 and 1, or of true and false, only the other may
            occur beside it, unless it is in a list. Default: 1 is undesirable, and words are refused. For
            contrastive pairs, the column of the undesirable texts: `rejected` and `answer_matching_behavior` if
            nothing is said; of `positive` and `negative` it must be stated.
        threshold: for scores in the label column: scores at or above it are undesirable, or those below it
            with `undesirable="below"`.
        template: template around questions: a format string, a `TextTemplate` or a `ChatTemplate`; "plain" for
            "Q: {question} A: {answer}". Default: what `model` was trained on, or "plain" without it.
        model: a model with its tokenizer, or a tokenizer. Questions are laid in its chat template if it has one; else,
            as base models complete what they read, three examples come first (`QA_PAIRS`). "plain" does neither.
        contexts: put the statements and prompts in context; the embedded world brings its own.
        judge: another judge than the format's.
        on_bad_rows: "raise", or "report" to leave bad rows out and name them in `Dataset.skipped`.
        on_long: what `collect` and `evaluate` do with texts beyond the model's context: "skip", "cut" or "error".

    Raises:
        UnknownNameError: an unknown name of a data set, format or column; the nearest names are listed.
        InvalidArgumentError: an object that holds no rows, an option that does not fit this data, or labels whose
            sense must be stated.
        DataError: a file that cannot be used, or no connection to the Hub.

    Example:
        >>> load_dataset("tiny-facts").split((0.6, 0.2, 0.2), seed=0)[2].name
        'tiny-facts'
        >>> load_dataset("misconceptions")
        Dataset('misconceptions': 2655 statements, 660 prompts, 660 groups, label 1 = misconception)
        >>> load_dataset([("Thanks a lot.", 0), ("Get lost.", 1)])
        Dataset('data': 2 statements, 0 prompts, 2 groups, label 1 = undesirable)
    """
    _checks.choice("on_bad_rows", on_bad_rows, ON_BAD_ROWS)
    _checks.choice("on_long", on_long, ON_LONG)
    if contexts is not None:
        _checks.instance("contexts", contexts, Contexts)
    if judge is not None:
        _checks.instance("judge", judge, str, hint="`evaluate` takes a judge of your own")
    spoken = None if model is None or template is not None else chat_template(model)
    if isinstance(source, str) and source in PACKAGED:
        _refuse_options(source, path=path, format=format, columns=columns, undesirable=undesirable, threshold=threshold)
        if source not in TEMPLATED:
            _refuse_options(source, template=template)
        laid = spoken if template is None and source in TEMPLATED else template
        own = load_packaged(source, template=laid, contexts=contexts, judge=judge)
        return _with_examples(replace(own, on_long=on_long), model, template)
    check_columns(columns or {})
    opened = open_source(source, path, format, columns or {}, labels_are_words=undesirable is not None)
    rule, all_columns = _label_rule(opened, undesirable, threshold)
    laid = _lay_template(opened, spoken if template is None and FORMATS[opened.format].template else template)
    records = _read_records(opened, all_columns, Reading(laid, opened.period, True, rule), judge, on_bad_rows)
    layout = FORMATS[opened.format]
    data = Dataset(
        opened.title,
        one_group_per_text(records.statements) if opened.format == "jigsaw" else records.statements,
        records.prompts,
        contexts=contexts,
        judge=judge or layout.judge,
        stop=laid.stop if layout.template is not None else ("\n",),
        template=laid if layout.template is not None else None,
        skipped=records.notes,
        sense=_sense(opened.format, all_columns, rule),
        reading=opened.reading,
        on_long=on_long,
    )
    return _with_examples(data, model, template)


def _with_examples(data: Dataset, model: Any, template: str | Template | None) -> Dataset:
    """Put examples before questions in the default layout, for a model without a chat template."""
    if model is None or template is not None or data.template != TextTemplate():
        return data
    own = {normalize(record.question) for record in (*data.atoms, *data.bare_prompts)}
    return data.with_few_shot([pair for pair in QA_PAIRS if normalize(pair[0]) not in own], statements=True)


def _refuse_options(name: str, **options: object) -> None:
    used = [option for option, value in options.items() if value is not None]
    if used:
        raise InvalidArgumentError(f"`{used[0]}` cannot be given with {name}; it is for published data sets or files.")


def _lay_template(source: Source, template: str | Template | None) -> Template:
    """Return the template around the questions of a source.

    Raises:
        InvalidArgumentError: the format has whole texts, or its chats need the model's template.
    """
    layout = FORMATS[source.format]
    if layout.template is None and template is not None:
        raise InvalidArgumentError(
            f"`template` is laid around questions; the format {source.format!r} has whole texts: leave it out."
        )
    laid = as_template(layout.template if template is None else template)
    if source.format in CHAT_FORMATS and not isinstance(laid, ChatTemplate):
        raise InvalidArgumentError(
            f"{source.name} has chats, which are rendered by the model's chat template; give "
            "template=radiant_lens.datasets.ChatTemplate(tokenizer)."
        )
    return laid


def _label_rule(
    source: Source, undesirable: Label | Sequence[Label] | None, threshold: float | None
) -> tuple[LabelRule, Columns]:
    """Return the rule for labels, and our names of columns to the source's.

    Raises:
        InvalidArgumentError: the options do not fit the format, or the sense must be stated.
    """
    layout = FORMATS[source.format]
    columns = {**layout.columns, **source.named}
    if layout.sides:
        if threshold is not None:
            raise InvalidArgumentError(
                f"`threshold` compares scores in a column of labels; {source.name} has pairs and no labels."
            )
        return LabelRule(), {**columns, **_side_columns(source, layout, undesirable)}
    # RealToxicityPrompts has scores but no column of labels: a threshold fits, a value does not.
    scored = source.format in TOXICITY_FORMATS and undesirable is None
    if not layout.labelled and not scored and (undesirable is not None or threshold is not None):
        raise InvalidArgumentError(
            f"`undesirable` and `threshold` read a column of labels, and the format {source.format!r} has none."
        )
    label = columns.get("label", "label")
    if layout.labelled and undesirable is None and threshold is None and isinstance(label, str):
        name = "completion" if layout.ambiguous else "text"
        text = str(columns.get(name, name))
        labels.check_sense(text, label, ambiguous=layout.ambiguous)
    return labels.make_rule(undesirable, threshold), columns


def _side_columns(source: Source, layout: Format, undesirable: object) -> Columns:
    """Return the columns of the desirable and of the undesirable side of contrastive pairs, by our names."""
    desirable, other = (str(source.named.get(side, side)) for side in layout.sides)
    if undesirable is None and layout.ambiguous:
        raise InvalidArgumentError(
            f"{source.name} has pairs of {desirable!r} and {other!r}, and which of them is undesirable depends on what "
            f"was collected: say undesirable={other!r} or undesirable={desirable!r}."
        )
    if undesirable is not None:
        _checks.choice("undesirable", undesirable, (desirable, other))
        desirable, other = (other, desirable) if undesirable == desirable else (desirable, other)
    return dict(zip(layout.answers, (desirable, other)))


def _read_records(source: Source, columns: Columns, reading: Reading, judge: str | None, on_bad_rows: str) -> Records:
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
    if layout.sides:
        return str(columns[layout.answers[1]])
    if format in TOXICITY_FORMATS:
        return f"toxicity at or above {THRESHOLD if rule.threshold is None else rule.threshold:g}"
    if layout.labelled:
        column = columns.get("label", "label")
        return rule.sense(column if isinstance(column, str) else " or ".join(column))
    names = columns.get("incorrect_answers", "incorrect_answers")
    return layout.sense or (names if isinstance(names, str) else " or ".join(names))
