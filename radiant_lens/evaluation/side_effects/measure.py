"""Measurements of `side_effects`: each runs the plain and the steered model on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.evaluation.answers import distinct_share
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.evaluation.side_effects.metrics import Ratio, SideEffect, compare
from radiant_lens.hooks._steer import steer
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def compare_text(
    model: TransformerBridge, steering: Steering, statements: Sequence[Statement], max_tokens: int | None
) -> dict[str, SideEffect]:
    """Score statements: cross entropy, perplexity, KL, share of tokens edited."""
    plain = score_statements(model, statements, max_tokens=max_tokens)
    steered = score_statements(model, statements, steering, max_tokens=max_tokens)
    groups = [s.group for s in statements]
    nats = [Ratio(-side.log_prob, side.n_tokens) for side in (plain, steered)]
    none = Ratio(torch.zeros_like(steered.n_tokens), steered.n_tokens)
    return {
        "cross_entropy": compare("cross_entropy", groups, *nats),
        "perplexity": compare("perplexity", groups, *nats),
        "kl": compare("kl", groups, none, Ratio(steered.kl, steered.n_tokens)),
        "edited_share": compare("edited_share", groups, none, Ratio(steered.n_edited, steered.n_tokens)),
    }


def answer_both(
    model: TransformerBridge, steering: Steering, prompts: Sequence[Prompt], **sampling: Any
) -> tuple[list[str], list[str]]:
    """Generate one answer to each prompt without and with the steering, from the same random numbers.

    Args:
        model: from `load_model`.
        steering: checked against the model by the caller.
        prompts: any number.
        sampling: further arguments of `generate_answers`.
    """
    sides: list[list[str]] = []
    for context in (nullcontext(), steer(model, steering, allow_mismatch=True)):
        with context:
            sides.append([samples[0] for samples in generate_answers(model, prompts, **sampling)])
    return sides[0], sides[1]


def compare_answers(groups: Sequence[str], plain: Sequence[str], steered: Sequence[str]) -> dict[str, SideEffect]:
    """Count words of answers: repetition, distinct words and pairs, empty answers, length."""
    one, two = (_count_words(answers) for answers in (plain, steered))
    return {name: compare(name, groups, one[name], two[name]) for name in one}


def _count_words(answers: Sequence[str]) -> dict[str, Ratio]:
    words = [answer.split() for answer in answers]
    # Answers without a run of 3 words have no repetition, not one of 0: they leave the mean.
    return {
        "repetition": _means([(repetition(w), len(w) >= 3) for w in words]),
        "dist_1": _means([(distinct_share([w], 1), bool(w)) for w in words]),
        "dist_2": _means([(distinct_share([w], 2), bool(w)) for w in words]),
        "empty_answers": _means([(not w, 1) for w in words]),
        "words": _means([(len(w), 1) for w in words]),
    }


def _means(pairs: Sequence[tuple[float, int]]) -> Ratio:
    return Ratio(*torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T)


def repetition(words: Sequence[str], n: int = 3) -> float:
    """Share of the runs of `n` words that occur earlier in the same answer; 0 where there is none.

    Example:
        >>> repetition("a b c a b c".split())
        0.25
    """
    grams = list(zip(*(words[i:] for i in range(n))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compare_choices(
    model: TransformerBridge, steering: Steering, prompts: Sequence[Prompt], max_tokens: int | None
) -> dict[str, SideEffect]:
    """Score multiple-choice questions: the share in which the right choice has the largest log-probability."""
    sides = [score_choices(model, prompts, s, max_tokens=max_tokens) for s in (None, steering)]
    ratios = [_means([(right, 1) for right in rows["mc1"]]) for rows in sides]
    return {"accuracy": compare("accuracy", sides[0]["group"].tolist(), *ratios)}
