"""Growth of time and memory, with a forecast for large runs: `python tests/benchmarks/growth.py [--out growth.html]`.

One quantity at a time is doubled (examples, heads, d_head), everything else stays; what is fitted is the slope of the
logarithm of time, and of peak memory, over that of the quantity. From the largest run of each follows what a million
statements on a model of 8 billion parameters (32 layers of 32 heads of 128) would take: an extrapolation, with its
assumptions printed beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch

sys.path.insert(0, str(Path(__file__).parent))
from capture import MAX_TOKENS, Peak, anonymous_mib, batches, random_model, statements
from detectors import synthetic
from plotly.subplots import make_subplots

import radiant_lens as rl
from radiant_lens.models.tokens import encode

N, HEADS, D = 2_000, 16, 32
SWEEPS = {
    "examples": [(n, HEADS, D) for n in (1_000, 2_000, 4_000, 8_000)],
    "heads": [(N, heads, D) for heads in (8, 16, 32, 64)],
    "d_head": [(N, HEADS, d) for d in (16, 32, 64, 128)],
}
# What is predicted for.
STATEMENTS, TOKENS, SITES, WIDTH, PARAMETERS = 1_000_000, 60, 1_024, 128, 8e9
MACHINES = (1, 16)
# Of one accelerator in half precision, at the share of its peak that large batches reach.
FLOPS, SHARE = 4e14, 0.4


@dataclass(frozen=True)
class Cost:
    """Seconds, and MiB above what there was before."""

    seconds: float
    memory: float


def measured(run: Callable[[], object], n_rounds: int) -> Cost:
    """Medians of some rounds."""
    seconds, memory = [], []
    for _ in range(n_rounds):
        # What was freed goes back to the system, lest its reuse count as nothing.
        ctypes.CDLL(None).malloc_trim(0)
        before = anonymous_mib()
        with Peak() as peak:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        memory.append(max(peak.most - before, 0.1))
    return Cost(statistics.median(seconds), statistics.median(memory))


def jobs(n: int, heads: int, d: int) -> dict[str, Callable[[], object]]:
    """Fits to the activations of `n` examples at `heads` heads."""
    train, validation = synthetic(n, 1, heads, d, 0), synthetic(n // 4, 1, heads, d, 1)
    detector = rl.RiskAwareDetector().fit(train, validation=validation)
    sites = [(0, head) for head in range(heads)]
    policies = {
        geometry: rl.RadiantPolicy(geometry=geometry, heads=sites) for geometry in ("mahalanobis", "procrustes")
    }
    return {
        "detectors": lambda: rl.RiskAwareDetector().fit(train, validation=validation),
        **{f"policy, {name}": lambda p=policy: p.fit(train, detector) for name, policy in policies.items()},
    }


def exponent(quantity: list[int], values: list[float]) -> float:
    """Slope of the log of `values` over the log of `quantity`."""
    return float(np.polyfit(np.log(quantity), np.log(values), 1)[0])


def grow(n_rounds: int) -> dict[tuple[str, str], list[tuple[int, Cost]]]:
    """Costs by quantity and job; prints them with their exponents."""
    results: dict[tuple[str, str], list[tuple[int, Cost]]] = {}
    for axis, (quantity, sizes) in enumerate(SWEEPS.items()):
        for size in sizes:
            for job, run in jobs(*size).items():
                run()
                results.setdefault((quantity, job), []).append((size[axis], measured(run, n_rounds)))
    print(f"{N} examples, {HEADS} heads, d_head {D}, one of them varied; {n_rounds} rounds\n")
    print("| job | varied | seconds | exponent | MiB | exponent |\n|-|-|-|-|-|-|")
    for (quantity, job), costs in sorted(results.items(), key=lambda item: item[0][1]):
        at = [value for value, _ in costs]
        seconds, memory = [c.seconds for _, c in costs], [c.memory for _, c in costs]
        shown = [" ".join(f"{value:.3g}" for value in values) for values in (seconds, memory)]
        print(
            f"| {job} | {quantity} {' '.join(map(str, at))} | {shown[0]} | {exponent(at, seconds):.2f} "
            f"| {shown[1]} | {exponent(at, memory):.2f} |"
        )
    return results


def capture_share(n_rounds: int) -> float:
    """Speed of collecting, as a share of bare passes over the same batches."""
    model, data = random_model(), statements(40, max_pairs=2)
    rows = [e.ids for e in encode(model, [s.text for s in data])]

    def bare() -> None:
        with torch.no_grad():
            for tokens, mask in batches(model, rows):
                model(tokens, attention_mask=mask.long())

    def collect() -> None:
        rl.collect(model, data, max_tokens=MAX_TOKENS)

    collect()
    pairs = [(measured(bare, 1).seconds, measured(collect, 1).seconds) for _ in range(n_rounds)]
    return statistics.median(a / b for a, b in pairs)


def predict(results: dict[tuple[str, str], list[tuple[int, Cost]]], share: float) -> None:
    """Prints what the fitted exponents say of a large run."""
    hours = 2 * PARAMETERS * STATEMENTS * TOKENS / (FLOPS * SHARE * share) / 3600
    disk = STATEMENTS * SITES * WIDTH * 2 / 1e9
    print(f"\nA million statements of {TOKENS} tokens on a model of 8 billion parameters, their last token kept:\n")
    print(f"| machines | {' | '.join(map(str, MACHINES))} |\n|-|{'-|' * len(MACHINES)}")
    print(f"| collect, hours at {FLOPS * SHARE:.1e} FLOP/s each, {share:.2f} of a bare pass | ", end="")
    print(" | ".join(f"{hours / m:.1f}" for m in MACHINES) + " |")
    print(f"| store in half precision, GB on each | {' | '.join(f'{disk / m:.0f}' for m in MACHINES)} |")
    targets = {"examples": STATEMENTS, "heads": SITES, "d_head": WIDTH}
    for job in sorted({job for _, job in results}):
        base = dict(results["examples", job])[N].seconds
        for (axis, target), start in zip(targets.items(), (N, HEADS, D)):
            at = [value for value, _ in results[axis, job]]
            base *= (target / start) ** exponent(at, [c.seconds for _, c in results[axis, job]])
        print(f"| {job}, hours on this processor | {' | '.join(f'{base / 3600 / m:.2f}' for m in MACHINES)} |")
    print(
        "\nWhat machines share is divided by their number, without what they wait for one another: collecting always, "
        "fits inside `distributed.together()`. The memory of fits is that of chunks of the store."
    )


def figure(results: dict[tuple[str, str], list[tuple[int, Cost]]]) -> go.Figure:
    """Time over each quantity, on logarithmic axes."""
    drawn = make_subplots(cols=len(SWEEPS), rows=1, subplot_titles=list(SWEEPS), shared_yaxes=True)
    for (quantity, job), costs in results.items():
        at, seconds = [value for value, _ in costs], [cost.seconds for _, cost in costs]
        column = list(SWEEPS).index(quantity) + 1
        drawn.add_trace(go.Scatter(x=at, y=seconds, name=job, showlegend=column == 1), row=1, col=column)
    return drawn.update_xaxes(type="log").update_yaxes(type="log").update_layout(yaxis_title="seconds, CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="growth.html")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = grow(arguments.rounds)
    predict(results, capture_share(arguments.rounds))
    figure(results).write_html(arguments.out)


if __name__ == "__main__":
    main()
