"""Capture against bare passes and one prompt at a time: `python tests/benchmarks/capture.py [--out capture.html]`.

Speed: the same statements of mixed length through the embedded model and a random 12-layer one, ways taking turns
within one run, in an order drawn anew in every round; medians of tokens/s and of the rounds' ratios, with 95% intervals
of the median. Memory: storing 2,000 and 20,000 statements and fitting a detector and a policy from the store, each in a
process of its own; the peak of its anonymous memory, which is what cannot be given back (pages of the memory-mapped
file can).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import plotly.graph_objects as go
import torch

sys.path.insert(0, str(Path(__file__).parent))
from generation import median_interval

import radiant_lens as rl
from radiant_lens.datasets.world import make_fact_world, vocabulary
from radiant_lens.models.tokens import batch_rows, encode, pad_rows, pad_token
from radiant_lens.tiny.train import TrainingConfig, make_model, make_tokenizer

# glibc gives back at once what is freed: what is measured is what is needed, not what is kept for later.
RETURNING = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
# Batches of this size still fit the caches of a CPU.
MAX_TOKENS = 1024


def statements(n: int, *, seed: int = 0, max_pairs: int = 6) -> list[rl.Statement]:
    """Transcripts of 1 to `max_pairs` statements of tiny-facts, labelled as their last one."""
    pool = rl.load_dataset("tiny-facts").statements
    draw = random.Random(seed)
    results = []
    for i in range(n):
        picked = [draw.choice(pool) for _ in range(draw.randint(1, max_pairs))]
        context = "".join(s.text + " " for s in picked[:-1])
        last = picked[-1]
        results.append(rl.Statement(context + last.text, last.label, f"{i // 10}", len(context) + last.answer_start))
    return [s for s in results if len(s.text.split()) < 240]


def random_model(d_model: int = 768, n_layers: int = 12) -> object:
    tokenizer = make_tokenizer(vocabulary(make_fact_world()))
    config = TrainingConfig(
        architecture="llama", n_layers=n_layers, n_heads=d_model // 64, d_model=d_model, d_mlp=4 * d_model, seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        make_model(config, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return rl.load_model(folder, device="cpu")


def batches(model, rows: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and masks of the padded batches in which `collect` runs these rows."""
    for batch in batch_rows(torch.tensor([len(row) for row in rows]), max_tokens=MAX_TOKENS):
        yield pad_rows([rows[i] for i in batch.tolist()], pad_token(model))


def ways(model, data: list[rl.Statement], folder: Path) -> dict[str, Callable[[], None]]:
    rows = [e.ids for e in encode(model, [s.text for s in data])]
    last = f"blocks.{model.cfg.n_layers - 1}.attn.hook_z"

    class StopError(Exception):
        pass

    def stop(z, hook):
        raise StopError

    def bare(stopping: bool) -> None:
        hooks = [(last, stop)] if stopping else []
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            for tokens, mask in batches(model, rows):
                with contextlib.suppress(StopError):
                    model(tokens, attention_mask=mask.long())

    def one_at_a_time() -> None:
        with torch.no_grad():
            for row in rows:
                _, cache = model.run_with_cache(torch.tensor([row]))
                [cache[f"blocks.{i}.attn.hook_z"][0, -1].clone() for i in range(model.cfg.n_layers)]

    def stored() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as path:
            rl.collect(model, data, max_tokens=MAX_TOKENS, store=Path(path) / "store")

    return {
        "bare forward pass": lambda: bare(False),
        "bare, up to the last head": lambda: bare(True),
        "collect": lambda: rl.collect(model, data, max_tokens=MAX_TOKENS) and None,
        "collect to a store": stored,
        "one at a time, run_with_cache": one_at_a_time,
    }


def speed(name: str, model, data: list[rl.Statement], n_rounds: int) -> dict[str, list[float]]:
    """Tokens/s of every way, round by round."""
    n_tokens = sum(len(e.ids) for e in encode(model, [s.text for s in data]))
    with tempfile.TemporaryDirectory() as folder:
        runs = ways(model, data, Path(folder))
        runs["collect"]()
        order, shuffled = list(runs), random.Random(0)
        results: dict[str, list[float]] = {way: [] for way in runs}
        for _ in range(n_rounds):
            shuffled.shuffle(order)
            for way in order:
                start = time.perf_counter()
                runs[way]()
                results[way].append(n_tokens / (time.perf_counter() - start))
    print(f"\n{name}: {len(data)} statements, {n_tokens} tokens, {n_rounds} rounds\n")
    print("| way | tokens/s | over the bare pass | over it up to the last head | over one at a time |\n|-|-|-|-|-|")
    peers = ("bare forward pass", "bare, up to the last head", "one at a time, run_with_cache")
    for way, values in results.items():
        cells = []
        for peer in peers:
            ratios = [a / b for a, b in zip(values, results[peer])]
            low, high = median_interval(ratios)
            cells.append(f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {way} | {statistics.median(values):,.0f} | {' | '.join(cells)} |", flush=True)
    return results


def anonymous_mib() -> float:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


class Peak:
    """Largest anonymous memory within the block."""

    def __enter__(self) -> Peak:
        self.most = anonymous_mib()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.004):
            self.most = max(self.most, anonymous_mib())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def child(n: int, folder: str) -> None:
    """Store, then fit from the store; prints the two peaks in MiB, and the size of the store."""
    data = statements(n, max_pairs=1)
    n_train = 4 * n // 5 // 10 * 10
    model = rl.load_model("tiny", device="cpu")
    rl.collect(model, data[:50])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    begin = anonymous_mib()
    with Peak() as storing:
        caches = [
            rl.collect(model, part, store=Path(folder) / name)
            for name, part in (("train", data[:n_train]), ("validation", data[n_train:]))
        ]
    with Peak() as fitting:
        detector = rl.RiskAwareDetector(max_iterations=10).fit(caches[0], validation=caches[1])
        rl.RadiantPolicy(heads=8).fit(caches[0], detector)
    size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
    print(storing.most - begin, fitting.most - begin, size, len(caches[0]) + len(caches[1]))


def memory(sizes: list[int]) -> list[tuple[int, float, float, float]]:
    print("\n| statements | examples | store, MiB | peak of storing, MiB | peak of fitting from it, MiB |\n|-|-|-|-|-|")
    results = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [sys.executable, __file__, "--child", str(n), folder]
            output = subprocess.run(arguments, check=True, capture_output=True, text=True, env=RETURNING).stdout
        storing, fitting, size, examples = map(float, output.split())
        print(f"| {n:,} | {examples:,.0f} | {size:.0f} | {storing:.0f} | {fitting:.0f} |")
        results.append((n, storing, fitting, size))
    return results


def figure(results: list[tuple[int, float, float, float]]) -> go.Figure:
    n = [row[0] for row in results]
    names = ("peak of storing", "peak of fitting", "size of the store")
    traces = [go.Scatter(x=n, y=[row[i + 1] for row in results], name=name) for i, name in enumerate(names)]
    return go.Figure(traces).update_layout(
        xaxis={"type": "log", "title": "statements"}, yaxis={"type": "log", "title": "MiB"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="capture.html")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(int(arguments.child[0]), arguments.child[1])
        return
    tiny = rl.load_model("tiny", device="cpu")
    speed("embedded model, single sentences", tiny, statements(400, max_pairs=1), arguments.rounds)
    speed("embedded model, transcripts of 1 to 6", tiny, statements(200), arguments.rounds)
    speed("random model of 12 layers, d_model 768", random_model(), statements(30, max_pairs=2), arguments.rounds)
    figure(memory([2_000, 6_000, 20_000])).write_html(arguments.out)


if __name__ == "__main__":
    main()
