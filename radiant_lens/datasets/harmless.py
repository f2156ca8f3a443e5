"""Texts and requests that a steering should leave alone: everyday sentences, and everyday requests."""

from __future__ import annotations

from collections.abc import Sequence

from radiant_lens.datasets.loading import data_folder, load_dataset
from radiant_lens.datasets.readers.rows import file_rows
from radiant_lens.datasets.records import DESIRABLE, Prompt, Statement
from radiant_lens.datasets.templates import Template

N_WORLD_TEXTS, N_WORLD_REQUESTS = 60, 30


def neutral_statements() -> list[Statement]:
    """Return the everyday sentences of `data/neutral.jsonl`, each a group of its own."""
    return [Statement(row["text"], DESIRABLE, row["group"]) for _, row in file_rows(data_folder() / "neutral.jsonl")]


def harmless_requests(template: Template) -> list[Prompt]:
    """Return the everyday requests of `data/requests.jsonl`, laid out by a template."""
    rows = [row for _, row in file_rows(data_folder() / "requests.jsonl")]
    return as_requests([row["question"] for row in rows], template, [row["group"] for row in rows])


def as_requests(questions: Sequence[str], template: Template, groups: Sequence[str] | None = None) -> list[Prompt]:
    """Lay out questions as prompts without references; without `groups` each question is its own group."""
    return [
        Prompt(
            template.prompt(question),
            (),
            (),
            group,
            question=question,
            joint=template.joint,
            rendered=template.rendered,
        )
        for question, group in zip(questions, questions if groups is None else groups)
    ]


def world_statements() -> list[Statement]:
    """Return true statements of the embedded world, one for each of `N_WORLD_TEXTS` questions."""
    true = {s.group: s for s in load_dataset("tiny-facts").atoms if s.label == DESIRABLE}
    return list(true.values())[:N_WORLD_TEXTS]


def world_requests() -> list[Prompt]:
    """Return friendly questions of the embedded world's small talk."""
    return [p for p in load_dataset("tiny-tone").bare_prompts if p.condition == "bare"][:N_WORLD_REQUESTS]
