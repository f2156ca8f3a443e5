"""`get_judge` makes a judge from a name, a rule or an object; register a new judge in `RULES` or `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation.judges.judge import EachAnswer, Judge, Rule
from radiant_lens.evaluation.judges.models import ClassifierJudge, TruthfulQAJudge
from radiant_lens.evaluation.judges.profanity import ProfanityJudge
from radiant_lens.evaluation.judges.rules import contains, exact, lexicon, overlap

RULES: dict[str, Rule] = {"exact": exact, "contains": contains, "lexicon": lexicon, "overlap": overlap}
MODELS: dict[str, Callable[[str | None], Judge]] = {
    "toxicity": lambda device: ClassifierJudge(
        "s-nlp/roberta_toxicity_classifier", undesirable_labels=["toxic"], device=device
    ),
    "profanity": lambda device: ProfanityJudge(),
    "truthfulqa": lambda device: TruthfulQAJudge(device=device),
}


def get_judge(judge: str | Rule | Judge, *, device: str | None = None) -> Judge:
    """Return a judge from its name, from a rule for single answers, or from a judge itself.

    Args:
        judge: "exact", "contains", "lexicon" or "overlap"; the models "toxicity" (a Jigsaw classifier from the Hub),
            "profanity" (a linear classifier that needs no network, from the package alt-profanity-check) or
            "truthfulqa" (its open judges, 7B each); something with a method `judge(prompts, answers)`,
            such as `ClassifierJudge` or `TruthfulQAJudge`; or a callable `(prompt, answer)` that returns
            "correct", "incorrect", "other" or a `Verdict`.
        device: for "toxicity" and "truthfulqa"; default CUDA if there is a GPU, else the CPU.

    Raises:
        UnknownNameError: there is no judge of that name.
        ModelLoadError: the named model cannot be loaded.
        MissingPackageError: the package of "profanity" is not installed.
        InvalidArgumentError: the argument is neither a name, a judge nor a callable.

    Example:
        >>> from radiant_lens.datasets import Prompt
        >>> who = Prompt("Q: who? A:", ("the cat",), ("the dog",), "g")
        >>> get_judge("exact").judge([who], ["The cat."])
        [Verdict(verdict='correct', score=None, informative=None)]
    """
    if isinstance(judge, str):
        _checks.known("judge", judge, [*RULES, *MODELS])
        return EachAnswer(RULES[judge]) if judge in RULES else MODELS[judge](device)
    # A class has the method too; passed by mistake for an instance, it would fail only after generation.
    if isinstance(judge, Judge) and not isinstance(judge, type):
        return judge
    if callable(judge):
        return EachAnswer(judge)
    raise InvalidArgumentError(f"`judge` must be a name, a judge or a callable; got {type(judge).__name__}.")
