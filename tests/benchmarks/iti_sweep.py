"""RADIANT against ITI's best curve, with controls: `python tests/benchmarks/iti_sweep.py [MODEL ...]`.

Sweeps ITI's number of heads (of least risk, and the most effective ones) and strength, and interpolates the KL that
ITI needs for RADIANT's share of true answers after two misconceptions. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.studies.results import Row

HEADS, ALPHAS = (4, 8, 16, 24), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
EFFECTIVE = (2, 4)
MISLED = "correct/after_undesirable"


def iti_points(experiment: studies.Experiment, ranked: list[tuple[int, int]], n_samples: int, seed: int) -> list[Row]:
    # ITI's own choice of heads, and RADIANT's, so that the map is compared on equal heads too.
    choices = {f"{n} heads of least risk": {"n_heads": n} for n in HEADS}
    choices |= {f"{n} most effective heads": {"heads": ranked[:n]} for n in EFFECTIVE}
    steerings = {
        f"ITI, {name}, alpha {alpha:g}": rl.ITIPolicy(alpha=alpha, **choice).fit(
            experiment.train_cache, experiment.detector
        )
        for name, choice in choices.items()
        for alpha in ALPHAS
    }
    # No unsteered row here: rows of the sweep join those of the main comparison, which has one.
    return list(studies.compare(experiment, steerings, n_samples=n_samples, seed=seed).rows)


def report(model_name: str, seed: int, n_samples: int, show_all: bool) -> None:
    start = time.monotonic()
    experiment = studies.prepare(rl.load_model(model_name), rl.load_dataset("tiny-facts"), seed=seed)
    recipe = studies.effective(experiment)
    ranked = [(int(row.layer), int(row.head)) for row in recipe.effects.to_dataframe().itertuples()]
    mine = {studies.UNSTEERED: None, "RADIANT": recipe.steering, **studies.controls(experiment, recipe.steering)}
    mine["shuffled labels, not forced"] = studies.shuffled_labels(experiment, recipe.steering, force=False)
    comparison = studies.compare(experiment, mine, n_samples=n_samples, seed=seed)
    # "Never reaches" needs a sweep that ends: the strongest ITI here must lower truth or break answers.
    points = iti_points(experiment, ranked, n_samples, seed)
    steered = comparison["RADIANT"].pooled.metrics
    share, kl = steered[MISLED].value, steered["kl"].value
    costs = [(row.pooled.metrics[MISLED].value, row.pooled.metrics["kl"].value) for row in points]
    needed = studies.least_cost(costs, share)
    print(f"\n### {model_name}, split {seed}: heads {', '.join(map(str, recipe.steering.sites))}\n")
    rows = points if show_all else _near(points, share)
    print(studies.StudyResult("sweep", (*comparison.rows, *rows)).to_markdown(), end="\n\n")
    gains = comparison.pooled().set_index(["row", "metric"])
    for name in list(mine)[1:]:
        print(f"- {name}: " + ", ".join(_gain(gains, name, c) for c in ("bare", "after_undesirable")))
    reached = (
        "no ITI of this sweep reaches it"
        if needed is None
        else f"ITI needs {needed:.3f}, RADIANT {kl / needed:.2f} of it"
    )
    print(f"- KL at {100 * share:.0f}% true after misconceptions: RADIANT {kl:.3f}, {reached}")
    print(f"- certificate: {recipe.steering.certify(experiment.test_cache())}")
    print(f"- {time.monotonic() - start:.0f} s", flush=True)


def _gain(gains: pd.DataFrame, name: str, condition: str) -> str:
    line = gains.loc[(name, f"correct/{condition}")]
    low, high = 100 * line["difference_low"], 100 * line["difference_high"]
    return f"{condition} {100 * line['difference']:+.0f} [{low:+.0f}, {high:+.0f}]"


def _near(points: list[Row], share: float) -> list[Row]:
    """The two cheapest points of the sweep at or above the share, and the best one below."""
    shares = {row.name: row.pooled.metrics[MISLED].value for row in points}
    above = sorted((p for p in points if shares[p.name] >= share), key=lambda p: p.pooled.metrics["kl"].value)
    below = sorted((p for p in points if shares[p.name] < share), key=lambda p: -shares[p.name])
    return [*below[:1], *above[:2]]


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
