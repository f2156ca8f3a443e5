"""Hooks: `steer` switches a steering on in a model, `compose` chains hook functions, `Trace` records the edits."""

from radiant_lens.hooks._steer import compose as compose
from radiant_lens.hooks._steer import steer as steer
from radiant_lens.hooks.trace import Trace as Trace
from radiant_lens.hooks.trace import TraceRecord as TraceRecord
