"""The data sets of the package itself, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

from radiant_lens.datasets.contexts import Contexts
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers.columns import Columns
from radiant_lens.datasets.readers.parsing import gather
from radiant_lens.datasets.readers.questions import QuestionReader
from radiant_lens.datasets.readers.records import read_records
from radiant_lens.datasets.readers.rows import file_rows
from radiant_lens.datasets.templates import Template, as_template


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


PACKAGED: dict[str, Callable[[Template | None], Dataset]] = {
    "misconceptions": _misconceptions,
    "tone": _tone,
    "tiny-facts": _tiny_facts,
    "tiny-tone": _tiny_tone,
}
# The embedded world has whole texts, in the form on which its model was trained.
TEMPLATED = ("misconceptions", "tone")


def load_packaged(
    name: str, *, template: str | Template | None, contexts: Contexts | None, judge: str | None
) -> Dataset:
    """Return a data set of the package, in other contexts or with another judge if these are given."""
    own = PACKAGED[name](None if template is None else as_template(template))
    return replace(own, contexts=contexts or own.contexts, judge=judge or own.judge)
