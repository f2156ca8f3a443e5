"""vLLM against transformers, in the environment of `.ci/serving`, on one thread: `python tests/benchmarks/served.py`.

`collection --model FOLDER`: activations that `collect_with_engine` keeps, against those of `rl.collect`: their
differences in float32 and in bfloat16, beside those of `rl.collect` with other rows, and tokens a second, in turns.
Loading and starting are not counted. Seconds are of the processor, since other work may share it.

`parity --model FOLDER --steerings FOLDER`: greedy answers in float32 to prompts of mixed lengths, half of them with a
prefix that they share and every second one steered, by fitted steerings in turn (fitted on 60 questions into the
folder of `--steerings`, unless they are there): how many are the same tokens as through `rl.steer`, with the prefix
cache, and with prompts in chunks of 16 tokens. For answers that differ, the logit by which transformers prefers its
token.

`overhead --model FOLDER --steerings FOLDER`: new tokens a second of engines with hooks, against engines without the
plugin and against a fold, in turns (see `served_overhead.py`).

`soak --model FOLDER --steerings FOLDER --minutes 30`: the memory of a server under mixed requests (`served_soak.py`);
without `--steerings` that of vLLM's own server, without the plugin.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

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
    single: torch.Tensor | None = None
    for dtype in ("float32", "bfloat16"):
        bridge = rl.load_model(model, device="cpu", dtype=dtype)
        dataset = rl.load_dataset(data, model=bridge.tokenizer).statements[:n]
        examples = read_examples(bridge, dataset, "answer", None, None)
        config, texts = bridge.cfg, examples.texts
        heads = (config.n_layers, config.n_heads, config.d_head)
        engine = EngineRun(model, heads, config.dtype, texts, examples.layers)
        transformers = Run(bridge, texts, examples.layers, 1024)
        runs: dict[str, ShardedRun] = {"transformers": transformers, "vLLM": engine}
        z = {name: timed(run, examples)[2].float() for name, run in runs.items()}
        # What rounding alone does: the same passes with each text in a row of its own, and fewer rows.
        apart = {**runs, "transformers, other rows": Run(bridge, texts, examples.layers, 256, rows="separate")}
        z["transformers, other rows"] = timed(apart["transformers, other rows"], examples)[2].float()
        expected = z["transformers"]
        print(
            f"{dtype}: {len(texts)} texts, {int(texts.lengths.sum())} tokens, {len(expected)} activations of each head"
        )
        print("| activations | median | 99% | most | median, relative | largest value |\n|---|---|---|---|---|---|")
        for name in ("vLLM", "transformers, other rows"):
            print(f"| {name}, against transformers | {differences(z[name], expected)} |", flush=True)
        if single is not None:
            # How far each of the two is from what both compute in single precision.
            for name in ("vLLM", "transformers"):
                print(f"| {name}, against transformers in float32 | {differences(z[name], single)} |", flush=True)
        single = expected
        del z, expected
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds):
            for name in sorted(runs, reverse=bool(turn % 2)):
                seconds, wall, _ = timed(runs[name], examples)
                rates[name].append(int(texts.lengths.sum()) / seconds)
                print(f"  turn {turn} {name}: {rates[name][-1]:.0f} tokens a second ({wall:.1f} s wall)", flush=True)
        if not rounds:
            engine.close()
            continue
        medians = ", ".join(f"{name} {statistics.median(own):.0f}" for name, own in rates.items())
        ratios = [v / t for v, t in zip(rates["vLLM"], rates["transformers"])]
        print(f"  medians: {medians}; vLLM / transformers: {statistics.median(ratios):.2f} ", end="")
        print(f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        engine.close()


def differences(z: torch.Tensor, expected: torch.Tensor) -> str:
    """Quantiles of the absolute difference, the median of the relative one, and the largest value."""
    apart = (z - expected).abs()
    relative = (apart / expected.abs().clamp_min(1e-30)).flatten()
    thinned = apart.flatten()[:: max(1, apart.numel() // 2**23)]
    median, most = torch.quantile(thinned, torch.tensor([0.5, 0.99])).tolist()
    middle = relative[:: max(1, relative.numel() // 2**23)].median()
    columns = (median, most, float(apart.max()), float(middle), float(expected.abs().max()))
    return " | ".join(f"{value:.2g}" for value in columns)


LEAST_KL = "least KL, affine"
POLICIES: dict[str, Any] = {
    LEAST_KL: rl.LeastKLPolicy(budget=0.1, family="affine", n_draws=1),
    "RADIANT, gate head": rl.RadiantPolicy(heads=30),
    "RADIANT, gate vote": rl.RadiantPolicy(heads=30, gate="vote"),
    "ITI": rl.ITIPolicy(alpha=5.0, n_heads=24),
    "ablation": rl.AblationPolicy(heads=6),
}
ONE_LAYER, ALL_LAYERS = "RADIANT, gate vote, layer 12", "RADIANT, gate vote, all heads"
FOR_SPEED: dict[str, Any] = {
    LEAST_KL: POLICIES[LEAST_KL],
    ONE_LAYER: rl.RadiantPolicy(heads="layer:12", gate="vote"),
    ALL_LAYERS: rl.RadiantPolicy(heads="all", gate="vote"),
}


def fitted(model: str, folder: Path, policies: Mapping[str, Any]) -> dict[str, rl.Steering]:
    """Steerings of policies, read from a folder or fitted into it on 60 questions."""
    missing = {name: policy for name, policy in policies.items() if not (folder / name).exists()}
    if missing:
        bridge = rl.load_model(model, device="cpu", dtype="bfloat16")
        data = rl.load_dataset("misconceptions", model=bridge.tokenizer).sample(100)
        train, validation, _ = data.split((0.6, 0.3, 0.1), seed=0)
        cache = rl.collect(bridge, train)
        detector = rl.RiskAwareDetector().fit(cache, validation=rl.collect(bridge, validation))
        for name, policy in missing.items():
            if isinstance(policy, rl.LeastKLPolicy):
                steering = policy.fit(bridge, train, validation=validation)
            else:
                steering = policy.fit(cache, detector)
            steering.save(folder / name)
    return {name: rl.Steering.load(folder / name) for name in policies}


def make_rows(tokenizer: Any, n: int) -> list[list[int]]:
    """Prompts from 3 to some hundred tokens; every second pair begins with the same instruction."""
    texts = [prompt.text for prompt in rl.load_dataset("misconceptions", model=tokenizer).prompts]
    instruction = "You answer questions in one short sentence, and you say so where nobody knows the answer. " * 3
    rows: list[list[int]] = []
    for i in range(n):
        text = texts[i % len(texts)]
        text = instruction + text if i % 4 > 1 else text
        # Whole prompts, and beginnings of them of all lengths.
        ids = tokenizer(text).input_ids
        rows.append(ids if i % 3 else ids[: 3 + i % max(1, len(ids) - 3)])
    return rows


def first_difference(
    model: Any, steering: rl.Steering | None, row: Sequence[int], answer: Sequence[int]
) -> tuple[int, float] | None:
    """First token of a greedy answer that transformers would not have chosen, and by which logit; None: all are its.

    One pass over prompt and answer: what comes before each token is then the same as in a generation, step by step.
    """
    start = len(row) - 1
    steered = nullcontext() if steering is None else rl.steer(model, steering, start=start, allow_mismatch=True)
    with steered, torch.no_grad():
        logits = model(torch.tensor([[*row, *answer[:-1]]])).logits[0, start:]
    gaps = logits.amax(1) - logits[torch.arange(len(answer)), torch.tensor(answer)]
    return next(((step, gap) for step, gap in enumerate(gaps.tolist()) if gap > 0), None)


def parity(model: str, folder: Path, n: int, n_new: int) -> None:
    """Print how many answers are the same."""
    import vllm
    from serving.engines import Engine
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steerings = fitted(model, folder, POLICIES)
    keys = {name: f"s{i}" for i, name in enumerate(steerings)}
    rows = make_rows(AutoTokenizer.from_pretrained(model), n)
    arms = list(steerings)
    names = [None if i % 2 else arms[i // 2 % len(arms)] for i in range(n)]
    lengths = sorted(map(len, rows))
    print(f"{n} prompts of {lengths[0]} to {lengths[-1]} tokens, {n_new} new ones each", flush=True)
    by_engine: dict[str, list[list[int]]] = {}
    by_key = {keys[name]: steering for name, steering in steerings.items()}
    choices = [None if name is None else (keys[name], 1.0) for name in names]
    common = {"max_model_len": lengths[-1] + n_new + 1, "max_num_seqs": 16}
    for label, options in (
        ("prefix cache", {}),
        ("chunks of 16", {"max_num_batched_tokens": 16, "enable_prefix_caching": False}),
    ):
        with tempfile.TemporaryDirectory() as place:
            os.symlink(Path(model).resolve(), Path(place) / "model")
            with Engine(vllm, Path(place) / "model", by_key, **common, **options) as engine:
                outputs = engine.outputs(rows, choices, n_new)
                by_engine[label] = [list(output.outputs[0].token_ids) for output in outputs]
                cached = sum(output.num_cached_tokens or 0 for output in outputs)
                print(f"{label}: {cached} prompt tokens were cached", flush=True)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    differences = {label: [] for label in by_engine}
    changed: list[bool] = []
    for i, (row, name) in enumerate(zip(rows, names)):
        steering = None if name is None else steerings[name]
        for label, answers in by_engine.items():
            same_as_before = label != "prefix cache" and answers[i] == by_engine["prefix cache"][i]
            difference = differences["prefix cache"][i] if same_as_before else None
            if not same_as_before:
                difference = first_difference(plain, steering, row, answers[i])
            differences[label].append(difference)
            if difference is not None:
                step, gap = difference
                print(
                    f"{label}: row {i} ({name}) differs from new token {step} on, by a logit of {gap:.2g}", flush=True
                )
        # Without its steering, transformers would have answered otherwise.
        changed.append(
            name is not None and first_difference(plain, None, row, by_engine["prefix cache"][i]) is not None
        )
    print("| steering | requests | changed by it | " + " | ".join(f"same, {label}" for label in by_engine) + " |")
    print("|---|---|---|" + "---|" * len(by_engine))
    for arm in (None, *arms):
        mine = [i for i in range(n) if names[i] == arm]
        same = [sum(own[i] is None for i in mine) for own in differences.values()]
        columns = [arm or "none", len(mine), sum(changed[i] for i in mine), *same]
        print(f"| {' | '.join(map(str, columns))} |", flush=True)


def overhead(model: str, folder: Path, n_new: int, rounds: int, dtype: str, only: str) -> None:
    """Print what hooks and a fold cost, in turns; of the arms whose name contains `only`."""
    from served_overhead import N_REQUESTS, compare, make_arms
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steerings = fitted(model, folder, FOR_SPEED)
    for name, steering in steerings.items():
        print(f"{name}: {len(steering.sites)} heads of {len(steering.layers)} layers", flush=True)
    tokenizer, fold = AutoTokenizer.from_pretrained(model), folder / "fold"
    rows = [row for row in make_rows(tokenizer, 3 * N_REQUESTS) if len(row) > 8][:N_REQUESTS]
    if not fold.exists():
        # Folded in single precision, and rounded once.
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        steerings[LEAST_KL].fold_into(plain)
        plain.save_pretrained(fold)
        tokenizer.save_pretrained(fold)
    arms = make_arms(model, fold, folder / ONE_LAYER, folder / ALL_LAYERS, folder / LEAST_KL)
    (base, arm), *others = arms.items()
    compare({base: arm, **{name: other for name, other in others if only in name}}, rows, dtype, n_new, rounds)


def soak(model: str, folder: Path | None, minutes: float) -> None:
    """Print the memory of a server under mixed requests; without a folder that of vLLM's own."""
    import served_soak

    steerings = {} if folder is None else {name: folder / name for name in fitted(model, folder, POLICIES)}
    served_soak.soak(model, {f"s{i}": path for i, path in enumerate(steerings.values())}, minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collection", "parity", "overhead", "soak"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="misconceptions")
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steerings", type=Path, help="folder of fitted steerings, not for `collection`")
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16", help="for `overhead`")
    parser.add_argument("--only", default="", help="for `overhead`: arms whose name contains this")
    parser.add_argument("--minutes", type=float, default=30.0, help="for `soak`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="WARNING")
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arguments.what == "collection":
            collection(arguments.model, arguments.data, arguments.n, arguments.rounds)
        elif arguments.what == "overhead":
            new_tokens, rounds = arguments.new_tokens, arguments.rounds
            overhead(arguments.model, arguments.steerings, new_tokens, rounds, arguments.dtype, arguments.only)
        elif arguments.what == "soak":
            soak(arguments.model, arguments.steerings, arguments.minutes)
        else:
            parity(arguments.model, arguments.steerings, arguments.n, arguments.new_tokens)


if __name__ == "__main__":
    main()
