"""Invented words that can be pronounced: every name of the embedded world is one lower-case token."""

from __future__ import annotations

import random
from collections.abc import Iterator

_ONSETS = [
    "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gr", "kl", "pr", "st",
    "tr",
]  # fmt: skip
_VOWELS = ["a", "e", "i", "o", "u"]


def invented_words(n_syllables: int, ending: str, *, seed: int, exclude: set[str]) -> Iterator[str]:
    """Yield invented words of `n_syllables` that end in `ending`, each once, never one of `exclude`.

    Args:
        n_syllables: consonant-vowel pairs before the ending, at least 1.
        ending: letters that close every word, so that the ending shows the kind of a name.
        seed: the same seed gives the same words in the same order.
        exclude: words already taken; yielded words are added to it.
    """
    rng = random.Random(seed)
    while True:
        stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(n_syllables))
        word = stem + ending
        if word not in exclude:
            exclude.add(word)
            yield word
