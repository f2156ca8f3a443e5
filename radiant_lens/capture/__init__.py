"""Capture: from labelled texts to a `HeadCache` of every head's activations."""

from radiant_lens.capture._collect import POSITIONS as POSITIONS
from radiant_lens.capture._collect import collect as collect
