"""`radiant-lens demo`: the whole method on the embedded model, with its baseline and its controls."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from radiant_lens import studies
from radiant_lens._files import check_target
from radiant_lens.analysis.traced import trace_answer
from radiant_lens.analysis.writes import edit_writes
from radiant_lens.cli.output import table
from radiant_lens.datasets import Dataset, Prompt
from radiant_lens.datasets.packaged import PACKAGED
from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.side_effects import side_effects
from radiant_lens.policies import ITIPolicy, RadiantPolicy, Steering
from radiant_lens.studies.cells import RANDOM
from radiant_lens.studies.results import table_rows
from radiant_lens.viz.report import report

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RADIANT = "RADIANT"


def run_demo(
    model: str,
    load: Callable[[], TransformerBridge],
    dataset: Dataset,
    out: Path,
    *,
    gamma: float,
    n_samples: int,
    seed: int,
    quiet: bool,
) -> tuple[dict[str, Any], list[Any]]:
    """Run all steps.

    Args:
        model: name of the model that `load` loads.
        load: called after everything that can be refused without a model.
        dataset: the data.
        out, gamma, n_samples, seed: as the command's options.
        quiet: print nothing on the way.

    Returns:
        The results for `--json`, and tables and texts for people.
    """
    start = time.monotonic()
    say = Console(quiet=quiet).print
    policy = RadiantPolicy(gamma=gamma)
    policy.check()
    check_target(out, "steering")
    bridge = load()
    say(f"1. collect: {dataset!r}")
    experiment = studies.prepare(bridge, dataset, seed=seed, progress=not quiet)
    significant = experiment.detector.head_significant_.flatten().tolist()
    say(
        f"2. detect: {sum(significant)} of {len(significant)} heads tell undesirable text from desirable, beyond chance"
    )
    recipe = studies.effective(experiment, policy)
    effects = recipe.effects.exact(len(recipe.steering.sites))
    say(f"3. fit: edits of the {len(recipe.steering.sites)} heads that carry 90% of the effect on answers")
    held_out = experiment.test_cache()
    certificate = recipe.steering.certify(held_out)
    say(f"4. certify: {certificate}")
    steerings = _steerings(experiment, recipe.steering, policy, seed)
    say(f"5. compare {len(steerings)} steerings, of which three are controls; the longest step")
    comparison = studies.compare(experiment, steerings, n_samples=n_samples, seed=seed)
    path = recipe.steering.save(out)
    heads = _heads(experiment, effects, [str(site) for site in recipe.steering.sites])
    plain, steered = (comparison.evaluations[name] for name in (studies.UNSTEERED, RADIANT))
    examples = _examples(experiment.test.prompts, plain, steered)
    turned = _turned(comparison.evaluations)
    page = report(
        recipe.steering,
        detector=experiment.detector,
        cache=held_out,
        effects=effects,
        certificate=certificate,
        evaluations=comparison.evaluations,
        steered=RADIANT,
        writes=edit_writes(bridge, experiment.test, recipe.steering),
        side_effects=side_effects(bridge, recipe.steering, seed=seed),
        answer=trace_answer(bridge, turned, recipe.steering, stop=dataset.stop),
        title=f"{dataset.name}: what the steering of {model} does",
    ).save(path / "report.html")
    seconds = time.monotonic() - start
    result = {
        "comparison": comparison.to_dataframe().to_dict("records"),
        "heads": heads,
        "certificate": certificate.to_dataframe().to_dict("records"),
        "examples": examples,
        "path": str(path),
        "report": str(page),
        "seconds": seconds,
    }
    title = f"Held-out questions of {dataset.name}, {n_samples} answers each, 95% intervals over questions"
    shown = [
        table("Before and after, on held-out questions", examples),
        table(title, table_rows(comparison.to_markdown())),
        _against_control(comparison.evaluations),
        table("Edited heads: detection risk, estimated and measured effect on log-odds (nats)", heads),
        f"Report with all figures written to {page}: open it in a browser.",
        f"Steering written to {path}. Try a question, or move strength and heads by hand:\n"
        f"  radiant-lens generate --steering {path} --compare --temperature 0 --stop . {shlex.quote(turned)}\n"
        f"  radiant-lens explore --steering {path}" + (f" --data {dataset.name}" if dataset.name in PACKAGED else ""),
        f"{seconds:.0f} s in all.",
    ]
    return result, [Group(*shown)]


def _steerings(
    experiment: studies.Experiment, steering: Steering, policy: RadiantPolicy, seed: int
) -> dict[str, Steering | list[Steering] | None]:
    """Return the steerings to compare: none, the baseline, RADIANT, its controls."""
    policy_iti = ITIPolicy()
    iti = policy_iti.fit(experiment.train_cache, experiment.detector)
    return {
        studies.UNSTEERED: None,
        f"ITI ({len(iti.sites)} heads, alpha {policy_iti.alpha:g})": iti,
        RADIANT: steering,
        **studies.controls(experiment, steering, policy, seed=seed),
    }


def _against_control(evaluations: Mapping[str, Evaluation]) -> str:
    """A sentence on what RADIANT gains and what a random direction of the same length gains."""
    unsteered, *steered = (evaluations[name].metrics for name in (studies.UNSTEERED, RADIANT, RANDOM))
    gains = []
    for metric in (name for name in unsteered if name.split("/")[0] == "correct"):
        radiant, control = (100 * (metrics[metric].value - unsteered[metric].value) for metrics in steered)
        words = metric.partition("/")[2].replace("_", " ") or metric
        gains.append(f"{words}: {radiant:+.0f} and {control:+.0f} points")
    return (
        "Gains over no steering, of RADIANT and of the control, a random direction of the same length: "
        f"{'; '.join(gains)}. What the control gains too is not due to the direction."
    )


def _heads(experiment: studies.Experiment, effects: Any, selected: list[str]) -> list[dict[str, Any]]:
    rows = []
    for row in effects.to_dataframe().itertuples():
        name = f"L{row.layer}H{row.head}"
        if name in selected:
            risk = float(experiment.detector.head_risk_[row.layer, row.head])
            rows.append({"head": name, "risk": risk, "estimated": row.estimated, "measured": row.measured})
    return rows


def _turned(evaluations: Mapping[str, Evaluation]) -> str:
    """Choose a prompt to look at closely: the first whose answer the steering corrected, else the first."""
    before, after = evaluations[studies.UNSTEERED].table, evaluations[RADIANT].table
    # `argmax` of booleans is the index of the first True, or 0 if there is none.
    turned = (before["verdict"] == "incorrect") & (after["verdict"] == "correct")
    return str(before["prompt"][int(turned.to_numpy().argmax())])


def _examples(prompts: Sequence[Prompt], before: Evaluation, after: Evaluation, n: int = 3) -> list[dict[str, str]]:
    """Return the first prompts whose answer was undesirable without steering, with the answer after it.

    They are chosen by the answer before alone: a choice by the answer after would show only successes.
    """
    first = [e.table[e.table["sample"] == 0].itertuples() for e in (before, after)]
    rows = [
        {"prompt": p.text[-72:], "before": str(b.answer), "after": str(a.answer), "judged": str(a.verdict)}
        for p, b, a in zip(prompts, *first)
        if b.verdict == "incorrect"
    ]
    return rows[:n]
