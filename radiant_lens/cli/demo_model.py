"""`radiant-lens demo --model NAME`: least KL on a pretrained model, with answers before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from radiant_lens._files import check_target
from radiant_lens.analysis.behaviour import certify_behaviour
from radiant_lens.cli.output import table
from radiant_lens.datasets import Dataset, Prompt
from radiant_lens.datasets.packaged import PACKAGED
from radiant_lens.evaluation import Evaluation, evaluate, score_choices
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.hooks._steer import steer
from radiant_lens.models.lengths import within_context
from radiant_lens.policies import LeastKLPolicy
from radiant_lens.policies.policy import Steering
from radiant_lens.studies.benchmark.style import with_swapped_answers
from radiant_lens.viz.report import report

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# So many groups that a model of 135 million parameters is done within five minutes on two cores.
N_TRAIN, N_VALIDATION, N_TEST = 120, 30, 40
N_SHOWN, NEW_TOKENS = 3, 30
BUDGET = 0.2
UNSTEERED, STEERED = "none", "least KL, affine"


def run_model_demo(
    model: str, load: Callable[[], TransformerBridge], dataset: Dataset, out: Path, *, seed: int, quiet: bool
) -> tuple[dict[str, Any], list[Any]]:
    """Answer, fit, answer again, and measure.

    Args:
        model: name of the model that `load` loads.
        load: called after everything that can be refused without a model.
        dataset: prompts with correct and incorrect answers, and statements.
        out: folder for the steering and its report.
        seed: of the split.
        quiet: print nothing on the way.

    Returns:
        The results for `--json`, and tables and texts for people.
    """
    start = time.monotonic()
    say = Console(quiet=quiet).print
    check_target(out, "steering")
    bridge = load()
    data = within_context(bridge, dataset)
    parts = data.split((0.6, 0.15, 0.25), seed=seed)
    train, validation, test = (part.sample(n, seed=seed) for part, n in zip(parts, _sizes()))
    say(f"1. data: {data!r}; {len(train.groups)} groups to fit on, {len(validation.groups)} to set the strength")
    shown = test.prompts[:N_SHOWN]
    plain = _answers(bridge, shown, None, test.stop)
    title = f"2. {model} as it is, on held-out prompts; {NEW_TOKENS} tokens at most"
    say(table(title, _dialogues(shown, {"answer": plain})))
    policy = LeastKLPolicy(budget=BUDGET, family="affine")
    steering = policy.fit(bridge, train, validation=validation, progress=not quiet)
    steered = _answers(bridge, shown, steering, test.stop)
    examples = _dialogues(shown, {"before": plain, "after": steered})
    say(table(f"3. the same, with {len(steering.sites)} heads moved for {BUDGET:g} nats a token", examples))
    evaluations = {
        name: evaluate(bridge, test, each, temperature=0, max_new_tokens=NEW_TOKENS, metrics=_METRICS)
        for name, each in ((UNSTEERED, None), (STEERED, steering))
    }
    rows = _rows(bridge, test, evaluations, steering)
    certificate = certify_behaviour(bridge, steering, test)
    path = steering.save(out)
    title = f"{data.name}: what the steering of {model} does"
    page = report(steering, evaluations=evaluations, steered=STEERED, title=title).save(path / "report.html")
    result = {
        "comparison": rows,
        "examples": examples,
        "certificate": certificate.to_dataframe().to_dict("records"),
        "path": str(path),
        "report": str(page),
        "seconds": time.monotonic() - start,
    }
    sections = [table(f"4. {len(test.groups)} held-out groups of {data.name}", rows), _LEGEND, _gains(evaluations)]
    return result, [Group(*sections, str(certificate), *_next_steps(result, data.name, shown))]


_LEGEND = (
    "MC2: share of the correct answers' probability; style: the same with the answers of other prompts, where "
    "nothing can be true; KL in nats a token of desirable text."
)
_METRICS = ("answers", "text", "choice")


def _sizes() -> tuple[int, int, int]:
    return N_TRAIN, N_VALIDATION, N_TEST


def _answers(
    model: TransformerBridge, prompts: Sequence[Prompt], steering: Steering | None, stop: Sequence[str]
) -> list[str]:
    """A greedy answer to each prompt."""
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "stop": stop}
    if steering is None:
        return [samples[0] for samples in generate_answers(model, prompts, **options)]
    with steer(model, steering):
        return [samples[0] for samples in generate_answers(model, prompts, **options)]


def _dialogues(prompts: Sequence[Prompt], answers: dict[str, list[str]]) -> list[dict[str, str]]:
    """Questions with their answers and the reference."""
    return [
        {
            "prompt": prompt.question or prompt.text[-72:],
            **{name: texts[i] for name, texts in answers.items()},
            "reference": prompt.best_answer,
        }
        for i, prompt in enumerate(prompts)
    ]


def _gains(evaluations: dict[str, Evaluation]) -> str:
    """A sentence on what the steering gains, with intervals."""
    steered, plain = evaluations[STEERED], evaluations[UNSTEERED]
    mc2, correct = (steered.difference(plain, metric) for metric in ("mc2", "correct"))
    return (
        f"Gain of MC2 {mc2.value:+.3f} [{mc2.low:+.3f}, {mc2.high:+.3f}], of answers judged correct "
        f"{correct.value:+.3f} [{correct.low:+.3f}, {correct.high:+.3f}]; 95% intervals over groups. An interval "
        "around 0 shows no gain, and a gain that style shares is one of wording: read the answers."
    )


def _next_steps(result: dict[str, Any], name: str, shown: Sequence[Prompt]) -> list[str]:
    """Sentences on the files that were written, and commands that go on from them."""
    steering = f"--steering {result['path']}"
    # So that a prompt is read as those of the demo were.
    chat = " --chat" if all(prompt.rendered for prompt in shown) else ""
    data = f" --data {name}" if name in PACKAGED else ""
    return [
        f"Report written to {result['report']}: open it in a browser.",
        f"Steering written to {result['path']}. Try a prompt of your own, or move strength and heads by hand:\n"
        f"  radiant-lens generate {steering} --compare --temperature 0{chat} 'Can bats see?'\n"
        f"  radiant-lens explore {steering}{data}",
        f"{result['seconds']:.0f} s in all.",
    ]


def _rows(
    model: TransformerBridge, test: Dataset, evaluations: dict[str, Evaluation], steering: Steering
) -> list[dict[str, Any]]:
    """A row for each steering: multiple choice, its control, judged answers, and the cost."""
    swapped = with_swapped_answers(test).prompts
    rows = []
    for name, each in ((UNSTEERED, None), (STEERED, steering)):
        metrics = evaluations[name].metrics
        rows.append(
            {
                "steering": name,
                "MC1": metrics["mc1"].value,
                "MC2": metrics["mc2"].value,
                "style": float(score_choices(model, swapped, each)["mc2"].mean()),
                "judged correct": metrics["correct"].value,
                "KL": metrics["kl"].value,
                "cross entropy": metrics["cross_entropy"].value,
            }
        )
    return rows
