"""Measure the shares of answers in the embedded model's card: `python -m radiant_lens.tiny.measure [MODEL]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from radiant_lens.datasets import Dataset, load_dataset
from radiant_lens.datasets.world.facts import all_source_lines
from radiant_lens.datasets.world.tone import all_mood_lines
from radiant_lens.evaluation import generate_answers, get_judge
from radiant_lens.models.loading import load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SOURCES = {"tiny-facts": all_source_lines, "tiny-tone": all_mood_lines}


def behaviour(
    model: TransformerBridge, dataset: Dataset, *, n_samples: int = 2, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compute shares of correct, incorrect and other answers under each condition and each kind of named source."""
    prompts = {p.condition: [q for q in dataset.prompts if q.condition == p.condition] for p in dataset.prompts}
    cases = {name: [(p, p.text) for p in chosen] for name, chosen in prompts.items()}
    # A bare question under every line that names a source: what the model says then is what it learned of sources.
    for reliable, name in ((True, "under a good source"), (False, "under a bad source")):
        lines = [line for line, kind in SOURCES[dataset.name]() if kind == reliable]
        cases[name] = [(p, f"{line} {p.text}") for line in lines for p in prompts["bare"]]
    judge = get_judge(dataset.judge)
    shares = {}
    for name, chosen in cases.items():
        texts = [text for _, text in chosen]
        answers = generate_answers(model, texts, n_samples=n_samples, stop=dataset.stop, seed=seed)
        pairs = [(prompt, answer) for (prompt, _), own in zip(chosen, answers) for answer in own]
        verdicts = [v.verdict for v in judge.judge(*zip(*pairs))]
        shares[name] = {v: verdicts.count(v) / len(verdicts) for v in ("correct", "incorrect", "other")}
    return shares


def main(model: Annotated[str, typer.Argument(help="Model to measure.")] = "tiny") -> None:
    """Print the shares as a table in Markdown."""
    bridge, console = load_model(model), Console()
    console.print("| task | condition | correct | incorrect | other |\n|-|-|-|-|-|", markup=False)
    for name in SOURCES:
        for condition, shares in behaviour(bridge, load_dataset(name)).items():
            cells = " | ".join(f"{100 * share:.1f}%" for share in shares.values())
            console.print(f"| {name} | {condition.replace('_', ' ')} | {cells} |", markup=False)


if __name__ == "__main__":
    typer.run(main)
