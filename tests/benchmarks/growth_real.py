"""Growth on real models: `python tests/benchmarks/growth_real.py --model smollm2-135m-instruct --data TruthfulQA.csv`.

For each number of statements, in a process of its own on one thread: activations of all heads go to a store on disk,
then detectors and a policy are fitted from it. Printed are processor seconds and the peak of anonymous memory above the
loaded model (pages of the memory-mapped store can be given back, and do not count), their slopes over the number of
examples on logarithmic axes, and what they foretell for a million statements on a model of 8 billion parameters.

With several models, one line each at the smallest size compares heads and `d_head` by model.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).parent))
from capture import RETURNING, Peak, anonymous_mib
from growth import FLOPS, MACHINES, PARAMETERS, SHARE, SITES, STATEMENTS, WIDTH, exponent

import radiant_lens as rl
from radiant_lens.cli.kernels import bound_kernels


@dataclass(frozen=True)
class Growth:
    """One size on one model.

    Attributes:
        model: as given.
        heads, d_head: of the model.
        n_statements: collected, of which four fifths are for training.
        n_tokens: of all statements.
        n_examples: tokens whose activations are kept.
        store: size on disk, in MiB.
        seconds, mib: processor seconds, and peak of memory above the loaded model, by phase.
    """

    model: str
    heads: int
    d_head: int
    n_statements: int
    n_tokens: int
    n_examples: int
    store: float
    seconds: dict[str, float]
    mib: dict[str, float]


def one(name: str, sources: list[str], n: int) -> Growth:
    """Measure one size."""
    torch.set_num_threads(1)
    # As the commands do: else what oneDNN and torch keep for every length of a pass counts as growth.
    bound_kernels()
    model = rl.load_model(name, device="cpu")
    statements: list[rl.Statement] = []
    for number, source in enumerate(sources):
        for statement in rl.load_dataset(source, model=model.tokenizer).statements:
            statements.append(replace(statement, group=f"{number}:{statement.group}"))
    # Every size holds a share of each source, and whole groups.
    order = {group: Random(group).random() for group in {s.group for s in statements}}
    statements.sort(key=lambda s: order[s.group])
    if len(statements) < n:
        raise SystemExit(f"There are {len(statements)} statements in {sources}; {n} were asked for.")
    parts = statements[: 4 * n // 5], statements[4 * n // 5 : n]
    kept = {s.group for s in parts[0]}
    parts = parts[0], [s for s in parts[1] if s.group not in kept]
    rl.collect(model, statements[:20])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    begin, seconds, mib = anonymous_mib(), dict[str, float](), dict[str, float]()

    def measured(phase: str, run: Callable[[], object]) -> object:
        start = time.process_time()
        with Peak() as peak:
            result = run()
        seconds[phase], mib[phase] = time.process_time() - start, peak.most - begin
        return result

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / part for part in ("train", "validation")]

        def collect() -> list[rl.HeadCache]:
            return [rl.collect(model, part, store=path) for part, path in zip(parts, paths)]

        train, validation = measured("collect", collect)
        detector = measured("detectors", lambda: rl.RiskAwareDetector().fit(train, validation=validation))
        measured("policy", lambda: rl.RadiantPolicy(heads="all").fit(train, detector))
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
        lengths = [len(model.tokenizer(s.text).input_ids) for part in parts for s in part]
        config = model.cfg
        return Growth(
            name,
            config.n_layers * config.n_heads,
            config.d_head,
            sum(map(len, parts)),
            sum(lengths),
            len(train) + len(validation),
            size,
            seconds,
            mib,
        )


def in_a_process(name: str, sources: list[str], n: int) -> Growth:
    """The same in a process of its own, which gives back at once what it frees."""
    arguments = [sys.executable, "-W", "ignore", __file__, "--model", name, "--child", str(n)]
    for source in sources:
        arguments += ["--data", source]
    output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=RETURNING).stdout
    return Growth(**json.loads(output.splitlines()[-1]))


PHASES = ("collect", "detectors", "policy")
# Of the length of a head: each kept number costs a detector the same, a policy multiplies activations with themselves.
POWERS = {"detectors": 1, "policy": 2}


def show(results: list[Growth]) -> None:
    """Print one line for each result."""
    phases = " | ".join(f"{phase}, s | MiB" for phase in PHASES)
    print(f"\n| model | heads | d_head | statements | tokens | examples | store, MiB | tokens a second | {phases} |")
    print("|" + "-|" * (8 + 2 * len(PHASES)))
    for r in results:
        cells = " | ".join(f"{r.seconds[p]:.1f} | {r.mib[p]:.0f}" for p in PHASES)
        rate = r.n_tokens / r.seconds["collect"]
        print(
            f"| {r.model} | {r.heads} | {r.d_head} | {r.n_statements:,} | {r.n_tokens:,} | {r.n_examples:,} "
            f"| {r.store:.0f} | {rate:,.0f} | {cells} |"
        )


def predict(results: list[Growth]) -> None:
    """Print the slopes over examples, and what follows for a large run."""
    examples = [r.n_examples for r in results]
    last = results[-1]
    kept = last.n_examples / last.n_statements
    print("\n| phase | exponent of seconds | of memory |\n|-|-|-|")
    slopes = {}
    for phase in PHASES:
        slopes[phase] = exponent(examples, [r.seconds[phase] for r in results])
        memory = exponent(examples, [max(r.mib[phase], 1.0) for r in results])
        print(f"| {phase} | {slopes[phase]:.2f} | {memory:.2f} |")
    tokens = last.n_tokens / last.n_statements
    hours = 2 * PARAMETERS * STATEMENTS * tokens / (FLOPS * SHARE) / 3600
    disk = STATEMENTS * kept * SITES * WIDTH * 2 / 1e12
    print(f"\nA million statements of {tokens:.0f} tokens, {kept:.1f} kept of each, on 8 billion parameters:\n")
    print(f"| GPUs | {' | '.join(map(str, MACHINES))} |\n|-|{'-|' * len(MACHINES)}")
    print(f"| collect, hours at {FLOPS * SHARE:.1e} FLOP/s each | {' | '.join(f'{hours / m:.1f}' for m in MACHINES)} |")
    print(f"| store in half precision, TB on each | {' | '.join(f'{disk / m:.2f}' for m in MACHINES)} |")
    for phase in PHASES[1:]:
        wider = SITES / last.heads * (WIDTH / last.d_head) ** POWERS[phase]
        more = (STATEMENTS * kept / last.n_examples) ** slopes[phase]
        there = last.seconds[phase] * wider * more / 3600
        print(f"| {phase}, hours on this processor | {' | '.join(f'{there / m:.1f}' for m in MACHINES)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--sizes", default="500,2500,10000")
    parser.add_argument("--child", type=int)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(asdict(one(arguments.model[0], arguments.data, arguments.child))))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    growing = [in_a_process(arguments.model[0], arguments.data, n) for n in sizes]
    show(growing)
    if len(sizes) > 1:
        predict(growing)
    if len(arguments.model) > 1:
        show([growing[0], *(in_a_process(name, arguments.data, sizes[0]) for name in arguments.model[1:])])


if __name__ == "__main__":
    main()
