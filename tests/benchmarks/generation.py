"""What steering costs a generation: `python tests/benchmarks/generation.py [--models tiny wide] [--out figure.html]`.

Tokens per second of greedy generation with a KV cache: unsteered, with an empty hook, with a detector alone, and with
detector and edit, on the plain model and on its bridge, at one layer and at all layers, beside a naive hook as the
paper's code has it (a loop over heads whose tensors are rebuilt at every token). The settings take turns in an
order drawn anew in every round, each beside an unsteered run, of which the one or the other comes first by chance;
overheads are medians of the ratios of such pairs, with 95% intervals of the median. For narrow ones:
`--hooks "detector and edit" naive --rounds 100`. Where an overhead is less than the machine's noise, `--inside` counts
it itself: the seconds within hooks and those to switch them on and off, over all others of the same run.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import plotly.graph_objects as go
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain_models import random_steering, shape, tokenizer

import radiant_lens as rl
from radiant_lens.models.identity import signature
from radiant_lens.sites import hook_name, output_projections
from radiant_lens.tiny import model_folder

Key = tuple[str, str, str]
Times = dict[Key, list[tuple[float, float]]]
Clock = Callable[[], float]
UNSTEERED = "unsteered"


class Setting(NamedTuple):
    """Hooks to switch on, and what runs under them."""

    context: Callable[[], AbstractContextManager[object]]
    run: Callable[[], object]


def make_model(name: str) -> PreTrainedModel:
    """The embedded model (4 layers, d_model 192), or a random one of 12 layers with d_model 768."""
    if name == "tiny":
        return AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager").eval()
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = LlamaConfig(**sizes, vocab_size=2000, attn_implementation="eager", max_position_embeddings=512)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.config.architectures = ["LlamaForCausalLM"]
    return model


@contextmanager
def hooked(model: PreTrainedModel, functions: dict[int, Callable]) -> Iterator[None]:
    """Hook functions of heads on a plain model."""
    n_heads = shape(model)[1]
    with ExitStack() as stack:
        for layer, function in functions.items():

            def before(module, args, function=function):
                return (function(args[0].unflatten(-1, (n_heads, -1)), None).flatten(-2), *args[1:])

            handle = output_projections(model)[layer].register_forward_pre_hook(before)
            stack.callback(handle.remove)
        yield


def empty(z: torch.Tensor, hook: object) -> torch.Tensor:
    return z


def detector_alone(steering: rl.Steering, layer: int) -> Callable:
    """The scores of the layer's heads at the newest position, and nothing done with them."""
    weights, biases = steering.scores.weights[layer], steering.scores.biases[layer]

    def detect(z: torch.Tensor, hook: object) -> torch.Tensor:
        _ = ((z[:, -1] * weights).sum(-1) + biases >= 0).sum(-1)
        return z

    return detect


class Probe(torch.nn.Module):
    """One head's probability of being undesirable."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(len(weight), 1)
        self.linear.weight.data, self.linear.bias.data = weight[None].clone(), bias[None].clone()

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return self.linear(a).sigmoid()


def naive(steering: rl.Steering, layer: int) -> Callable:
    """The layer as the paper's released code proceeds at every token: two loops over heads.

    The first asks each head's probe, a module that is moved to the device, for its vote; the second makes the constants
    of each head anew from arrays and moves those rows whose head and layer vote, if there are any.
    """
    heads = {
        site.head: (Probe(steering.scores.weights[site], steering.scores.biases[site]), m.G.numpy(), m.g.numpy())
        for site, m in steering.maps().items()
        if site.layer == layer
    }
    threshold = int(steering.scores.thresholds[layer])

    def edit(z: torch.Tensor, hook: object) -> torch.Tensor:
        votes = [probe.to(z.device)(z[:, -1, head]) > 0.5 for head, (probe, _, _) in heads.items()]
        votes = torch.cat(votes, dim=1)
        layer_votes = votes.sum(1) >= threshold
        for own, (head, (_, matrix, shift)) in zip(votes.T, heads.items()):
            matrix, shift = torch.tensor(matrix).to(z), torch.tensor(shift).to(z)
            rows = own & layer_votes
            if rows.sum().item() > 0:
                a = z[rows, -1, head]
                z[rows, -1, head] += a @ matrix.T + shift - a
        return z

    return edit


def settings(model: PreTrainedModel, bridge, batch: int, n_prompt: int, n_new: int) -> dict[Key, Setting]:
    n_layers, n_heads, d_head = shape(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.config.vocab_size, (batch, n_prompt), generator=generator)
    mask = torch.ones_like(tokens)

    def plain_run() -> object:
        return model.generate(
            tokens, attention_mask=mask, max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    def bridge_run() -> object:
        return bridge.generate(
            tokens, attention_mask=mask, max_new_tokens=n_new, do_sample=False, stop_at_eos=False, verbose=False,
            return_type="tokens",
        )  # fmt: skip

    found: dict[Key, Setting] = {}
    for where, layers in zip(LAYERS, ([n_layers // 2], list(range(n_layers)))):
        sites = [(layer, head) for layer in layers for head in range(n_heads)]
        # The vote gate asks most: all heads' scores, then a count, then the heads' own.
        steering = random_steering(n_layers, n_heads, d_head, gate="vote", sites=sites)
        # It knows its model, as one that was fitted does: `steer` looks whether it meets the same.
        steering = replace(steering, meta={**steering.meta, "model": signature(model)})
        makers = {
            "empty hook": lambda layer: empty,
            "detector": lambda layer, s=steering: detector_alone(s, layer),
            "naive": lambda layer, s=steering: naive(s, layer),
        }
        for name, make in makers.items():
            functions = {layer: make(layer) for layer in layers}
            found["plain", where, name] = Setting(lambda f=functions: hooked(model, f), plain_run)
            named = [(hook_name(layer), function) for layer, function in functions.items()]
            found["bridge", where, name] = Setting(lambda n=named: bridge.hooks(fwd_hooks=n), bridge_run)
        found["plain", where, "detector and edit"] = Setting(lambda s=steering: rl.steer(model, s), plain_run)
        found["bridge", where, "detector and edit"] = Setting(lambda s=steering: rl.steer(bridge, s), bridge_run)
    found["plain", "-", UNSTEERED] = Setting(nullcontext, plain_run)
    found["bridge", "-", UNSTEERED] = Setting(nullcontext, bridge_run)
    return found


LAYERS = ("one layer", "all layers")
HOOKS = ("empty hook", "detector", "detector and edit", "naive")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(setting: Setting, clock: Clock) -> float:
    start = clock()
    with setting.context():
        setting.run()
    return clock() - start


def measure(found: dict[Key, Setting], rounds: int, clock: Clock) -> Times:
    """Seconds of the unsteered run beside it, and of each setting, in each round."""

    def paired(key: Key, chance: float) -> tuple[float, float]:
        pair = [found[key[0], "-", UNSTEERED], found[key]]
        if chance < 0.5:
            bare, taken = (seconds(setting, clock) for setting in pair)
        else:
            taken, bare = (seconds(setting, clock) for setting in reversed(pair))
        return bare, taken

    return in_turn(found, rounds, paired)


def measure_inside(found: dict[Key, Setting], rounds: int, clock: Clock) -> Times:
    """Seconds of each setting without and with those spent inside its hooks and to switch them on and off."""

    def split(key: Key, chance: float) -> tuple[float, float]:
        with hooks_on_the_clock(clock) as spent:
            start = clock()
            with found[key].context():
                on = clock()
                found[key].run()
                off = clock()
            taken = clock() - start
        return off - on - sum(spent), taken

    return in_turn(found, rounds, split)


@contextmanager
def hooks_on_the_clock(clock: Clock) -> Iterator[list[float]]:
    """The seconds of each call of each forward hook that is registered meanwhile, with any of torch's ways."""
    spent: list[float] = []

    def registering(register: Callable) -> Callable:
        def timed(module: torch.nn.Module, hook: Callable, **options: object) -> object:
            def on_the_clock(*args: object, **kwargs: object) -> object:
                start = clock()
                try:
                    return hook(*args, **kwargs)
                finally:
                    spent.append(clock() - start)

            return register(module, on_the_clock, **options)

        return timed

    with ExitStack() as stack:
        for name in ("register_forward_pre_hook", "register_forward_hook"):
            patched = registering(getattr(torch.nn.Module, name))
            stack.enter_context(patch.object(torch.nn.Module, name, patched))
        yield spent


def in_turn(found: dict[Key, Setting], rounds: int, timed: Callable[[Key, float], tuple[float, float]]) -> Times:
    """Each setting once a round, in an order drawn anew; `timed` takes a setting and a number drawn from [0, 1)."""
    times: Times = {key: [] for key in found if key[2] != UNSTEERED}
    order = list(times)
    shuffled = random.Random(0)
    with torch.no_grad():
        for setting in found.values():
            seconds(setting, time.perf_counter)
        for _ in range(rounds):
            shuffled.shuffle(order)
            for key in order:
                times[key].append(timed(key, shuffled.random()))
    return times


def overheads(times: Times, key: Key) -> list[float]:
    return [taken / bare - 1 for bare, taken in times[key]]


def median_interval(values: list[float]) -> tuple[float, float]:
    """95% interval of the median, by the binomial distribution of how many values lie below it."""
    half = 0.98 * len(values) ** 0.5
    low = max(round(len(values) / 2 - half), 0)
    return sorted(values)[low], sorted(values)[-1 - low]


def report(name: str, batch: int, n_new: int, times: Times) -> None:
    print(f"\n### {name}, batch {batch}: {n_new} new tokens, {len(next(iter(times.values())))} rounds\n")
    print("| model | where | hook | tokens/s | overhead, % | 95% interval | naive overhead / this |\n|-|-|-|-|-|-|-|")
    for model in ("bridge", "plain"):
        bare = [b for key, pairs in times.items() if key[0] == model for b, _ in pairs]
        print(f"| {model} | - | {UNSTEERED} | {batch * n_new / statistics.median(bare):.0f} | | | |")
    for key in sorted(times):
        rate = batch * n_new / statistics.median(taken for _, taken in times[key])
        middle, (low, high) = statistics.median(overheads(times, key)), median_interval(overheads(times, key))
        naive_key, ratio = (*key[:2], "naive"), ""
        if key[2] == "detector and edit" and naive_key in times and middle > 0:
            ratio = f"{statistics.median(overheads(times, naive_key)) / middle:.1f}"
        print(
            f"| {' | '.join(key)} | {rate:.0f} | {100 * middle:.1f} | {100 * low:.1f} to {100 * high:.1f} | {ratio} |",
            flush=True,
        )


def plot(results: dict[tuple[str, int], Times]) -> go.Figure:
    figure = go.Figure()
    for hook in HOOKS:
        labels, values = [], []
        for (name, batch), seconds in results.items():
            for key in sorted(k for k in seconds if k[2] == hook):
                labels.append(f"{name}, {batch}, {key[0]}, {key[1]}")
                values.append(100 * statistics.median(overheads(seconds, key)))
        figure.add_bar(x=labels, y=values, name=hook)
    figure.update_yaxes(title="overhead, % of unsteered")
    return figure.update_layout(title="Cost of hooks in generation", barmode="group", template="plotly_white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "wide"], choices=["tiny", "wide"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--hooks", nargs="+", default=list(HOOKS), choices=HOOKS, metavar="HOOK", help=", ".join(HOOKS))
    parser.add_argument(
        "--layers", nargs="+", default=list(LAYERS), choices=LAYERS, metavar="LAYERS", help=", ".join(LAYERS)
    )
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument(
        "--clock", default="wall", choices=list(CLOCKS), help="cpu: of this process, where others share the machine"
    )
    parser.add_argument(
        "--inside", action="store_true", help="count what hooks take, in place of differences between runs"
    )
    parser.add_argument("--out", type=Path, default=None, help="HTML file for the figure")
    options = parser.parse_args()
    results = {}
    for name in options.models:
        ids = AutoTokenizer.from_pretrained(model_folder()) if name == "tiny" else tokenizer()
        model = make_model(name)
        with tempfile.TemporaryDirectory() as folder:
            # A bridge takes the model over that it is made of: it needs one of its own.
            for part in (model, ids):
                part.save_pretrained(folder)
            bridge = rl.load_model(folder)
        for batch in options.batches:
            found = settings(model, bridge, batch, options.prompt, options.new)
            wanted = {("-", UNSTEERED), *itertools.product(options.layers, options.hooks)}
            found = {key: run for key, run in found.items() if key[1:] in wanted}
            way = measure_inside if options.inside else measure
            results[name, batch] = way(found, options.rounds, CLOCKS[options.clock])
            report(name, batch, options.new, results[name, batch])
    if options.out is not None:
        plot(results).write_html(options.out)


if __name__ == "__main__":
    main()
