"""All heads at once, against a loop over heads: `python tests/benchmarks/detectors.py [--out detectors.html]`.

The peers fit one head after the other on standardised activations: full-batch Adam on the same smoothed risk (1,000
epochs, as the paper's code trains), and scikit-learn's logistic regression with balanced classes. They are timed on a
few heads drawn at random, in turns with the joint fit, and their time for all heads is that number times the heads (a
loop has no other cost). Validation risk is `FPR + FNR` on the test half, on those same heads.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import plotly.graph_objects as go
import torch
from sklearn.linear_model import LogisticRegression

import radiant_lens as rl
from radiant_lens.statistics.rates import error_rates

Scores = tuple[torch.Tensor, torch.Tensor]
LEARNING_RATES = (1e-3, 1e-2)


def adam(x: torch.Tensor, y: torch.Tensor, lr: float) -> Scores:
    """1,000 full-batch epochs of one head."""
    torch.manual_seed(0)
    probe = torch.nn.Linear(x.shape[1], 1)
    optimiser = torch.optim.Adam(probe.parameters(), lr=lr)
    for _ in range(1000):
        optimiser.zero_grad()
        flagged = probe(x)[:, 0].sigmoid()
        (flagged[y == 0].mean() + (1 - flagged[y == 1]).mean()).backward()
        optimiser.step()
    return probe.weight.detach()[0], probe.bias.detach()[0]


def logistic(x: torch.Tensor, y: torch.Tensor) -> Scores:
    fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x.numpy(), y.numpy())
    return torch.tensor(fitted.coef_[0]).float(), torch.tensor(fitted.intercept_[0]).float()


OURS = {"all heads at once": 12, "the same, 100 steps a phase": 100}
PEERS = {
    **{f"Adam, learning rate {lr:g}": lambda x, y, lr=lr: adam(x, y, lr) for lr in LEARNING_RATES},
    "logistic regression": logistic,
}


def synthetic(n: int, n_layers: int, n_heads: int, d: int, seed: int) -> rl.HeadCache:
    """Correlated activations; how far the classes stand apart differs from head to head."""
    generator = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(99)
    mixing = torch.randn(n_layers, n_heads, d, d, generator=world) / d**0.5
    shift = torch.randn(n_layers, n_heads, d, generator=world) * torch.rand(n_layers, n_heads, 1, generator=world) / 4
    labels = torch.randint(0, 2, (n,), generator=generator)
    z = torch.randn(n, n_layers, n_heads, d, generator=generator) + labels[:, None, None, None] * shift
    z = torch.einsum("nlhd,lhde->nlhe", z, mixing)
    texts = tuple(f"{seed} {i}" for i in range(n))
    return rl.HeadCache(z, labels, torch.arange(n), torch.zeros(n, dtype=torch.long), texts, texts)


def embedded() -> tuple[rl.HeadCache, rl.HeadCache]:
    model = rl.load_model("tiny", device="cpu")
    train, validation, _ = rl.load_dataset("tiny-facts").split((0.6, 0.2, 0.2), seed=0)
    return rl.collect(model, train), rl.collect(model, validation)


def compare(name: str, train: rl.HeadCache, validation: rl.HeadCache, n_rounds: int) -> dict[str, list[float]]:
    """Seconds for all heads, of every way and round; prints medians, ratios and risks."""
    test = validation.split((0.5, 0.5), seed=0)[1]
    n_all = train.n_layers * train.n_heads
    draw, seconds, risks = random.Random(0), {}, {}
    for _ in range(n_rounds):
        layer, head = divmod(draw.randrange(n_all), train.n_heads)
        for way, n_steps in OURS.items():
            start = time.perf_counter()
            detector = rl.RiskAwareDetector(max_iterations=n_steps).fit(train, validation=validation)
            seconds.setdefault(way, []).append(time.perf_counter() - start)
            risks.setdefault(way, []).append(float(detector.head_risk_[layer, head]))
        start = time.perf_counter()
        x = train.z[:, layer, head].clone()
        mean, std = x.mean(0), x.std(0)
        x = (x - mean) / std
        common = time.perf_counter() - start
        held = (test.z[:, layer, head] - mean) / std
        for peer, fit in PEERS.items():
            start = time.perf_counter()
            weight, bias = fit(x, train.labels)
            seconds.setdefault(peer, []).append(n_all * (common + time.perf_counter() - start))
            flags = held @ weight + bias >= 0
            risks.setdefault(peer, []).append(float(error_rates(flags, test.labels).risk(1.0)))
    print(f"\n{name}: {len(train)} examples, {n_all} heads of {train.z.shape[-1]}, {n_rounds} rounds\n")
    print(f"| way | seconds, all heads | {' | '.join(f'times {way}' for way in OURS)} | mean validation risk |")
    print("|-|-|" + "-|" * len(OURS) + "-|")
    for way, values in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(values, seconds[ours])) for ours in OURS]
        shown = " | ".join(f"{ratio:.1f}" for ratio in ratios)
        print(f"| {way} | {statistics.median(values):.1f} | {shown} | {statistics.mean(risks[way]):.3f} |")
    return seconds


def figure(found: dict[str, dict[str, list[float]]]) -> go.Figure:
    ways = list(next(iter(found.values())))
    traces = [go.Bar(name=way, x=list(found), y=[statistics.median(s[way]) for s in found.values()]) for way in ways]
    return go.Figure(traces).update_layout(yaxis={"type": "log", "title": "seconds for all heads, CPU"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="detectors.html")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = {
        "embedded model, tiny-facts": embedded(),
        "synthetic, 12 x 12 heads of 64": (synthetic(2000, 12, 12, 64, 0), synthetic(1000, 12, 12, 64, 1)),
        "synthetic, 32 x 32 heads of 128": (synthetic(1000, 32, 32, 128, 0), synthetic(500, 32, 32, 128, 1)),
    }
    found = {name: compare(name, *caches, arguments.rounds) for name, caches in data.items()}
    figure(found).write_html(arguments.out)


if __name__ == "__main__":
    main()
