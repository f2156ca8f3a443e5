"""Speed on a real model: `python tests/benchmarks/real_speed.py [--model smollm2-135m-instruct]`.

On one thread, in processor seconds, each beside its reference in turns; medians of the ratios, with 95% intervals:
collecting against bare passes over the same batches; generation at batch 8 with gated edits of one layer and of all
heads, and of all heads by evidence; scoring with a steering; effects of all heads against a bare forward and backward
pass over the same batches. Then, once, detectors and a policy of all heads on as many examples as half of TruthfulQA
gives (`--examples`), and, with `--least-kl`, the fit of least KL on four fifths of one half of the data, as the
benchmark splits them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from capture import batches
from detectors import synthetic
from generation import median_interval
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens.cli.kernels import bound_kernels
from radiant_lens.evaluation import score_choices
from radiant_lens.models.identity import signature
from radiant_lens.models.lengths import within_context
from radiant_lens.models.tokens import encode
from radiant_lens.steering.maps import EvidenceMaps

N_NEW = 24


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(what: str, ours: Callable[[], object], reference: Callable[[], object], n_rounds: int) -> None:
    """Print the seconds of ours over those of the reference."""
    for run in (ours, reference):
        run()
    ratios = []
    for i in range(n_rounds):
        pair = {i: seconds((ours, reference)[i]) for i in ((0, 1) if i % 2 else (1, 0))}
        ratios.append(pair[0] / pair[1])
    low, high = median_interval(ratios)
    print(f"| {what} | {statistics.median(ratios):.3f} | [{low:.3f}, {high:.3f}] |", flush=True)


def gated(model: object, layers: list[int]) -> rl.Steering:
    """Random detectors and maps of all heads of some layers, under the head's own gate."""
    config = model.cfg
    sites = [(layer, head) for layer in layers for head in range(config.n_heads)]
    steering = random_steering(config.n_layers, config.n_heads, config.d_head, gate="head", sites=sites)
    steering.meta["model"] = signature(model)
    return steering


def by_evidence(model: object) -> rl.Steering:
    """Random joint scores of all layers, each with a share of the layer below, and vectors of all heads by evidence."""
    config = model.cfg
    steering = random_steering(config.n_layers, config.n_heads, config.d_head, gate="none", hands_over=True)
    maps = steering.head_maps
    n = len(steering.sites)
    vectors = EvidenceMaps(torch.zeros_like(maps.write), maps.write, torch.zeros(n), torch.ones(n))
    return replace(steering, head_maps=vectors, meta={**steering.meta, "model": signature(model)})


def in_turns(model, data: rl.Dataset, n_rounds: int, only: str) -> None:
    config = model.cfg
    every = gated(model, list(range(config.n_layers)))
    one = gated(model, [config.n_layers // 2])
    graded = by_evidence(model)
    # Texts without a prompt: each has a row of its own, as in a bare pass.
    texts = [rl.Statement(s.text, s.label, s.group) for s in data.statements[:60]]
    rows = [e.ids for e in encode(model, [s.text for s in texts])]

    def bare() -> None:
        with torch.no_grad():
            for tokens, mask in batches(model, rows):
                model(tokens, attention_mask=mask.long())

    def backward() -> None:
        for tokens, mask in batches(model, answers):
            with torch.enable_grad():
                embedded = model.original_model.get_input_embeddings()(tokens).detach().requires_grad_()
                logits = model.original_model(inputs_embeds=embedded, attention_mask=mask.long()).logits
                scored = logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None]).sum()
                torch.autograd.grad(scored, [embedded])

    def answer_rows(prompt: rl.Prompt) -> list[list[int]]:
        answers = (*prompt.correct_answers, *prompt.incorrect_answers)
        return [e.ids for e in encode(model, [prompt.answered(a).text for a in answers])]

    few = data.only({p.group for p in data.prompts[:8]})
    answers = [row for prompt in few.prompts for row in answer_rows(prompt)]
    tokens = torch.randint(5, 1000, (8, 16), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False, "verbose": False}

    def generate(steering: rl.Steering | None) -> None:
        if steering is None:
            model.generate(tokens, return_type="tokens", **settings)
            return
        with rl.steer(model, steering):
            model.generate(tokens, return_type="tokens", **settings)

    scored = data.prompts[:10]
    pairs = {
        "collect, over bare passes": (lambda: rl.collect(model, texts, max_tokens=1024), bare),
        "generation, all heads gated": (lambda: generate(every), lambda: generate(None)),
        "generation, one layer gated": (lambda: generate(one), lambda: generate(None)),
        "generation, all heads by evidence": (lambda: generate(graded), lambda: generate(None)),
        "scoring with a steering": (lambda: score_choices(model, scored, every), lambda: score_choices(model, scored)),
        "head effects, over a forward and backward pass": (lambda: rl.head_effects(model, few, every), backward),
    }
    print("| ours over its reference | ratio | 95% |\n|-|-|-|")
    for what, (ours, reference) in pairs.items():
        if only in what:
            compare(what, ours, reference, n_rounds)


def fits(model, n: int) -> None:
    config = model.cfg
    heads = config.n_layers * config.n_heads
    train, validation = (
        synthetic(size, config.n_layers, config.n_heads, config.d_head, i) for i, size in enumerate((n, n // 4))
    )
    detector = rl.RiskAwareDetector()
    print(f"\n{heads} heads, {n:,} examples, {torch.get_num_threads()} threads, wall seconds: ", end="")
    start = time.perf_counter()
    detector.fit(train, validation=validation)
    print(f"detectors {time.perf_counter() - start:.1f}", end="", flush=True)
    start = time.perf_counter()
    rl.RadiantPolicy(heads="all").fit(train, detector)
    print(f", policy {time.perf_counter() - start:.1f}")


def least_kl(model, data: rl.Dataset) -> None:
    """Print the seconds of a fit, and the largest memory of this process so far."""
    half, _ = within_context(model, data).split((0.5, 0.5), seed=0)
    train, validation = half.split((0.8, 0.2), seed=0)
    answers = sum(len(p.correct_answers) + len(p.incorrect_answers) for p in train.prompts)
    start, processor = time.perf_counter(), time.process_time()
    rl.LeastKLPolicy(budget=0.08).fit(model, train, validation=validation)
    print(
        f"\nleast KL, {len(train.prompts)} questions, {answers:,} answers, {torch.get_num_threads()} threads: "
        f"{time.perf_counter() - start:.0f} s ({time.process_time() - processor:.0f} s of processor time), peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB with the model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="misconceptions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="ratios whose name holds this text")
    parser.add_argument("--examples", type=int, default=30_008)
    parser.add_argument("--threads", type=int, default=2, help="of the fits; all else runs on one")
    parser.add_argument("--least-kl", action="store_true")
    arguments = parser.parse_args()
    # As every command that loads a model does.
    bound_kernels()
    model = rl.load_model(arguments.model, device="cpu")
    torch.set_num_threads(1)
    data = rl.load_dataset(arguments.data, model=model.tokenizer)
    if arguments.rounds:
        in_turns(model, data, arguments.rounds, arguments.only)
    torch.set_num_threads(arguments.threads)
    if arguments.examples:
        fits(model, arguments.examples)
    if arguments.least_kl:
        least_kl(model, data)


if __name__ == "__main__":
    main()
