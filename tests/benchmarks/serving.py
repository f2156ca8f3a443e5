"""vLLM against transformers, in the environment of `.ci/serving`, on one thread: `python tests/benchmarks/serving.py`.

`collection --model FOLDER`: activations that `collect_with_engine` keeps, against those of `rl.collect`: their largest
and median difference in float32 and in bfloat16, and tokens a second, in turns. Loading and starting are not counted.
Seconds are of the processor, since other work may share it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

import radiant_lens as rl
from radiant_lens.capture.engine_run import EngineRun
from radiant_lens.capture.examples import Examples, read_examples
from radiant_lens.capture.run import Run
from radiant_lens.capture.shards import ShardedRun
from radiant_lens.capture.store import CacheStore
from radiant_lens.distributed import Rank


def timed(run: ShardedRun, examples: Examples) -> tuple[float, float, torch.Tensor]:
    """Processor and wall seconds of a whole collection into a new store, and its activations."""
    with tempfile.TemporaryDirectory() as folder:
        store = CacheStore(Path(folder) / "s", examples.plan(run.settings), run.shape, run.dtype, examples.columns)
        if isinstance(run, EngineRun):
            # What an earlier turn has cached is not computed.
            run._reader._engine.reset_prefix_cache()
        processor, wall = time.process_time(), time.perf_counter()
        run.into(store, examples.fields, False, Rank(0, 1))
        return time.process_time() - processor, time.perf_counter() - wall, store.tensors()["z"].clone()


def collection(model: str, data: str, n: int, rounds: int) -> None:
    """Print the differences and the speed in each precision."""
    for dtype in ("float32", "bfloat16"):
        bridge = rl.load_model(model, device="cpu", dtype=dtype)
        dataset = rl.load_dataset(data, model=bridge.tokenizer).statements[:n]
        examples = read_examples(bridge, dataset, "answer", None, None)
        config, texts = bridge.cfg, examples.texts
        heads = (config.n_layers, config.n_heads, config.d_head)
        runs: dict[str, ShardedRun] = {
            "transformers": Run(bridge, texts, examples.layers, 1024),
            "vLLM": EngineRun(model, heads, config.dtype, texts, examples.layers),
        }
        z = {name: timed(run, examples)[2].float() for name, run in runs.items()}
        apart = (z["vLLM"] - z["transformers"]).abs()
        largest = float(z["transformers"].abs().max())
        quantiles = torch.quantile(apart.flatten()[:: max(1, apart.numel() // 2**23)], torch.tensor([0.5, 0.99]))
        print(
            f"{dtype}: {len(texts)} texts, {int(texts.lengths.sum())} tokens, {len(apart)} activations of each head; "
            f"apart by {quantiles[0]:.2g} (median), {quantiles[1]:.2g} (99%), {float(apart.max()):.2g} (most); "
            f"largest value {largest:.3g}",
            flush=True,
        )
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds):
            for name in sorted(runs, reverse=bool(turn % 2)):
                seconds, wall, _ = timed(runs[name], examples)
                rates[name].append(int(texts.lengths.sum()) / seconds)
                print(f"  turn {turn} {name}: {rates[name][-1]:.0f} tokens a second ({wall:.1f} s wall)", flush=True)
        ratio = statistics.median(v / t for v, t in zip(rates["vLLM"], rates["transformers"]))
        print(f"  vLLM / transformers: {ratio:.2f}", flush=True)
        runs["vLLM"].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collection"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="misconceptions")
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="WARNING")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collection(arguments.model, arguments.data, arguments.n, arguments.rounds)


if __name__ == "__main__":
    main()
