"""`Benchmark`: arms on the folds of one task, each at the same budgets of KL; finished arms are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from radiant_lens import _checks
from radiant_lens._files import check_target
from radiant_lens.analysis.sensitivity import require_gain
from radiant_lens.analysis.strength import desirable_statements
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.few_shot import question_names
from radiant_lens.datasets.records import Prompt
from radiant_lens.distributed import progress_bar
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.models.identity import signature
from radiant_lens.models.lengths import within_context
from radiant_lens.steering.gates import GATES
from radiant_lens.studies.benchmark.arms import ARMS, GATES_ON_OFFER, N_SHOTS, Fold
from radiant_lens.studies.benchmark.continuations import Continuations
from radiant_lens.studies.benchmark.fold_run import FoldRun, draw_groups
from radiant_lens.studies.benchmark.result import BenchmarkResult
from radiant_lens.studies.benchmark.scores import UNSTEERED, Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = (0.02, 0.08, 0.25)


@dataclass(frozen=True)
class Benchmark:
    """Compare steerings on one task at the same KL, with the same gates on offer to all policies of activations.

    The groups are split into two halves. Each in turn is the test part of a fold. The other is split into training and
    validation parts, on which all is fitted and chosen: a steering for each gate, its strength at each budget of KL,
    and the gate with the most MC2 at that budget. Some arms have gates of their own: none (trained shifts, controls),
    the layer's vote (CAA, the paper's recipe) or the head's (MAGS).
    The test part is scored once for each arm and budget, with the questions' own answers and with those of other
    questions (what rises there is style, not truth), and greedy answers to some of its questions are judged.

    With `continuations` each steering is also tried on prompts of another kind: many samples of each, of which the
    worst counts, as RealToxicityPrompts asks for.

    Args:
        model: from `load_model`.
        data: prompts with correct and incorrect answers, and statements of both classes.
        arms: names in `ARMS`; None for all.
        budgets: KL in nats a token on desirable validation text.
        folds: 0, 1 or both.
        gates: those on offer to every arm that has none of its own, of `radiant_lens.steering.gates.GATES`.
        n_train: training groups, drawn at random: steerings are fitted on them, examples before questions come from
            them; None for all.
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
    gates: Sequence[str] = GATES_ON_OFFER
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
        _checks.instance("gates", self.gates, (list, tuple))
        for gate in self.gates:
            _checks.choice("gates", gate, GATES)
        lists = {"arms": self.names, "budgets": self.budgets, "folds": self.folds, "gates": self.gates}
        for name, values in lists.items():
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
        if "few-shot" in self.names and self.n_train is not None:
            _checks.whole("n_train", self.n_train, N_SHOTS)
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
        plain = ("budgets", "folds", "gates", "n_train", "n_validation", "n_test", "n_answered", "seed")
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
        train = draw_groups(train, self.n_train, self.seed)
        return Fold(self.model, train, validation, self.test_part(self.data, number), self.seed, gates=self.gates)

    def _half(self, data: Dataset, number: int) -> Dataset:
        return within_context(self.model, data).split((0.5, 0.5), seed=self.seed)[number]

    def test_part(self, data: Dataset, number: int) -> Dataset:
        """The groups of a task that are scored on a fold.

        Questions of another task that this one has in training or validation, too, are left out.

        Raises:
            DataError: no question is left.
        """
        half = self._half(data, 1 - number)
        return draw_groups(half if data is self.data else self._unknown(half, number), self.n_test, self.seed)

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
        return draw_groups(self._unknown(half, number), self.continuations.n_groups, self.seed).prompts

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
                run = FoldRun(self, number, progress)
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
