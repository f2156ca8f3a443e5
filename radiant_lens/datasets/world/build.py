"""Write the data files of the embedded world: `python -m radiant_lens.datasets.world.build FOLDER`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.readers.records import write_records
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.datasets.world.facts import make_fact_world
from radiant_lens.datasets.world.tone import tone_questions

N_REPLIES = 3


def tiny_facts() -> Dataset:
    """Return every contested question: both forms of its true answer and of its misconception, and as a prompt."""
    atoms: list[Statement] = []
    prompts: list[Prompt] = []
    for question in make_fact_world().contested:
        true, false = question.answers(question.truth), question.answers(question.misconception)
        atoms += [_statement(question.text, a, 0, question.name) for a in true]
        atoms += [_statement(question.text, a, 1, question.name) for a in false]
        prompts.append(Prompt(question.text, true, false, question.name, true[0]))
    return Dataset("tiny-facts", tuple(atoms), tuple(prompts))


def tiny_tone(seed: int = 0) -> Dataset:
    """Return every question with kind and rude replies, and as a prompt asked neutrally and rudely."""
    rng = random.Random(seed)
    atoms: list[Statement] = []
    prompts: list[Prompt] = []
    for question in tone_questions():
        kind = tuple(question.reply(True, rng) for _ in range(N_REPLIES))
        rude = tuple(question.reply(False, rng) for _ in range(N_REPLIES))
        atoms += [_statement(question.text, a, 0, question.name) for a in kind]
        atoms += [_statement(question.text, a, 1, question.name) for a in rude]
        prompts.append(Prompt(question.text, kind, rude, question.name, kind[0]))
        prompts.append(Prompt(question.provoking(rng), kind, rude, question.name, kind[0], "provoked"))
    return Dataset("tiny-tone", tuple(atoms), tuple(prompts))


def _statement(question: str, answer: str, label: int, group: str) -> Statement:
    # One blank joins question and answer, so the answer starts after it.
    return Statement(f"{question} {answer}", label, group, len(question) + 1)


def main(folder: Path) -> None:
    """Write both files."""
    for dataset in (tiny_facts(), tiny_tone()):
        write_records(folder / f"{dataset.name}.jsonl", dataset)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
