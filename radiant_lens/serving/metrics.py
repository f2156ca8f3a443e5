"""Counts of edited activations, as counters of Prometheus beside those of vLLM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from radiant_lens.serving.layer_edits import LayerEdits

_SECONDS = 1.0


class Counters:
    """Counters of one process; those of several processes add up, since each has its own heads and layers.

    Args:
        names: of the steerings, in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._before = [[0] * len(names), [0] * len(names)]
        self._read = -_SECONDS

    def update(self, edits: LayerEdits, *, now: bool) -> None:
        """Read what was edited; not more than once a second, since an accelerator must wait for it, unless `now`."""
        time_ = time.monotonic()
        if not now and time_ - self._read < _SECONDS:
            return
        self._read = time_
        counts = list(edits.counts())
        for counter, before, after in zip(_counters(), self._before, counts):
            for name, more in zip(self._names, (b - a for a, b in zip(before, after))):
                if more:
                    counter.labels(steering=name).inc(more)
        self._before = counts


@cache
def _counters() -> tuple[Any, Any]:
    """Once in each process: Prometheus refuses a second counter of the same name."""
    # Imported here: the directory of several processes is read as the module is imported.
    from prometheus_client import Counter  # pyright: ignore[reportMissingImports]  # not in .venv

    return (
        Counter("radiant_lens:edited_activations", "Activations of edited heads that were edited.", ["steering"]),
        Counter(
            "radiant_lens:steered_activations",
            "Activations of edited heads from the last prompt token on, edited or not.",
            ["steering"],
        ),
    )
