"""Evaluation: generated answers, judges, and the cost of a steering."""

from radiant_lens.evaluation._evaluate import evaluate as evaluate
from radiant_lens.evaluation.generation import generate_answers as generate_answers
from radiant_lens.evaluation.judges.judge import Judge as Judge
from radiant_lens.evaluation.judges.judge import Verdict as Verdict
from radiant_lens.evaluation.judges.models import ClassifierJudge as ClassifierJudge
from radiant_lens.evaluation.judges.models import TruthfulQAJudge as TruthfulQAJudge
from radiant_lens.evaluation.judges.registry import get_judge as get_judge
from radiant_lens.evaluation.likelihood import ScoredText as ScoredText
from radiant_lens.evaluation.likelihood import score_statements as score_statements
from radiant_lens.evaluation.multiple_choice import score_choices as score_choices
from radiant_lens.evaluation.result import Evaluation as Evaluation
from radiant_lens.evaluation.result import pool as pool
