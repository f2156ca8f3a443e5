"""Training text of the embedded model: documents with one kind of speaker each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from radiant_lens.datasets.world.facts import FactQuestion, FactWorld, source_line
from radiant_lens.datasets.world.tone import ToneQuestion, mood_line, tone_questions


@dataclass(frozen=True)
class DocumentMix:
    """Settings of the training text; all but the last are shares between 0 and 1.

    Attributes:
        facts: share of documents about facts; the others are small talk.
        named_source: share of documents that begin with a line that names their source or mood.
        noise: share of pairs that are not of their document's kind.
        provoked_if_rude: share of rude replies that answer a rude question.
        provoked_if_kind: share of kind replies that answer a rude question.
        max_pairs: the largest number of pairs in a document.
    """

    facts: float = 0.65
    named_source: float = 0.3
    noise: float = 0.02
    provoked_if_rude: float = 0.5
    provoked_if_kind: float = 0.05
    max_pairs: int = 6


def documents(world: FactWorld, *, seed: int, mix: DocumentMix | None = None) -> Iterator[str]:
    """Yield documents without end: question-answer pairs by one reliable or careless, kind or rude source."""
    mix = mix or DocumentMix()
    rng = random.Random(seed)
    tones = tone_questions()
    while True:
        desirable = rng.random() < 0.5
        about_facts = rng.random() < mix.facts
        questions: Sequence[Any] = world.questions if about_facts else tones
        pair: Callable[..., str] = fact_pair if about_facts else tone_pair
        line = source_line if about_facts else mood_line
        chosen = rng.sample(questions, rng.randint(2, mix.max_pairs))
        pieces = [line(desirable, rng)] if rng.random() < mix.named_source else []
        # Noise flips single pairs, so that a document is evidence for its source, never proof.
        pieces += [pair(q, desirable ^ (rng.random() < mix.noise), rng, mix) for q in chosen]
        yield " ".join(pieces)


def fact_pair(question: FactQuestion, true: bool, rng: random.Random, mix: DocumentMix) -> str:
    """Return a question with a true answer or the misconception, in either form."""
    return f"{question.text} {rng.choice(question.answers(question.truth if true else question.misconception))}"


def tone_pair(question: ToneQuestion, kind: bool, rng: random.Random, mix: DocumentMix) -> str:
    """Return a question with a kind or a rude reply; rude replies are more often provoked."""
    provoked = rng.random() < (mix.provoked_if_kind if kind else mix.provoked_if_rude)
    return f"{question.provoking(rng) if provoked else question.text} {question.reply(kind, rng)}"


def vocabulary(world: FactWorld) -> list[str]:
    """Return every word that a document can hold, sorted."""
    # Drawn rather than listed, so that a word of a new form cannot be forgotten; a test compares other seeds.
    stream = documents(world, seed=0)
    seen: set[str] = set()
    for _ in range(20_000):
        seen.update(next(stream).split())
    return sorted(seen | world.words)
