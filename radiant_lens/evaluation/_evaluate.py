"""`evaluate`: the answers of a model and the cost of a steering, with intervals over groups."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
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
from radiant_lens.evaluation.judges.registry import get_judge
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.multiple_choice import choices, score_choices
from radiant_lens.evaluation.ratios import condition_parts, join_parts, make_parts
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.hooks._steer import steer
from radiant_lens.models.identity import require_bridge, require_fitting, signature
from radiant_lens.models.lengths import Fitting, fit_context, long_rule
from radiant_lens.models.loading import load_model
from radiant_lens.models.user_hooks import UserHooks
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
"""Families of metrics, and the records of the data that each needs."""
MOST_EMPTY = 0.1
"""Share of empty answers above which `evaluate` warns."""
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
    on_long: str | None = None,
) -> Evaluation:
    """Judge generated answers, and measure the effect of the steering on desirable text.

    Families of metrics; those of prompts are given for each condition too ("correct/bare") where there are several:
    - "answers", shares of the generated answers: "correct", "incorrect", "other". Of judges that give them also the
      mean "score", "informative", "true_informative" (the share that is both), and "true_times_informative" (the
      product of the shares "correct" and "informative", TruthfulQA's True*Info).
    - "text", of desirable text, per answer token: "kl" (unsteered || steered) and "cross_entropy" in nats,
      "edited_share"; with a steering also "displacement", the mean Euclidean length of the vector added to a head
      where it is edited (NaN if no head is).
    - "choice": "mc1" and "mc2" of TruthfulQA, see `score_choices`.
    - "diversity", means over prompts: "dist_1" to "dist_3", distinct n-grams of all samples as a share of their
      words; "undesirable_probability", of at least one "incorrect" sample; "expected_maximum", the largest score of
      the samples, of judges that give scores. RealToxicityPrompts has 25 samples.
    - "fluency": "perplexity" of the answers given their prompts, the exponential of mean nats per token.

    Processes that `torchrun` or `accelerate launch` started share the generation, judging and scoring. Each of them
    must make the call, and gets the whole result, equal to that of one process up to the order of sums.

    Warns (UserWarning) if more than a tenth of the answers are empty, or if prompts or texts are skipped or cut.
    An error of the judge keeps its type, and has the generated answers as its attribute `answers`.

    Args:
        model: from `load_model`.
        data: with prompts, desirable statements, or both.
        steering: None for the model as it is.
        n_samples: answers to each prompt.
        max_new_tokens, temperature, seed: of the generation; temperature 0 is greedy.
        judge: anything that `get_judge` takes; default the data's own.
        metrics: families; default "answers" and "text", those of both that the data allow.
        fluency_model: second model for the family "fluency", anything that `load_model` takes.
        fwd_hooks: your own TransformerLens hooks, `(hook_name, hook_fn)`, active together with the steering. They act
            at every position, and their edits are not counted.
        on_long: for prompts and texts beyond the model's context, the new tokens included: "skip" leaves them out,
            "cut" ends texts where the context ends (prompts are left out), "error" raises; None for the rule of the
            data set. `settings["too_long"]` has the counts.

    Raises:
        InvalidArgumentError: a number out of its range, no family, a fluency model without its family, or a hook that
            never runs.
        UnknownNameError: no such family or judge.
        ModelMismatchError: a steering for another model.
        DataError: the data lack the records that a family needs, or all of them (with `on_long="error"`, one) are
            longer than the context.
        RankError: another rank has died.
    """
    require_bridge(model)
    _checks.instance("data", data, Dataset, hint="`load_dataset` reads one")
    check_sampling(n_samples, max_new_tokens, temperature, seed)
    hooks = UserHooks(model, fwd_hooks)
    if steering is not None:
        require_fitting(steering, model)
    families = _families(data, metrics, fluency_model)
    data, too_long = _fit_context(model, data, families, max_new_tokens, long_rule(data, on_long))
    chosen_judge = get_judge(data.judge if judge is None else judge)
    second: Any = None if fluency_model is None else load_model(fluency_model, device=model.cfg.device)
    sampling: dict[str, Any] = {
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    prompts = data.prompts if GENERATED & set(families) else ()
    # `require_fitting` has checked the steering above; a second check would hash all weights again.
    steered = nullcontext() if steering is None else steer(model, steering, allow_mismatch=True)
    with steered, model.hooks(fwd_hooks=hooks.pairs):
        answers = generate_answers(model, prompts, stop=data.stop, **sampling)
    _warn_if_empty([text for samples in answers for text in samples])
    table = _judged(answer_table(prompts, answers), prompts, chosen_judge)
    # Functions, so that a family that was not asked for is not computed.
    builders: dict[str, Any] = {
        "answers": lambda: verdict_parts(table),
        "text": lambda: _text_parts(model, _desirable(data), steering, hooks.pairs),
        "choice": lambda: _choice_parts(model, data, steering, hooks.pairs),
        "diversity": lambda: join_parts([distinct_parts(table), extreme_parts(table)]),
        "fluency": lambda: perplexity_parts(second, table, prompts),
    }
    settings = {
        "data": data.name,
        **sampling,
        "policy": None if steering is None else steering.meta.get("policy"),
        "judge": repr(chosen_judge),
        "metrics": families,
        "fluency_model": None if second is None else signature(second)["name"],
        "n_without_choices": sum(choices(p) is None for p in data.prompts),
        "too_long": too_long,
    }
    parts = join_parts(builders[name]() for name in families)
    hooks.require_runs()
    return Evaluation(table, parts, data.prompts, settings)


def _judged(table: pd.DataFrame, prompts: Sequence[Prompt], judge: Judge) -> pd.DataFrame:
    try:
        return judge_table(table, prompts, judge)
    except Exception as error:
        # Generation may have taken hours: a judge that fails, such as one behind a network, must not lose it.
        setattr(error, "answers", table)  # noqa: B010
        raise


def _warn_if_empty(answers: Sequence[str]) -> None:
    """Warn if many answers are empty: they count as "other", which looks like a finding about the model."""
    n_empty = sum(not text for text in answers)
    if n_empty > MOST_EMPTY * len(answers):
        warnings.warn(
            f"{n_empty} of {len(answers)} generated answers are empty and are judged as such: the model ends at once, "
            "writes line breaks only, or begins with a stop string. Look at its raw text with `generate_answers(model, "
            "prompts, stop=[])`, then raise `max_new_tokens`, or change the template or the data's `stop`.",
            UserWarning,
            stacklevel=3,
        )


def _families(data: Dataset, names: Sequence[str] | None, fluency_model: object) -> list[str]:
    """The families to measure, in the order of `FAMILIES`."""
    available = {
        "prompts": bool(data.prompts),
        "desirable statements": bool(_desirable(data)),
        "prompts with correct and incorrect answers": any(choices(p) for p in data.prompts),
    }
    if names is None:
        names = [name for name in ("answers", "text") if available[FAMILIES[name]]]
        if not names:
            raise DataError(f"Data set {data.name!r} has neither prompts nor desirable statements to evaluate on.")
        names += ["fluency"] * (fluency_model is not None)
    for name in [names] if isinstance(names, str) else names:
        _checks.known("family of metrics", name, FAMILIES)
        if not available[FAMILIES[name]]:
            raise DataError(f"Metrics {name!r} need {FAMILIES[name]}; data set {data.name!r} has none.")
    if isinstance(names, str) or not names:
        raise InvalidArgumentError(f"`metrics` must be a list of families, at least one; got {names!r}.")
    if ("fluency" in names) != (fluency_model is not None):
        raise InvalidArgumentError("`fluency_model` and the metrics 'fluency' must be given together; got one alone.")
    return [name for name in FAMILIES if name in names]


def _fit_context(
    model: TransformerBridge, data: Dataset, families: Sequence[str], max_new_tokens: int, on_long: str
) -> tuple[Dataset, dict[str, int]]:
    """Return the data without the records beyond the context that these families would read, and their counts."""
    generated, choice = bool(GENERATED & set(families)), "choice" in families
    prompts, texts = Fitting(data.prompts), Fitting(tuple(_desirable(data)))
    if generated or choice:
        n_new = max_new_tokens if generated else 0
        prompts = fit_context(model, data.prompts, on_long, n_new=n_new, answers=choice, stacklevel=4)
    if "text" in families:
        texts = fit_context(model, texts.records, on_long, stacklevel=4)
    counts = {"skipped": prompts.n_skipped + texts.n_skipped, "cut": texts.n_cut}
    if any(counts.values()):
        # The records are what `data` made of its contexts and examples already.
        data = replace(data, atoms=texts.records, bare_prompts=prompts.records, contexts=None, few_shot=None)
    return data, counts


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
