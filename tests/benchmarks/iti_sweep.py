"""RADIANT against ITI's best curve, with controls: `python tests/benchmarks/iti_sweep.py [MODEL ...]`.

Sweeps ITI's number of heads (of least risk, and the most effective ones) and strength, and interpolates the KL that
ITI needs for RADIANT's share of true answers after two misconceptions. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import time

import radiant_lens as rl
from radiant_lens import studies

HEADS, ALPHAS = (4, 8, 16, 24), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
EFFECTIVE = (2, 4)
MISLED = "correct/after_undesirable"


def iti_points(
    experiment: studies.Experiment, ranked: list[tuple[int, int]], n_samples: int, seed: int
) -> dict[str, rl.Evaluation]:
    choices = {f"{n} heads of least risk": {"n_heads": n} for n in HEADS}
    choices |= {f"{n} most effective heads": {"heads": ranked[:n]} for n in EFFECTIVE}
    steerings = {
        f"ITI, {name}, alpha {alpha:g}": rl.ITIPolicy(alpha=alpha, **choice).fit(
            experiment.train_cache, experiment.detector
        )
        for name, choice in choices.items()
        for alpha in ALPHAS
    }
    return studies.compare(experiment, steerings, n_samples=n_samples, seed=seed).evaluations


def report(model_name: str, seed: int, n_samples: int, show_all: bool) -> None:
    start = time.monotonic()
    experiment = studies.prepare(rl.load_model(model_name), rl.load_dataset("tiny-facts"), seed=seed)
    recipe = studies.effective(experiment)
    ranked = [(int(row.layer), int(row.head)) for row in recipe.effects.to_dataframe().itertuples()]
    mine = {studies.UNSTEERED: None, "RADIANT": recipe.steering, **studies.controls(experiment, recipe.steering)}
    mine["shuffled labels, forced"] = studies.shuffled_labels(experiment, recipe.steering, force=True)
    comparison = studies.compare(experiment, mine, n_samples=n_samples, seed=seed)
    points = iti_points(experiment, ranked, n_samples, seed)
    steered = comparison.evaluations["RADIANT"].metrics
    share, kl = steered[MISLED].value, steered["kl"].value
    needed = studies.least_cost([(e.metrics[MISLED].value, e.metrics["kl"].value) for e in points.values()], share)
    print(f"\n### {model_name}, split {seed}: heads {', '.join(map(str, recipe.steering.sites))}\n")
    shown = points if show_all else _near(points, share)
    print(studies.Comparison({**comparison.evaluations, **shown}).to_markdown())
    for control in list(mine)[1:]:
        print(f"- {control}: " + ", ".join(_gain(comparison, control, c) for c in ("bare", "after_undesirable")))
    reached = "ITI never reaches it" if needed is None else f"ITI needs {needed:.3f}, RADIANT {kl / needed:.2f} of it"
    print(f"- KL at {100 * share:.0f}% true after misconceptions: RADIANT {kl:.3f}, {reached}")
    print(f"- certificate: {recipe.steering.certify(experiment.test_cache())}")
    print(f"- {time.monotonic() - start:.0f} s", flush=True)


def _gain(comparison: studies.Comparison, name: str, condition: str) -> str:
    gain = comparison.evaluations[name].gain(comparison.evaluations[comparison.baseline], condition=condition)
    return f"{condition} {100 * gain.value:+.0f} [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"


def _near(points: dict[str, rl.Evaluation], share: float) -> dict[str, rl.Evaluation]:
    """The two cheapest points of the sweep at or above the share, and the best one below."""
    above = sorted((e.metrics["kl"].value, n) for n, e in points.items() if e.metrics[MISLED].value >= share)[:2]
    below = sorted((-e.metrics[MISLED].value, n) for n, e in points.items() if e.metrics[MISLED].value < share)[:1]
    return {name: points[name] for _, name in [*below, *above]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["tiny"])
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--all", action="store_true", help="print every point of the sweep")
    options = parser.parse_args()
    for name in options.models:
        for seed in options.seeds:
            report(name, seed, options.samples, options.all)


if __name__ == "__main__":
    main()
