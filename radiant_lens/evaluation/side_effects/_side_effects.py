"""`side_effects`: what a steering does to text, answers and tasks that it should leave alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.templates import Template
from radiant_lens.distributed import progress_bar
from radiant_lens.evaluation.generation import check_sampling
from radiant_lens.evaluation.side_effects.inputs import (
    choices_of,
    choose_template,
    read_benchmark,
    read_requests,
    read_texts,
)
from radiant_lens.evaluation.side_effects.measure import answer_both, compare_answers, compare_choices, compare_text
from radiant_lens.evaluation.side_effects.result import SideEffects
from radiant_lens.models.identity import require_bridge, require_fitting
from radiant_lens.models.tokens import encode
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def side_effects(
    model: TransformerBridge,
    steering: Steering,
    data: Dataset | Sequence[str] | None = None,
    *,
    requests: Dataset | Sequence[str] | None = None,
    benchmark: Dataset | str | Path | None = None,
    template: str | Template | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> SideEffects:
    """Measure the steered model against the plain one on text, requests and tasks that the steering is not about.

    Every metric is measured without and with the steering on the same rows, and the difference (steered less plain)
    has a 95% interval over groups. The metrics:

    - of neutral text: "cross_entropy" in nats a token, "perplexity" (its exponential), "kl" from the plain to the
      steered model in nats a token, "edited_share" of the tokens;
    - of the answers to harmless requests, means over requests: "repetition" (share of the runs of 3 words that the
      answer has had before), "dist_1" and "dist_2" (distinct words and pairs of words, as a share of the words),
      "empty_answers" (share), "words" (length);
    - of a benchmark: "accuracy", the share of questions whose right choice has a larger log-probability than every
      other one. For the tasks of lm-evaluation-harness use `radiant_lens.harness`, which runs them on a steered model.

    Each interval holds for its metric alone: of twenty metrics that a steering leaves alone, about one reads "changed".
    Both models read the same batches. How rows are batched changes values by rounding alone; in bfloat16 rounding can
    turn a greedy answer (of SmolLM2, 3 of 24), so load the model in float32 to compare answers one by one.

    Args:
        model: from `load_model`.
        steering: made for this model.
        data: neutral texts, or a data set whose desirable statements are scored, each from its `answer_start` on;
            default 60 everyday sentences of the package.
        requests: harmless requests, or a data set with prompts; default 30 everyday requests of the package. For a
            model that has no tokens for English, such as "tiny", the defaults are texts of its embedded world.
        benchmark: a data set whose prompts have correct and incorrect answers, or a file of questions that
            `load_dataset` reads, such as multiple choice with columns question, choices, answer; None to leave
            "accuracy" out.
        template: template around requests that are texts and around the questions of a file; default the chat template
            of the model's tokenizer, and "Q: {question} A: {answer}" where it has none.
        max_new_tokens, temperature, seed: of the answers; temperature 0 is greedy.
        max_tokens: tokens in one forward pass, padding included; None for a number that is fast on the device.
        progress: show a progress bar.

    Raises:
        ModelMismatchError: a steering for another model.
        InvalidArgumentError: a number out of its range, or texts that are not a list of texts.
        DataError: no texts, no requests or no questions; a text longer than the context; a file that cannot be used.

    Example:
        >>> rl.side_effects(model, steering).to_dataframe()  # doctest: +SKIP
    """
    require_bridge(model)
    require_fitting(steering, model)
    check_sampling(1, max_new_tokens, temperature, seed)
    if max_tokens is not None:
        _checks.whole("max_tokens", max_tokens, 1)
    layout = choose_template(model, template)
    texts = read_texts(model, data)
    prompts, stop = read_requests(model, requests, layout)
    questions = read_benchmark(benchmark, layout)
    # Tokenized here, so that a text which is too long is refused before any forward pass.
    scored = [question.answered(choice) for question in questions for choice in choices_of(question)]
    for records, n_new in ((texts, 0), (prompts, max_new_tokens), (scored, 0)):
        encode(model, records, n_new=n_new)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    batches = {} if max_tokens is None else {"max_tokens": max_tokens}
    steps: dict[str, Callable[[], Any]] = {
        "neutral text": lambda: compare_text(model, steering, texts, max_tokens),
        "answers": lambda: answer_both(model, steering, prompts, stop=stop, **sampling, **batches),
    }
    if questions:
        steps["benchmark"] = lambda: compare_choices(model, steering, questions, max_tokens)
    results = _run(steps, progress=progress)
    plain, steered = results["answers"]
    groups = [p.group for p in prompts]
    answers = pd.DataFrame(
        {"request": [p.question or p.text for p in prompts], "group": groups, "plain": plain, "steered": steered}
    )
    settings = {
        "n_texts": len(texts),
        "n_requests": len(prompts),
        "n_questions": len(questions),
        **sampling,
        "template": repr(template),
        "policy": steering.meta.get("policy"),
    }
    metrics = {**results["neutral text"], **compare_answers(groups, plain, steered), **results.get("benchmark", {})}
    return SideEffects(metrics, answers, settings)


def _run(steps: Mapping[str, Callable[[], Any]], *, progress: bool) -> dict[str, Any]:
    """Run functions one after the other and return their results by name."""
    results: dict[str, Any] = {}
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("side effects", total=len(steps))
        for name, step in steps.items():
            bar.update(task, description=f"side effects: {name}")
            results[name] = step()
            bar.advance(task)
    return results
