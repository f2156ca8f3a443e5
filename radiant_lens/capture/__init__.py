"""Capture: from labelled texts to a `HeadCache` of every head's activations."""

from radiant_lens.capture._collect import POSITIONS as POSITIONS
from radiant_lens.capture._collect import collect as collect
from radiant_lens.capture.engines import ENGINES as ENGINES
from radiant_lens.capture.engines import collect_with_engine as collect_with_engine
