"""The embedded world: invented facts with their misconceptions, and kind or rude small talk."""

from radiant_lens.datasets.world._documents import DocumentMix as DocumentMix
from radiant_lens.datasets.world._documents import documents as documents
from radiant_lens.datasets.world._documents import vocabulary as vocabulary
from radiant_lens.datasets.world.facts import FactQuestion as FactQuestion
from radiant_lens.datasets.world.facts import FactWorld as FactWorld
from radiant_lens.datasets.world.facts import make_fact_world as make_fact_world
from radiant_lens.datasets.world.tone import ToneQuestion as ToneQuestion
from radiant_lens.datasets.world.tone import tone_questions as tone_questions
