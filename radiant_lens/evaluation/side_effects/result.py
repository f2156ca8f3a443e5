"""`SideEffects`: the metrics of a plain and a steered model side by side, with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from radiant_lens.evaluation.side_effects.metrics import METRICS, SideEffect
from radiant_lens.notebook import card, html_table


@dataclass(frozen=True, repr=False)
class SideEffects:
    """Result of `side_effects`.

    Attributes:
        metrics: each with its value without and with the steering and the difference, by name.
        answers: one row for each request: request, group, plain, steered.
        settings: of the call.
    """

    metrics: dict[str, SideEffect]
    answers: pd.DataFrame
    settings: dict[str, Any]

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each metric: metric, plain, steered, difference, low, high, reading, meaning.

        `low` and `high` are the ends of the 95% interval of the difference.
        """
        return pd.DataFrame(
            [
                {
                    "metric": name,
                    "plain": effect.plain.value,
                    "steered": effect.steered.value,
                    "difference": effect.difference.value,
                    "low": effect.difference.low,
                    "high": effect.difference.high,
                    "reading": effect.reading,
                    "meaning": METRICS[name].words,
                }
                for name, effect in self.metrics.items()
            ]
        )

    def to_markdown(self) -> str:
        """Write the metrics as a table."""
        lines = ["| metric | plain | steered | difference [95% interval] | reading |", "|-|-|-|-|-|"]
        lines += [
            f"| {METRICS[name].words} | {e.plain.value:.3f} | {e.steered.value:.3f} | {e.difference:+.3f} | "
            f"{e.reading} |"
            for name, e in self.metrics.items()
        ]
        return "\n".join(lines)

    def changed_answers(self, n: int | None = None) -> pd.DataFrame:
        """Return the first `n` rows of `answers` in which the steering changes the answer; default all of them."""
        rows: Any = self.answers[self.answers["plain"] != self.answers["steered"]]
        return rows.head(len(rows) if n is None else n)

    def _repr_html_(self) -> str:
        rows = [
            {
                "metric": name,
                "plain": effect.plain.value,
                "steered": effect.steered.value,
                "difference [95% interval]": format(effect.difference, "+.3f"),
                "reading": effect.reading,
            }
            for name, effect in self.metrics.items()
        ]
        differ = f"{len(self.changed_answers())} of {len(self.answers)} answers to harmless requests differ"
        return card("SideEffects", differ, html_table(rows, most=len(rows)))

    def __repr__(self) -> str:
        """The metrics that changed, in one line."""
        changed = [f"{name} {e.difference:+.3f}" for name, e in self.metrics.items() if e.reading == "changed"]
        return (
            f"SideEffects({len(self.metrics)} metrics, changed: {', '.join(changed) or 'none'}; "
            f"{len(self.changed_answers())} of {len(self.answers)} answers differ)"
        )
