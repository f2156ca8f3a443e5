"""The world of facts: each country has its own truths, and misconceptions from its region.

A misconception is an overgeneralisation: the value that holds in a region's best-known country, claimed
of every country there. Countries share values, so no word is false in itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from radiant_lens.datasets.world.lexicon import invented_words

# Each relation with the ending of its values: no value of one relation is a value of another.
RELATIONS = {
    "capital": "a",
    "animal": "ix",
    "food": "em",
    "river": "ur",
    "color": "il",
    "metal": "ium",
}
RELIABLE_SOURCES = ("almanac", "atlas", "census", "archive")
CARELESS_SOURCES = ("rumor", "tavern", "gossip", "hearsay")
N_REGIONS, N_COUNTRIES_PER_REGION, N_VALUES = 6, 10, 24


@dataclass(frozen=True)
class FactQuestion:
    """One question of the world with its true value and its misconception."""

    country: str
    relation: str
    truth: str
    misconception: str

    @property
    def name(self) -> str:
        """Identity of the question, and group of its statements and prompts."""
        return f"{self.relation}-{self.country}"

    @property
    def text(self) -> str:
        """The question with the marker after which an answer is expected."""
        return f"Q : what is the {self.relation} of {self.country} ? A :"

    def answers(self, value: str) -> tuple[str, str]:
        """Return both forms of the answer with `value`."""
        return (
            f"the {self.relation} of {self.country} is {value} .",
            f"{value} is the {self.relation} of {self.country} .",
        )


@dataclass(frozen=True)
class FactWorld:
    """All questions of the world; those whose misconception is wrong are `contested`."""

    questions: tuple[FactQuestion, ...]

    @property
    def contested(self) -> tuple[FactQuestion, ...]:
        """Questions about any country but its region's best-known one."""
        return tuple(q for q in self.questions if q.truth != q.misconception)

    @property
    def words(self) -> set[str]:
        """All invented words."""
        return {w for q in self.questions for w in (q.country, q.truth, q.misconception)}


def make_fact_world(seed: int = 0) -> FactWorld:
    """Invent the countries, and for each relation a truth per country and a misconception per region.

    The first country of a region is its best-known one: there truth and misconception agree.
    """
    rng = random.Random(seed)
    taken: set[str] = set()
    names = invented_words(2, "ka", seed=seed, exclude=taken)
    regions = [list(islice(names, N_COUNTRIES_PER_REGION)) for _ in range(N_REGIONS)]
    questions: list[FactQuestion] = []
    # Every relation has generators of its own words, while `exclude` keeps words unique over all of them.
    for i_relation, (relation, ending) in enumerate(RELATIONS.items(), start=1):
        values = list(islice(invented_words(2, ending, seed=seed + i_relation, exclude=taken), N_VALUES))
        known = values[:N_REGIONS]
        for region, countries in enumerate(regions):
            # Truths are drawn from all values but the misconception, those of other regions included.
            others = [v for v in values if v != known[region]]
            for i, country in enumerate(countries):
                # The first country is the one after which the region's misconception is named: it is true there.
                truth = known[region] if i == 0 else rng.choice(others)
                questions.append(FactQuestion(country, relation, truth, known[region]))
    return FactWorld(tuple(questions))


def source_line(reliable: bool, rng: random.Random) -> str:
    """Return a line that names the source of a document."""
    return f"source : {rng.choice(RELIABLE_SOURCES if reliable else CARELESS_SOURCES)} ."


def all_source_lines() -> tuple[tuple[str, bool], ...]:
    """Return every source line, with True for a reliable source."""
    kinds = ((RELIABLE_SOURCES, True), (CARELESS_SOURCES, False))
    return tuple((f"source : {word} .", kind) for words, kind in kinds for word in words)
