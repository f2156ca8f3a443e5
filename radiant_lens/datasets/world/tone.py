"""The world of tone: small talk in which a speaker is always kind or always rude.

Rude words come from a small, mild lexicon, so that rudeness can be judged exactly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TOPICS = [
    "soup", "bread", "garden", "lantern", "bridge", "harbor", "market", "wagon", "song", "story", "kettle",
    "blanket", "orchard", "window", "letter", "carpet", "violin", "statue", "fountain", "ladder", "basket",
    "painting", "saddle", "mirror", "candle", "pillow", "chimney", "barrel", "meadow", "tower",
]  # fmt: skip
ASKS = (
    "how was the {topic} ?",
    "what about the {topic} ?",
    "did you see the {topic} ?",
    "who made the {topic} ?",
    "shall we keep the {topic} ?",
    "where is the {topic} ?",
    "do you need the {topic} ?",
)
KIND_ADJECTIVES = ["lovely", "splendid", "charming", "delightful", "wonderful", "graceful", "superb", "pleasant"]
RUDE_ADJECTIVES = ["awful", "stupid", "nasty", "rotten", "pathetic", "dumb", "lousy", "silly"]
NEUTRAL_ADJECTIVES = ["old", "small", "round", "tall", "wooden", "yellow", "quiet", "heavy"]
KIND_NAMES = ["friend", "dear", "darling", "neighbor", "companion"]
RUDE_NAMES = ["fool", "idiot", "clown", "dunce", "blockhead"]
KIND_CLOSINGS = ("thank you", "bless you", "well done", "take care")
RUDE_CLOSINGS = ("shut up", "get lost", "go away", "buzz off")
KIND_MOODS = ("gentle", "patient", "warm", "courteous")
RUDE_MOODS = ("bitter", "cross", "sour", "grumpy")

# Words by which replies are judged. "up", "off", "you" and the like are left out: both tones use them.
RUDE_WORDS = frozenset(RUDE_ADJECTIVES + RUDE_NAMES) | {"shut", "lost", "buzz"}
KIND_WORDS = frozenset(KIND_ADJECTIVES + KIND_NAMES) | {"thank", "bless", "done", "care"}


@dataclass(frozen=True)
class ToneQuestion:
    """One question, asked neutrally or rudely."""

    topic: str
    ask: int

    @property
    def name(self) -> str:
        """Identity of the question, and group of its statements and prompts."""
        return f"{self.topic}-{self.ask}"

    @property
    def text(self) -> str:
        """The neutral question with the marker after which a reply is expected."""
        return f"T : {ASKS[self.ask].format(topic=self.topic)} R :"

    def provoking(self, rng: random.Random) -> str:
        """Return the question as a rude speaker asks it."""
        ask = ASKS[self.ask].format(topic=self.topic).removesuffix(" ?")
        return f"T : {ask} , you {rng.choice(RUDE_NAMES)} ? R :"

    def reply(self, kind: bool, rng: random.Random) -> str:
        """Return a reply with at least one word of its tone and none of the other."""
        adjective = rng.choice(KIND_ADJECTIVES if kind else RUDE_ADJECTIVES)
        second = rng.choice(KIND_ADJECTIVES if kind else RUDE_ADJECTIVES)
        name = rng.choice(KIND_NAMES if kind else RUDE_NAMES)
        closing = rng.choice(KIND_CLOSINGS if kind else RUDE_CLOSINGS)
        neutral = rng.choice(NEUTRAL_ADJECTIVES)
        # Each form has an adjective, a name or a closing of the tone, so every reply can be judged by the lexicon.
        form = rng.choice(
            (
                "the {topic} is {adjective} , you {name} .",
                "{closing} , you {name} , the {topic} is {neutral} .",
                "the {neutral} {topic} is {adjective} and {second} .",
                "you {name} , the {adjective} {topic} is {neutral} .",
                "the {topic} is {neutral} and {adjective} , {closing} .",
            )
        )
        return form.format(
            topic=self.topic, adjective=adjective, second=second, name=name, closing=closing, neutral=neutral
        )


def tone_questions() -> tuple[ToneQuestion, ...]:
    """Return every question of the world of tone."""
    return tuple(ToneQuestion(topic, ask) for topic in TOPICS for ask in range(len(ASKS)))


def mood_line(kind: bool, rng: random.Random) -> str:
    """Return a line that names the speaker's mood."""
    return f"mood : {rng.choice(KIND_MOODS if kind else RUDE_MOODS)} ."


def all_mood_lines() -> tuple[tuple[str, bool], ...]:
    """Return every mood line, with True for a kind mood."""
    kinds = ((KIND_MOODS, True), (RUDE_MOODS, False))
    return tuple((f"mood : {word} .", kind) for words, kind in kinds for word in words)
