"""Why `trust=None` and a joint fit are the defaults: `python tests/benchmarks/depth_and_trust.py [MODEL ...]`.

Measures on the validation questions of tiny-facts, under one gate and margin and under `gate="head"` at
`gamma=0.05`, what a trust region and fitting in the order of depth do to truth and KL, on the effective heads and on
all significant ones. Prints tables in Markdown, and how far the moments moved under the earlier layers' edits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import radiant_lens as rl
from radiant_lens import studies

POLICIES = (rl.RadiantPolicy(gamma=0.005, gate="vote"), rl.RadiantPolicy(gamma=0.05, gate="head"))


def variants(experiment: studies.Experiment, policy: rl.RadiantPolicy) -> Iterator[tuple[str, rl.Steering]]:
    model, detector = experiment.model, experiment.detector
    everywhere = policy.fit(experiment.train_cache, detector)
    sites = list(everywhere.select(rl.head_effects(model, experiment.validation, everywhere)).sites)
    effective = replace(policy, heads=sites)
    for trust in (None, 0.999, 0.99, 0.95):
        yield f"effective heads, trust {trust}", replace(effective, trust=trust).fit(experiment.train_cache, detector)
    yield "effective heads, by depth", effective.fit_sequential(model, experiment.train, detector).steering
    yield "significant heads", everywhere
    by_depth = policy.fit_sequential(model, experiment.train, detector)
    yield "significant heads, by depth", by_depth.steering
    effects = rl.head_effects(model, experiment.validation, by_depth.steering)
    yield "by depth, then effective", by_depth.steering.select(effects)
    moved = by_depth.moved.groupby("layer")[["flagged_before", "flagged", "score_shift", "distance"]].median()
    print(f"\nMedians over heads of what the earlier layers' edits do:\n\n{moved.round(2).to_string()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["tiny"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samples", type=int, default=2)
    options = parser.parse_args()
    columns = ("correct/bare", "correct/after_undesirable", "correct/after_desirable", "other", "kl", "edited_share")
    for name in options.models:
        model = rl.load_model(name)
        for seed in options.seeds:
            experiment = studies.prepare(model, rl.load_dataset("tiny-facts"), seed=seed)
            for policy in POLICIES:
                print(f"\n### {name}, split {seed}, gate {policy.gate!r}, gamma {policy.gamma:g}\n")
                print("| steering | " + " | ".join(columns) + " |\n|" + "-|" * (len(columns) + 1))
                for label, steering in variants(experiment, policy):
                    found = rl.evaluate(model, experiment.validation, steering, n_samples=options.samples).metrics
                    values = " | ".join(f"{found[c].value:.3f}" for c in columns)
                    print(f"| {label} | {values} |", flush=True)


if __name__ == "__main__":
    main()
