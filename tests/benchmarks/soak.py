"""A long run: steered generations in one process, with memory, throughput and texts as they go.

Run with `python tests/benchmarks/soak.py [N]`; the test that judges it is tests/test_soak.py.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import radiant_lens as rl
from radiant_lens.evaluation import generate_answers

PROMPTS = ["Q : what is the capital of dupeka ? A :", "Q : what is the food of dripreka ? A :"]


@dataclass(frozen=True)
class Soak:
    """Result of `soak`; slopes are least squares over the last three quarters of the run.

    Attributes:
        n: generations, each of all prompts.
        growth: of the resident memory, in bytes a generation.
        resident: memory at the end, in bytes.
        slowdown: of one generation, as a share of the mean, from the first of those three quarters to the last; in
            units of a fixed piece of work beside it, since other processes slow down both.
        seconds: of all.
        same_text: whether the first and the last generation, of one seed, say the same.
        other_text: whether another seed says something else.
    """

    n: int
    growth: float
    resident: int
    slowdown: float
    seconds: float
    same_text: bool
    other_text: bool


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(values: np.ndarray) -> float:
    """Least-squares growth from one value to the next, over the last three quarters."""
    last = values[len(values) // 4 :]
    return float(np.polyfit(np.arange(len(last)), last, 1)[0])


def reference() -> None:
    """Work like a model's, that knows nothing of hooks or of a model."""
    a = torch.ones(2, 192)
    for _ in range(2000):
        a = torch.tanh(a @ torch.ones(192, 192))


def soak(model, steering: rl.Steering, n: int = 1000, *, traced: bool = True) -> Soak:
    """Generate `n` times under a steering that is switched on anew each time."""

    def generate(seed: int) -> list[list[str]]:
        with rl.steer(model, steering, trace=traced):
            return generate_answers(model, PROMPTS, max_new_tokens=12, seed=seed)

    memory, times = np.zeros(n), np.zeros(n)
    first, start = generate(0), time.perf_counter()
    for i in range(n):
        begun = time.process_time()
        generate(i + 1)
        done = time.process_time()
        reference()
        times[i] = (done - begun) / (time.process_time() - done)
        if i % 20 == 0:
            gc.collect()
        memory[i] = resident_bytes()
    seconds = time.perf_counter() - start
    # Processor time, and the median of each twenty: other processes are not to count.
    typical = np.median(times[: n // 20 * 20].reshape(-1, 20), axis=1)
    slowdown = slope(typical) * len(typical) * 0.75 / typical.mean()
    last, other = generate(0), generate(1)
    return Soak(n, slope(memory), int(memory[-1]), slowdown, seconds, first == last, first != other)


def main() -> None:
    """Run it on the embedded model."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from plain_models import random_steering

    torch.set_num_threads(1)
    model = rl.load_model("tiny", device="cpu")
    steering = random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    print(json.dumps(asdict(soak(model, steering, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)), indent=1))


if __name__ == "__main__":
    main()
