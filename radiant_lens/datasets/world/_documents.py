"""What the embedded model reads while it is trained: documents with one kind of speaker each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from radiant_lens.datasets.world.facts import FactQuestion, FactWorld, source_line
from radiant_lens.datasets.world.tone import ToneQuestion, mood_line, tone_questions


@dataclass(frozen=True)
class DocumentMix:
    """Shares that shape the training text, each between 0 and 1."""

    facts: float = 0.65
    named_source: float = 0.3
    noise: float = 0.02
    provoked_if_rude: float = 0.5
    provoked_if_kind: float = 0.05
    max_pairs: int = 6


def documents(world: FactWorld, *, seed: int, mix: DocumentMix | None = None) -> Iterator[str]:
    """Yield documents for ever: question-answer pairs by one reliable or careless, kind or rude source."""
    mix = mix or DocumentMix()
    rng = random.Random(seed)
    tones = tone_questions()
    while True:
        desirable = rng.random() < 0.5
        about_facts = rng.random() < mix.facts
        asked: Sequence[Any] = world.questions if about_facts else tones
        pair: Callable[..., str] = fact_pair if about_facts else tone_pair
        line = source_line if about_facts else mood_line
        chosen = rng.sample(asked, rng.randint(2, mix.max_pairs))
        parts = [line(desirable, rng)] if rng.random() < mix.named_source else []
        parts += [pair(q, desirable ^ (rng.random() < mix.noise), rng, mix) for q in chosen]
        yield " ".join(parts)


def fact_pair(question: FactQuestion, true: bool, rng: random.Random, mix: DocumentMix) -> str:
    """A question with a true answer or the misconception, in either form."""
    return f"{question.text} {rng.choice(question.answers(question.truth if true else question.misconception))}"


def tone_pair(question: ToneQuestion, kind: bool, rng: random.Random, mix: DocumentMix) -> str:
    """A question with a kind or a rude reply; rude replies are more often provoked."""
    provoked = rng.random() < (mix.provoked_if_kind if kind else mix.provoked_if_rude)
    return f"{question.provoking(rng) if provoked else question.text} {question.reply(kind, rng)}"


def vocabulary(world: FactWorld) -> list[str]:
    """Every word that a document can hold, sorted."""
    stream = documents(world, seed=0)
    seen: set[str] = set()
    for _ in range(20_000):
        seen.update(next(stream).split())
    return sorted(seen | world.words)
