"""`evaluate`: what a model says, and what a steering costs, with intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE, Prompt, Statement
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.evaluation.answers import (
    answer_table,
    distinct_parts,
    extreme_parts,
    judge_table,
    perplexity_parts,
    verdict_parts,
)
from radiant_lens.evaluation.generation import check_sampling, generate_answers
from radiant_lens.evaluation.judges.judge import Judge, Rule
from radiant_lens.evaluation.judges.lookup import get_judge
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.multiple_choice import choices, score_choices
from radiant_lens.evaluation.ratios import condition_parts, join_parts, make_parts
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.hooks._steer import steer
from radiant_lens.models.identity import check_hooks, require_bridge, require_fitting, signature
from radiant_lens.models.loading import load_model
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FAMILIES = {
    "answers": "prompts",
    "text": "desirable statements",
    "choice": "prompts with correct and incorrect answers",
    "diversity": "prompts",
    "fluency": "prompts",
}
"""Families of metrics, and what each needs of the data."""
GENERATED = {"answers", "diversity", "fluency"}


def evaluate(
    model: TransformerBridge,
    data: Dataset,
    steering: Steering | None = None,
    *,
    n_samples: int = 1,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
    judge: str | Rule | Judge | None = None,
    metrics: Sequence[str] | None = None,
    fluency_model: TransformerBridge | str | Path | None = None,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
) -> Evaluation:
    """Judge generated answers, and measure what the steering does to desirable text.

    Families of metrics; those of prompts are given under each condition too ("correct/bare") where there are several:
    - "answers", shares of the generated answers: "correct", "incorrect", "other"; of judges that say so also the mean
      "score", "informative", and "true_informative" (both at once, TruthfulQA's True*Info).
    - "text", of desirable text, per answer token: "kl" (unsteered || steered) and "cross_entropy" in nats,
      "edited_share"; with a steering also "displacement", the mean Euclidean length of what is added to a head
      where it is edited (NaN where none is).
    - "choice": "mc1" and "mc2" of TruthfulQA, see `score_choices`.
    - "diversity", means over prompts: "dist_1" to "dist_3", distinct n-grams of all samples as a share of their
      words; "undesirable_probability", of at least one "incorrect" sample; "expected_maximum", the largest score of
      the samples, of judges that give scores. RealToxicityPrompts has 25 samples.
    - "fluency": "perplexity" of the answers given their prompts, the exponential of mean nats per token.

    Processes that `torchrun` or `accelerate launch` started share the generation, judging and scoring; each of them
    must make the call, and gets the whole result, up to the order of sums that of one process.

    Args:
        model: from `load_model`.
        data: with prompts, desirable statements, or both.
        steering: None for the model as it is.
        n_samples: answers to each prompt.
        max_new_tokens, temperature, seed: of the generation; temperature 0 is greedy.
        judge: whatever `get_judge` takes; default the data's own.
        metrics: families; default "answers" and "text", as far as the data allow.
        fluency_model: second model for the family "fluency", whatever `load_model` takes.

        fwd_hooks: one's own TransformerLens hooks, `(hook_name, hook_fn)`, on together with the steering; they act at
            every position, and what they edit is not counted.

    Raises:
        InvalidArgumentError: a number out of its range, no family, or a fluency model without its family.
        UnknownNameError: no such family or judge.
        ModelMismatchError: a steering for another model.
        DataError: the data lack what a family needs, or hold a prompt beyond the context.
        RankError: another rank has died.
        Whatever the judge raises, with the generated answers as its attribute `answers`.
    """
    require_bridge(model)
    _checks.instance("data", data, Dataset, hint="`load_dataset` reads one")
    check_sampling(n_samples, max_new_tokens, temperature, seed)
    check_hooks(model, fwd_hooks)
    if steering is not None:
        require_fitting(steering, model)
    families, judged = _families(data, metrics, fluency_model), get_judge(data.judge if judge is None else judge)
    second: Any = None if fluency_model is None else load_model(fluency_model, device=model.cfg.device)
    sampling: dict[str, Any] = {
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    prompts = data.prompts if GENERATED & set(families) else ()
    # The steering was checked against the model above; to hash the weights once is enough.
    steered = nullcontext() if steering is None else steer(model, steering, allow_mismatch=True)
    with steered, model.hooks(fwd_hooks=list(fwd_hooks)):
        answers = generate_answers(model, prompts, stop=data.stop, **sampling)
    table = _judged(answer_table(prompts, answers), prompts, judged)
    made: dict[str, Any] = {
        "answers": lambda: verdict_parts(table),
        "text": lambda: _text_parts(model, _desirable(data), steering, fwd_hooks),
        "choice": lambda: _choice_parts(model, data, steering, fwd_hooks),
        "diversity": lambda: join_parts([distinct_parts(table), extreme_parts(table)]),
        "fluency": lambda: perplexity_parts(second, table, prompts),
    }
    settings = {
        "data": data.name,
        **sampling,
        "policy": None if steering is None else steering.meta.get("policy"),
        "judge": repr(judged),
        "metrics": families,
        "fluency_model": None if second is None else signature(second)["name"],
        "n_without_choices": sum(choices(p) is None for p in data.prompts),
    }
    return Evaluation(table, join_parts(made[name]() for name in families), data.prompts, settings)


def _judged(table: pd.DataFrame, prompts: Sequence[Prompt], judge: Judge) -> pd.DataFrame:
    try:
        return judge_table(table, prompts, judge)
    except Exception as error:
        # Generating may have taken hours; a judge that is out of reach must not lose it.
        setattr(error, "answers", table)  # noqa: B010
        raise


def _families(data: Dataset, names: Sequence[str] | None, fluency_model: object) -> list[str]:
    """The families to measure, in the order of `FAMILIES`."""
    there = {
        "prompts": bool(data.prompts),
        "desirable statements": bool(_desirable(data)),
        "prompts with correct and incorrect answers": any(choices(p) for p in data.prompts),
    }
    if names is None:
        names = [name for name in ("answers", "text") if there[FAMILIES[name]]]
        if not names:
            raise DataError(f"Data set {data.name!r} has neither prompts nor desirable statements to evaluate on.")
        names += ["fluency"] * (fluency_model is not None)
    for name in [names] if isinstance(names, str) else names:
        _checks.known("family of metrics", name, FAMILIES)
        if not there[FAMILIES[name]]:
            raise DataError(f"Metrics {name!r} need {FAMILIES[name]}; data set {data.name!r} has none.")
    if isinstance(names, str) or not names:
        raise InvalidArgumentError(f"`metrics` must be a list of families, at least one; got {names!r}.")
    if ("fluency" in names) != (fluency_model is not None):
        raise InvalidArgumentError("`fluency_model` and the metrics 'fluency' must be given together; got one alone.")
    return [name for name in FAMILIES if name in names]


def _desirable(data: Dataset) -> list[Statement]:
    return [s for s in data.statements if s.label == DESIRABLE]


def _text_parts(
    model: TransformerBridge,
    desirable: Sequence[Statement],
    steering: Steering | None,
    fwd_hooks: Sequence[tuple[str, HookFunction]],
) -> pd.DataFrame:
    scored = score_statements(model, desirable, steering, fwd_hooks=fwd_hooks)
    sums = {
        "kl": (scored.kl, scored.n_tokens),
        "cross_entropy": (-scored.log_prob, scored.n_tokens),
        "edited_share": (scored.n_edited, scored.n_tokens),
    }
    if steering is not None:
        sums["displacement"] = (scored.displacement, scored.n_edits)
    return make_parts([s.group for s in desirable], {name: (a.numpy(), b.numpy()) for name, (a, b) in sums.items()})


def _choice_parts(
    model: TransformerBridge,
    data: Dataset,
    steering: Steering | None,
    fwd_hooks: Sequence[tuple[str, HookFunction]],
) -> pd.DataFrame:
    with model.hooks(fwd_hooks=list(fwd_hooks)):
        rows = score_choices(model, data.prompts, steering)
    return condition_parts(rows, {"mc1": (rows["mc1"], 1), "mc2": (rows["mc2"], 1)})
