"""`FoldRun` computes the rows of every arm on one fold, or takes them from the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from radiant_lens._files import load_json, save_json
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt
from radiant_lens.errors import ArtefactError, DataError, LeakageError
from radiant_lens.models.identity import signature
from radiant_lens.studies.benchmark.arms import ARMS, AnswerArm, SteeringArm, TextArm
from radiant_lens.studies.benchmark.choice import Choice, choose
from radiant_lens.studies.benchmark.scores import UNSTEERED, Rows, Scorer, without_model
from radiant_lens.studies.cells import cell_key, data_fingerprint

if TYPE_CHECKING:
    from radiant_lens.studies.benchmark.benchmark import Benchmark

_KIND, _CONTINUED = "benchmark arm", "benchmark continuations"
# Part of every key: a new number makes all that earlier versions kept unknown.
_FORMAT = 8
_NO_BUDGET: dict[str, Any] = {"budget": None, "gate": "", "strength": None, "validation_kl": None}


class _Finished(NamedTuple):
    """Rows of an arm on one fold, and why some gate or budget has none."""

    rows: Rows
    notes: list[str]


class FoldRun:
    """The arms of a benchmark on one fold; what is finished comes from the folder."""

    def __init__(self, benchmark: Benchmark, number: int, progress: bool) -> None:
        self.benchmark, self.number = benchmark, number
        self.fold = replace(benchmark.make_fold(number), progress=progress)
        self._chosen: tuple[str, Choice] | None = None
        self._scorers: dict[str, Scorer] = {}
        self._signature = signature(benchmark.model)

    def finished(self, name: str, data: Dataset) -> _Finished:
        """Rows of an arm on one task."""
        return self._kept(_KIND, name, data, self._key(name, data), lambda: self._compute(name, data))

    def continued(self, name: str) -> list[pd.DataFrame]:
        """Parts of the metrics of an arm's continuations, by budget; none of an arm that is no steering."""
        continuations = self.benchmark.continuations
        assert continuations is not None
        if name != UNSTEERED and not isinstance(ARMS[name], SteeringArm):
            return []
        return [
            continuations.parts(self._prompts, row["answers"], row["costs"]).assign(
                fold=self.number, arm=name, budget=row["budget"]
            )
            for row in (self._unsteered if name == UNSTEERED else self._continuations(name))
        ]

    @cached_property
    def _prompts(self) -> Sequence[Prompt]:
        return self.benchmark.continued(self.number)

    @cached_property
    def _unsteered(self) -> Rows:
        """The continuations of the unsteered model, one row."""
        return self._continuations(UNSTEERED)

    def _continuations(self, name: str) -> Rows:
        """The continuations of an arm at each budget, and its KL on those of the unsteered model."""
        benchmark, continuations, arm = self.benchmark, self.benchmark.continuations, ARMS.get(name)
        assert continuations is not None

        def row(budget: float | None, steering: Steering | None) -> dict[str, Any]:
            answers = continuations.answers(benchmark.model, self._prompts, steering, benchmark.seed)
            plain = answers if steering is None else self._unsteered[0]["answers"]
            costs = continuations.costs(benchmark.model, self._prompts, plain, steering)
            return {"budget": budget, "answers": answers, "costs": costs}

        def compute() -> _Finished:
            if not isinstance(arm, SteeringArm):
                return _Finished([row(None, None)], [])
            return _Finished([row(chosen.budget, chosen.steering) for chosen in self._choice(name, arm).chosen], [])

        key = cell_key({**self._choice_settings(name), **continuations.key()})
        return self._kept(_CONTINUED, name, continuations.data, key, compute).rows

    def _kept(self, kind: str, name: str, data: Dataset, key: str, compute: Callable[[], _Finished]) -> _Finished:
        """Return the rows that were kept under a key, or compute and keep them."""
        if self.benchmark.out is None:
            return compute()
        path = Path(self.benchmark.out) / f"{key}.json"
        if path.exists():
            content = load_json(path, kind)
            if not isinstance(content.get("rows"), list):
                raise ArtefactError(f"The saved {kind} at {str(path)!r} is damaged: it has no rows.")
            return _Finished(content["rows"], content.get("notes", []))
        finished = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, kind, {"fold": self.number, "arm": name, "data": data.name, **finished._asdict()})
        return finished

    def _compute(self, name: str, data: Dataset) -> _Finished:
        start = time.perf_counter()
        place = {"fold": self.number, "arm": name}
        arm = None if name == UNSTEERED else ARMS[name]
        if isinstance(arm, SteeringArm):
            choice, scorer = self._choice(name, arm), self._scorer(data)
            rows = [
                {**place, **chosen.row(), "seconds": choice.seconds, **row}
                for chosen in choice.chosen
                for row in scorer.steered(chosen.steering)
            ]
            return _Finished(rows, list(choice.notes))
        try:
            scores = self._scores(arm, data)
        except (LeakageError, DataError) as reason:
            # Text that fits the task itself need not fit another.
            if data is self.benchmark.data:
                raise
            return _Finished([], [f"on {data.name}: {reason}"])
        seconds = time.perf_counter() - start
        return _Finished([{**place, **_NO_BUDGET, "seconds": seconds, **row} for row in scores], [])

    def _scores(self, arm: TextArm | AnswerArm | None, data: Dataset) -> Rows:
        """Rows of an arm that has no strength."""
        scorer = self._scorer(data)
        if arm is None:
            return scorer.steered(None)
        if isinstance(arm, AnswerArm):
            return without_model(arm.score(self.fold.train, scorer.test))
        return scorer.changed(arm.change(replace(self.fold, test=scorer.test)))

    def _scorer(self, data: Dataset) -> Scorer:
        """The scorer of a task, made once."""
        if data.name not in self._scorers:
            benchmark, fold = self.benchmark, self.fold
            own = data is benchmark.data
            test = fold.test if own else benchmark.test_part(data, self.number)
            logits = fold.unsteered["test"] if own else None
            self._scorers[data.name] = Scorer(fold.model, test, benchmark.n_answered, benchmark.seed, logits)
        return self._scorers[data.name]

    def _choice(self, name: str, arm: SteeringArm) -> Choice:
        """The steerings of an arm: those of the task before, those in the folder, or new ones."""
        if self._chosen is None or self._chosen[0] != name:
            self._chosen = name, self._kept_choice(name, arm)
        return self._chosen[1]

    def _kept_choice(self, name: str, arm: SteeringArm) -> Choice:
        benchmark, fold = self.benchmark, self.fold
        folder = None if benchmark.out is None else Path(benchmark.out) / cell_key(self._choice_settings(name))
        stored = None if folder is None else Choice.load(folder)
        if stored is not None:
            return stored
        validation = draw_groups(fold.validation, benchmark.n_validation, benchmark.seed)
        choice = choose(fold, arm, benchmark.budgets, validation)
        if folder is not None:
            choice.save(folder, {"fold": self.number, "arm": name})
        return choice

    def _key(self, name: str, data: Dataset) -> str:
        """Hash of all that the rows of an arm on one task depend on."""
        benchmark = self.benchmark
        settings = {
            **self._choice_settings(name),
            "n_test": benchmark.n_test,
            "n_answered": benchmark.n_answered,
        }
        return cell_key(settings if data is benchmark.data else {**settings, "tested": data_fingerprint(data)})

    def _choice_settings(self, name: str) -> dict[str, Any]:
        """All that the steerings of an arm depend on."""
        benchmark, arm = self.benchmark, ARMS.get(name)
        return {
            "benchmark": _FORMAT,
            "model": self._signature,
            "data": data_fingerprint(benchmark.data),
            "fold": self.number,
            "arm": name,
            "gates": list(arm.gates(benchmark.gates)) if isinstance(arm, SteeringArm) else [],
            # The unsteered model has no budget.
            "budgets": [] if name == UNSTEERED else list(benchmark.budgets),
            "n_train": None if name == UNSTEERED else benchmark.n_train,
            "n_validation": benchmark.n_validation,
            "seed": benchmark.seed,
        }


def draw_groups(data: Dataset, n_groups: int | None, seed: int) -> Dataset:
    """Draw groups at random; None for all."""
    return data if n_groups is None else data.sample(n_groups, seed=seed)
