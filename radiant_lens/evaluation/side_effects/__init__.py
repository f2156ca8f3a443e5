"""Side effects of a steering on text and tasks that it should leave alone."""

from radiant_lens.evaluation.side_effects._side_effects import side_effects as side_effects
from radiant_lens.evaluation.side_effects.result import SideEffect as SideEffect
from radiant_lens.evaluation.side_effects.result import SideEffects as SideEffects
