"""The control of style: each question with the answers of another one."""

from __future__ import annotations

from dataclasses import replace

from radiant_lens.datasets.dataset import Dataset

OFFSET = 7


def with_swapped_answers(data: Dataset, *, offset: int = OFFSET) -> Dataset:
    """Return the prompts with the answers of the prompt `offset` places further on, around the end.

    No answer fits its question, so a steering that makes the correct ones more probable here does so by their style.
    """
    prompts = data.prompts
    swapped = [
        replace(
            prompt,
            correct_answers=other.correct_answers,
            incorrect_answers=other.incorrect_answers,
            best_answer=other.best_answer,
            mc1_incorrect=other.mc1_incorrect,
        )
        for prompt, other in zip(prompts, [prompts[(i + offset) % len(prompts)] for i in range(len(prompts))])
    ]
    return replace(data, atoms=(), bare_prompts=tuple(swapped), contexts=None, few_shot=None)
