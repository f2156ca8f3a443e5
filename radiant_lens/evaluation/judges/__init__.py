"""Judges of generated answers: "correct" (desirable), "incorrect" (undesirable) or "other"."""

from radiant_lens.evaluation.judges.judge import Judge as Judge
from radiant_lens.evaluation.judges.judge import Rule as Rule
from radiant_lens.evaluation.judges.judge import Verdict as Verdict
from radiant_lens.evaluation.judges.registry import get_judge as get_judge
