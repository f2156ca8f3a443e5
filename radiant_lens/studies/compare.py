"""Several steerings on the same prompts, and what a method pays for a share of desirable answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation.evaluate import evaluate
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.policies.steering import Steering
from radiant_lens.studies.experiment import Experiment

UNSTEERED = "no steering"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several steerings on the same prompts, the first one being the baseline."""

    evaluations: dict[str, Evaluation]

    @property
    def baseline(self) -> str:
        """Name of the baseline."""
        return next(iter(self.evaluations))

    @property
    def conditions(self) -> list[str]:
        """Conditions under which prompts were answered."""
        return list(self.evaluations[self.baseline].table["condition"].unique())

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each steering and metric: value, interval, and gain over the baseline with its interval."""
        rows = []
        base = self.evaluations[self.baseline]
        for name, evaluation in self.evaluations.items():
            for metric, interval in evaluation.metrics.items():
                verdict, _, condition = metric.partition("/")
                row = {"steering": name, "metric": metric, **interval._asdict()}
                if verdict in ("correct", "incorrect", "other"):
                    gain = evaluation.gain(base, verdict, condition or None)
                    row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                rows.append(row)
        return pd.DataFrame(rows)

    def to_markdown(self) -> str:
        """A row for each steering: correct and other answers under each condition, KL, share of tokens edited."""
        conditions = self.conditions
        suffixes = [f"/{c}" for c in conditions] if len(conditions) > 1 else [""]
        head = [
            "steering",
            *(f"correct {s.strip('/').replace('_', ' ')}".strip() for s in suffixes),
            "other",
            "KL (nats)",
            "edited",
        ]
        lines = ["| " + " | ".join(head) + " |", "|" + "-|" * len(head)]
        for name, evaluation in self.evaluations.items():
            metrics = evaluation.metrics
            shares = [_percent(metrics[f"correct{s}"]) for s in suffixes]
            cells = [
                name,
                *shares,
                _percent(metrics["other"]),
                f"{metrics['kl'].value:.3f}",
                f"{metrics['edited_share'].value:.0%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def _percent(interval: tuple[float, float, float]) -> str:
    value, low, high = (f"{100 * x:.0f}" for x in interval)
    return f"{value}% [{low}, {high}]"


def compare(
    experiment: Experiment,
    steerings: Mapping[str, Steering | None],
    *,
    n_samples: int = 4,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
) -> Comparison:
    """Evaluate each steering on the test part, with the same seed.

    Args:
        experiment: from `prepare`.
        steerings: by name; None is the model as it is. The first is the baseline of gains.
        n_samples, max_new_tokens, temperature, seed: as for `evaluate`.
    """
    if not steerings:
        raise InvalidArgumentError("`steerings` must hold at least one entry; got none.")
    options: dict[str, Any] = {
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    return Comparison(
        {name: evaluate(experiment.model, experiment.test, s, **options) for name, s in steerings.items()}
    )


def least_cost(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """Least cost at which a method reaches a share, on the best curve through its `(share, cost)` points.

    The curve joins the points that no other beats in both.

    Returns:
        The interpolated cost; None where no point reaches the share.

    Example:
        >>> least_cost([(0.2, 1.0), (0.4, 2.0), (0.3, 9.0)], 0.3)
        1.5
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[1], -p[0])):
        if not best or point[0] > best[-1][0]:
            best.append(point)
    if not best or best[-1][0] < share:
        return None
    shares, costs = zip(*best)
    return float(np.interp(share, shares, costs))
