"""`Benchmark`: arms on the folds of one task, each at the same budgets of KL; finished arms are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from radiant_lens import _checks
from radiant_lens._files import check_target, load_json, save_json
from radiant_lens.analysis.sensitivity import require_gain
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import desirable_statements
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.few_shot import question_names
from radiant_lens.datasets.records import Prompt
from radiant_lens.distributed import progress_bar
from radiant_lens.errors import ArtefactError, DataError, InvalidArgumentError, LeakageError
from radiant_lens.models.identity import signature
from radiant_lens.models.lengths import within_context
from radiant_lens.studies.benchmark.arms import ARMS, AnswerArm, Fold, SteeringArm, TextArm
from radiant_lens.studies.benchmark.choice import Choice, choose
from radiant_lens.studies.benchmark.continuations import Continuations
from radiant_lens.studies.benchmark.result import BenchmarkResult
from radiant_lens.studies.benchmark.scores import Rows, Scorer, without_model
from radiant_lens.studies.cells import cell_key, data_fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = (0.02, 0.08, 0.25)
UNSTEERED = "none"
_KIND, _CONTINUED = "benchmark arm", "benchmark continuations"
# Part of every key: a new number makes all that earlier versions kept unknown.
_FORMAT = 3
_NO_BUDGET: dict[str, Any] = {"budget": None, "gate": "", "strength": None, "validation_kl": None}


class _Finished(NamedTuple):
    """Rows of an arm on one fold, and why some gate or budget has none."""

    rows: Rows
    notes: list[str]


@dataclass(frozen=True)
class Benchmark:
    """Compare steerings on one task at the same KL, with the same gates on offer to all policies of activations.

    The groups are split into two halves. Each in turn is the test part of a fold. The other is split into training and
    validation parts, on which all is fitted and chosen: a steering for each gate, its strength at each budget of KL,
    and the gate with the most MC2 at that budget. Trained shifts act without a gate, the paper's recipe under its own.
    The test part is scored once for each arm and budget, with the questions' own answers and with those of other
    questions (what rises there is style, not truth), and greedy answers to its first questions are judged.

    With `continuations` each steering is also tried on prompts of another kind: many samples of each, of which the
    worst counts, as RealToxicityPrompts asks for.

    Args:
        model: from `load_model`.
        data: prompts with correct and incorrect answers, and statements of both classes.
        arms: names in `ARMS`; None for all.
        budgets: KL in nats a token on desirable validation text.
        folds: 0, 1 or both.
        n_train: training groups on which steerings are fitted, drawn at random; None for all.
        n_validation: validation groups on which strengths and gates are chosen, drawn at random; None for all.
        n_test: test groups that are scored, drawn at random; None for all.
        n_answered: test groups whose generated answers are judged, drawn at random from these; 0 for none.
        seed: of the splits and draws.
        out: folder for finished arms and the steerings that they chose (`kl-BUDGET` in a folder for each); a rerun
            computes what is missing. None: nothing is kept.
        transfer: data of other tasks, each with a name of its own.
        continuations: prompts to be continued by every steering, half of them on each fold; None for none.
    """

    model: TransformerBridge
    data: Dataset
    arms: Sequence[str] | None = None
    budgets: Sequence[float] = BUDGETS
    folds: Sequence[int] = (0, 1)
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    n_answered: int = 40
    seed: int = 0
    out: str | Path | None = None
    transfer: Sequence[Dataset] = ()
    continuations: Continuations | None = None

    def __post_init__(self) -> None:
        """Check all settings before anything is computed."""
        for data in (self.data, *self.transfer):
            _checks.instance("data", data, Dataset)
        for name in self.names:
            _checks.known("arm of the benchmark", name, ARMS)
        for budget in self.budgets:
            _checks.between("budgets", budget, 0)
        for fold in self.folds:
            _checks.whole("folds", fold, 0, 1)
        for name, values in (("arms", self.names), ("budgets", self.budgets), ("folds", self.folds)):
            if not len(values) or len(set(values)) < len(values):
                raise InvalidArgumentError(f"`{name}` must be at least one, each once; got {list(values)!r}.")
        tested = [data.name for data in self._tasks]
        if len(set(tested)) < len(tested):
            raise InvalidArgumentError(
                f"`transfer`: every task needs a name of its own; got {tested!r}. Name a file otherwise, or use "
                "`dataclasses.replace(data, name=...)`."
            )
        for name in ("n_train", "n_validation", "n_test"):
            if getattr(self, name) is not None:
                _checks.whole(name, getattr(self, name), 1)
        _checks.whole("n_answered", self.n_answered, 0)
        _checks.seed(self.seed)
        if self.continuations is not None:
            _checks.instance("continuations", self.continuations, Continuations)
        for data in self._tasks:
            desirable_statements(data)
            require_gain(data.prompts)
        if self.out is not None:
            check_target(Path(self.out) / "arm.json")
        # NumPy's numbers, which people get from `linspace`, would be written otherwise than Python's.
        object.__setattr__(self, "budgets", tuple(float(budget) for budget in self.budgets))

    @property
    def names(self) -> list[str]:
        """The arms, by name."""
        return list(ARMS if self.arms is None else self.arms)

    def settings(self) -> dict[str, Any]:
        """The settings, as JSON: model and data by name."""
        names = {"model": signature(self.model)["name"], "data": self.data.name, "arms": self.names}
        plain = ("budgets", "folds", "n_train", "n_validation", "n_test", "n_answered", "seed")
        precision = {"dtype": str(self.model.cfg.dtype).removeprefix("torch.")}
        transfer = [data.name for data in self.transfer]
        settings = {**names, **precision, **{k: getattr(self, k) for k in plain}, "transfer": transfer}
        if self.continuations is not None:
            settings["continuations"] = self.continuations.settings()
        return settings

    @property
    def _tasks(self) -> list[Dataset]:
        """All that is tested: the task itself first."""
        return [self.data, *self.transfer]

    def make_fold(self, number: int) -> Fold:
        """Split the data; nothing is collected or fitted yet."""
        developed = self._half(self.data, number)
        train, validation = developed.split((0.8, 0.2), seed=self.seed)
        train = _drawn(train, self.n_train, self.seed)
        return Fold(self.model, train, validation, self.test_part(self.data, number), self.seed)

    def _half(self, data: Dataset, number: int) -> Dataset:
        return within_context(self.model, data).split((0.5, 0.5), seed=self.seed)[number]

    def test_part(self, data: Dataset, number: int) -> Dataset:
        """The groups of a task that are scored on a fold.

        Questions of another task that this one has in training or validation, too, are left out.

        Raises:
            DataError: no question is left.
        """
        half = self._half(data, 1 - number)
        return _drawn(half if data is self.data else self._unknown(half, number), self.n_test, self.seed)

    def _unknown(self, data: Dataset, number: int) -> Dataset:
        """The groups none of whose questions is in training or validation on a fold."""
        developed = self._half(self.data, number)
        known = question_names((*developed.prompts, *developed.statements))
        records = (*data.prompts, *data.statements)
        shared = {record.group for record in records if question_names([record]) & known}
        if shared >= data.groups:
            raise DataError(f"Every question of {data.name!r} is among those on which {self.data.name!r} is fitted.")
        return data.only(data.groups - shared)

    def continued(self, number: int) -> Sequence[Prompt]:
        """The prompts that are continued on a fold; none of them is a question of its training or validation part.

        Raises:
            DataError: no prompt is left.
        """
        assert self.continuations is not None
        half = self._half(self._prompts, 1 - number)
        return _drawn(self._unknown(half, number), self.continuations.n_groups, self.seed).prompts

    @cached_property
    def _prompts(self) -> Dataset:
        assert self.continuations is not None
        return self.continuations.fitting(self.model)

    def run(self, *, progress: bool = False) -> BenchmarkResult:
        """Compute the missing arms; returns the table of all.

        Args:
            progress: show a progress bar with the time left.

        Raises:
            DataError: a fold leaves no question of another task to test, or no prompt to continue; before anything is
                computed.
        """
        for number in self.folds:
            for data in self.transfer:
                self.test_part(data, number)
            if self.continuations is not None:
                self.continued(number)
        rows: Rows = []
        notes: list[str] = []
        continued: list[pd.DataFrame] = []
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with progress_bar(*columns, shown=progress) as bar:
            n_tasks = len(self._tasks) + (self.continuations is not None)
            task = bar.add_task(self.data.name, total=len(self.folds) * (1 + len(self.names)) * n_tasks)
            for number in self.folds:
                run = _FoldRun(self, number, progress)
                for name in (UNSTEERED, *self.names):
                    for data in self._tasks:
                        bar.update(task, description=f"{name}, fold {number}, {data.name}")
                        finished = run.finished(name, data)
                        rows += [{"data": data.name, **row} for row in finished.rows]
                        notes += [f"{name}, fold {number}: {note}" for note in finished.notes]
                        bar.advance(task)
                    if self.continuations is not None:
                        bar.update(task, description=f"{name}, fold {number}, continuations")
                        continued += run.continued(name)
                        bar.advance(task)
        table = pd.concat(continued, ignore_index=True) if continued else None
        return BenchmarkResult(self.data.name, pd.DataFrame(rows), tuple(dict.fromkeys(notes)), table)


class _FoldRun:
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
        continuations, arm = self.benchmark.continuations, None if name == UNSTEERED else ARMS[name]
        assert continuations is not None
        if not (arm is None or isinstance(arm, SteeringArm)):
            return []
        prompts = self.benchmark.continued(self.number)
        key = cell_key({**self._choice_settings(name), **continuations.key()})
        finished = self._kept(
            _CONTINUED, name, continuations.data, key, lambda: self._continue(name, arm, continuations, prompts)
        )
        return [
            continuations.parts(prompts, row["answers"]).assign(fold=self.number, arm=name, budget=row["budget"])
            for row in finished.rows
        ]

    def _continue(
        self, name: str, arm: SteeringArm | None, continuations: Continuations, prompts: Sequence[Prompt]
    ) -> _Finished:
        """The answers at each budget."""
        steerings: dict[float | None, Steering | None] = {None: None}
        if arm is not None:
            steerings = {chosen.budget: chosen.steering for chosen in self._choice(name, arm).chosen}
        model, seed = self.benchmark.model, self.benchmark.seed
        return _Finished(
            [
                {"budget": budget, "answers": continuations.answers(model, prompts, steering, seed)}
                for budget, steering in steerings.items()
            ],
            [],
        )

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
        validation = _drawn(fold.validation, benchmark.n_validation, benchmark.seed)
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
            "gates": list(arm.gates) if isinstance(arm, SteeringArm) else [],
            # The unsteered model has no budget.
            "budgets": [] if name == UNSTEERED else list(benchmark.budgets),
            "n_validation": benchmark.n_validation,
            "seed": benchmark.seed,
            # Not among the settings of folders that were kept before there was a choice.
            **({} if benchmark.n_train is None else {"n_train": benchmark.n_train}),
        }


def _drawn(data: Dataset, n_groups: int | None, seed: int) -> Dataset:
    return data if n_groups is None else data.sample(n_groups, seed=seed)
