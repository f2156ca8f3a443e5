"""vLLM against transformers, in the environment of `.ci/serving`, on one thread: `python tests/benchmarks/served.py`.

`collection --model FOLDER`: activations that `collect_with_engine` keeps, against those of `rl.collect`: their largest
and median difference in float32 and in bfloat16, and tokens a second, in turns. Loading and starting are not counted.
Seconds are of the processor, since other work may share it.

`parity --model FOLDER --steerings FOLDER`: greedy answers in float32 to prompts of mixed lengths, half of them with a
prefix that they share and every second one steered, by fitted steerings in turn (fitted on few groups into the folder
of `--steerings`, unless they are there): how many are the same tokens as through `rl.steer`, with the prefix cache, and
with prompts in chunks of 16 tokens. For answers that differ, the logit by which transformers preferred its token.
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


LEAST_KL = "least KL, affine"
POLICIES: dict[str, Any] = {
    "RADIANT, gate head": rl.RadiantPolicy(heads=30),
    "RADIANT, gate vote": rl.RadiantPolicy(heads=30, gate="vote"),
    "ITI": rl.ITIPolicy(alpha=5.0, n_heads=24),
    "ablation": rl.AblationPolicy(heads=6),
}


def fitted(model: str, folder: Path) -> dict[str, rl.Steering]:
    """Steerings of every kind of policy, read from a folder or fitted into it."""
    names = [LEAST_KL, *POLICIES]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        bridge = rl.load_model(model, device="cpu", dtype="bfloat16")
        data = rl.load_dataset("misconceptions", model=bridge.tokenizer).sample(40)
        train, validation, _ = data.split((0.6, 0.3, 0.1), seed=0)
        if LEAST_KL in missing:
            policy = rl.LeastKLPolicy(budget=0.1, family="affine", n_draws=1, heads="layer:12", ridge=0.1, coupling=0.0)
            policy.fit(bridge, train.sample(8), validation=validation.sample(4)).save(folder / LEAST_KL)
        if missing != [LEAST_KL]:
            cache = rl.collect(bridge, train)
            detector = rl.RiskAwareDetector().fit(cache, validation=rl.collect(bridge, validation))
            for name, policy in POLICIES.items():
                policy.fit(cache, detector).save(folder / name)
    return {name: rl.Steering.load(folder / name) for name in names}


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


def answers_by_transformers(
    model: Any, steerings: Mapping[str, rl.Steering], rows: Sequence[list[int]], names: Sequence[str | None], n_new: int
) -> list[tuple[list[int], torch.Tensor]]:
    """New tokens, with the logits of each step."""
    answers: list[tuple[list[int], torch.Tensor]] = []
    settings = {"do_sample": False, "min_new_tokens": n_new, "max_new_tokens": n_new, "eos_token_id": None}
    for row, name in zip(rows, names):
        steered = nullcontext() if name is None else rl.steer(model, steerings[name], allow_mismatch=True)
        ids = torch.tensor([row])
        with steered, torch.no_grad():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                return_dict_in_generate=True,
                output_logits=True,
                **settings,
            )
        answers.append((output.sequences[0, len(row) :].tolist(), torch.cat(output.logits)))
    return answers


def parity(model: str, folder: Path, n: int, n_new: int) -> None:
    """Print how many answers are the same."""
    import vllm
    from serving.engines import Engine
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steerings = fitted(model, folder)
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
                if not options:
                    unsteered = engine.answers(rows, [None] * n, n_new)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = answers_by_transformers(plain, steerings, rows, names, n_new)
    print("| steering | requests | changed by it | " + " | ".join(f"same, {label}" for label in by_engine) + " |")
    print("|---|---|---|" + "---|" * len(by_engine))
    for arm in (None, *arms):
        mine = [i for i in range(n) if names[i] == arm]
        same = [sum(answers[i] == expected[i][0] for i in mine) for answers in by_engine.values()]
        changed = sum(expected[i][0] != unsteered[i] for i in mine)
        print(f"| {arm or 'none'} | {len(mine)} | {changed} | " + " | ".join(map(str, same)) + " |", flush=True)
    for label, answers in by_engine.items():
        for i, (answer, (tokens, logits)) in enumerate(zip(answers, expected)):
            if answer != tokens:
                step = next(j for j, pair in enumerate(zip(answer, tokens)) if pair[0] != pair[1])
                gap = float(logits[step, tokens[step]] - logits[step, answer[step]])
                print(f"{label}: row {i} ({names[i]}) differs from new token {step} on, by a logit of {gap:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collection", "parity"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="misconceptions")
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steerings", type=Path, help="folder of fitted steerings, for `parity`")
    parser.add_argument("--new-tokens", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="WARNING")
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arguments.what == "collection":
            collection(arguments.model, arguments.data, arguments.n, arguments.rounds)
        else:
            parity(arguments.model, arguments.steerings, arguments.n, arguments.new_tokens)


if __name__ == "__main__":
    main()
