"""Analysis of edits: effects of heads, tokens promoted, one answer traced, activations moved."""

from radiant_lens.analysis.effects import HeadEffects as HeadEffects
from radiant_lens.analysis.effects import head_effects as head_effects
from radiant_lens.analysis.moves import HeadMoves as HeadMoves
from radiant_lens.analysis.moves import head_moves as head_moves
from radiant_lens.analysis.traced import AttentionPatterns as AttentionPatterns
from radiant_lens.analysis.traced import TracedAnswer as TracedAnswer
from radiant_lens.analysis.traced import trace_answer as trace_answer
from radiant_lens.analysis.writes import EditWrites as EditWrites
from radiant_lens.analysis.writes import edit_writes as edit_writes
