"""`radiant-lens columns`: what would be read from a data set, before anything is run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit, table

if TYPE_CHECKING:
    from radiant_lens.datasets import Dataset

LONGEST = 200
"""Characters of a text that are shown."""


def columns(
    data: Annotated[str, typer.Argument(help="A data file, or a name as for `--data`.")],
    model: Annotated[str, typer.Option(help="Model whose chat template is used with --template chat.")] = "tiny",
    rows: Annotated[int, typer.Option(min=1, help="Statements, prompts and skipped lines to show of each.")] = 5,
    as_json: o.Json = False,
    *,
    reading: o.FileReading,
) -> None:
    """Show what would be read from a data set: statements with their labels in words, prompts, skipped lines.

    Example: radiant-lens columns my.csv --columns text=statement,label=is_true --undesirable 0
    """
    dataset = reading.load(data, model=model, on_bad_rows="report")
    notes = [o.as_flags(note) for note in dataset.skipped]
    statements = [
        {"label": f"{s.label}, {_words(s.label, dataset.sense)}", "group": s.group, "text": _shown(s.text)}
        for s in dataset.statements[:rows]
    ]
    prompts = [
        {
            "prompt": _shown(p.text),
            "correct": _shown("; ".join(p.correct_answers)),
            "incorrect": _shown("; ".join(p.incorrect_answers)),
        }
        for p in dataset.prompts[:rows]
    ]
    skipped = [{"skipped": note} for note in notes[:rows]]
    result = {
        "dataset": repr(dataset),
        **_counts(dataset),
        "statements": statements,
        "prompts": prompts,
        "skipped": notes,
    }
    tables = {"Statements": statements, "Prompts": prompts, f"Skipped, {len(notes)} in all": skipped}
    shown = [repr(dataset), _sentence(dataset), *(table(title, lines) for title, lines in tables.items() if lines)]
    emit(result, as_json=as_json, shown=shown)


def _words(label: int, sense: str) -> str:
    word = "undesirable" if label else "desirable"
    return f"{word} ({sense})" if label and sense not in ("", word) else word


def _counts(dataset: Dataset) -> dict[str, Any]:
    labels = Counter(s.label for s in dataset.statements)
    return {"undesirable": labels[1], "desirable": labels[0], "n_prompts": len(dataset.prompts)}


def _sentence(dataset: Dataset) -> str:
    counts = _counts(dataset)
    return (
        f"{counts['desirable']} desirable and {counts['undesirable']} undesirable statements, {counts['n_prompts']} "
        f"prompts, in {len(dataset.groups)} groups; {len(dataset.skipped)} skipped."
    )


def _shown(text: str) -> str:
    # Line breaks are part of what a model reads; as escapes they do not break the table.
    text = text.replace("\n", "\\n")
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
