"""`Study`: arms with their controls over seeds; finished cells are kept, and only missing ones are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiant_lens import _checks
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.loading import load_dataset
from radiant_lens.distributed import alone, progress_bar, this_rank
from radiant_lens.errors import InvalidArgumentError, RankError
from radiant_lens.evaluation._evaluate import FAMILIES
from radiant_lens.evaluation.generation import check_sampling
from radiant_lens.evaluation.judges.registry import MODELS, RULES
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_model
from radiant_lens.studies._controls import RANDOM_METRICS
from radiant_lens.studies.arms import Arm
from radiant_lens.studies.cells import (
    SHUFFLED,
    UNSTEERED,
    Cell,
    CellStore,
    Fingerprints,
    arm_settings,
    cell_key,
)
from radiant_lens.studies.processes import in_processes
from radiant_lens.studies.results import Row, StudyResult
from radiant_lens.studies.runner import CellRunner, Hooks, Sources

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

CONTROLS = ("reference", "all")


class Study:
    """A grid of steerings, evaluated on held-out prompts together with their controls.

    Every study includes the model without steering. The reference arm (the first), or every arm, has two kinds of
    controls on the same heads: random directions of equal displacement, and detectors of shuffled labels that are
    forced to edit. Every cell (one arm or control, one seed) is written to `out` when it is done, under a hash of
    everything that it depends on; a rerun computes only missing cells.

    Use at least three seeds: each has a split and a fit of its own, and only from three on do the pooled intervals
    include the variation between fits (see `StudyResult.pooled`).

    Args:
        name: of the study.
        arms: what to compare (see `Arm` and `grid`).
        model: a name, a folder, or a model, for arms without a `model`.
        data: a name, a file, or a `Dataset`, for arms without `data`.
        seeds: of the splits, detectors and samples.
        n_samples, max_new_tokens, temperature, metrics, judge, fluency_model: as for `evaluate`; the last two by name.
        controls: "reference" or "all".
        n_shuffles: shuffles of the labels that the control averages; one alone can be anything, so at least 3.
        hooks: the user's own hook functions, by the name that an arm's `hooks` refers to. Kept results depend on the
            name alone: give changed functions another name.
        n_groups: use only the first groups of each data set, for a quick look.
        fractions: of groups for training, validation and test.
        out: folder to keep cells in; None keeps them in memory.

    Raises:
        UnknownNameError, InvalidArgumentError: an arm that cannot be run; nothing is computed before all are checked.

    Example:
        >>> from radiant_lens.studies import grid
        >>> study = Study("margins", grid(gamma=[0.005, 0.05]), seeds=(0, 1))  # .run().to_markdown()
        >>> len(study.cells())
        16
    """

    def __init__(
        self,
        name: str,
        arms: Sequence[Arm],
        *,
        model: str | Path | PreTrainedModel | TransformerBridge = "tiny",
        data: str | Path | Dataset = "tiny-facts",
        seeds: Sequence[int] = (0,),
        n_samples: int = 3,
        max_new_tokens: int = 20,
        temperature: float = 1.0,
        metrics: Sequence[str] | None = None,
        judge: str | None = None,
        fluency_model: str | None = None,
        controls: str = "reference",
        n_shuffles: int = 3,
        hooks: Mapping[str, Hooks] | None = None,
        n_groups: int | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        out: str | Path | None = None,
    ) -> None:
        _check_arms(arms, seeds, hooks or {})
        _checks.choice("controls", controls, CONTROLS)
        if len(fractions) != 3:
            raise InvalidArgumentError(f"`fractions` must be three, of training, validation and test; got {fractions}.")
        if judge is not None:
            _checks.known("judge", judge, [*RULES, *MODELS])
        _checks.whole("n_shuffles", n_shuffles, 3)
        for family in metrics or ():
            _checks.known("family of metrics", family, FAMILIES)
        check_sampling(n_samples, max_new_tokens, temperature)
        self.name, self.seeds, self.controls = name, tuple(seeds), controls
        judging = {
            "metrics": None if metrics is None else list(metrics),
            "judge": judge,
            "fluency_model": fluency_model,
        }
        sampling = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "temperature": temperature}
        # Options that are None stay out of the cells' keys, so that a new option leaves old cells valid.
        self.options = {**sampling, **{name: value for name, value in judging.items() if value is not None}}
        self.out = None if out is None else Path(out)
        self._n_shuffles, self._n_groups = n_shuffles, n_groups
        self._data: dict[str, Dataset] = {}
        models: dict[str, TransformerBridge] = {}
        weights: dict[str, Any] = {}
        if isinstance(model, (str, Path)):
            model_name = str(model)
        else:
            # A model given as an object has no folder to hash: its weights identify it in the keys of cells.
            bridge = load_model(model)
            identity = signature(bridge)
            model_name = identity["name"]
            models[model_name], weights[model_name] = bridge, identity["content"]
        data_name = self._add_data(data)
        self.arms = tuple(self._completed(arm, model_name, data_name) for arm in arms)
        self._sources = Sources(models, self._data, dict(hooks or {}), fractions)
        self._fingerprints = Fingerprints(self._data, weights)
        self._store = CellStore(self.out)

    def _add_data(self, data: str | Path | Dataset) -> str:
        name = data.name if isinstance(data, Dataset) else str(data)
        if name not in self._data:
            loaded = data if isinstance(data, Dataset) else load_dataset(data)
            self._data[name] = loaded if self._n_groups is None else loaded.head(self._n_groups)
        return name

    def _completed(self, arm: Arm, model: str, data: str) -> Arm:
        """The arm with the study's model and data for those that it does not name."""
        training_data = data if arm.data is None else self._add_data(arm.data)
        test_data = training_data if arm.test_data is None else self._add_data(arm.test_data)
        return replace(arm, model=arm.model or model, data=training_data, test_data=test_data)

    def cells(self) -> list[Cell]:
        """All cells, in an order that puts cells with shared steps next to each other."""
        # The order is by what cells share: one split and its activations first, then an arm and its fit. Arms on the
        # same prompts share one unsteered cell, which `setdefault` keeps once.
        cells: dict[tuple[str, int, int], Cell] = {}
        for seed in self.seeds:
            for arm in self.arms:
                cell = self._cell(self._baseline(arm), arm, UNSTEERED, seed)
                cells.setdefault((cell.row, seed, 0), cell)
            for i, arm in enumerate(self.arms):
                own = [self._cell(arm.name, arm, None, seed)]
                if arm.hooks is None and (i == 0 or self.controls == "all"):
                    own += [self._cell(f"{arm.name}: {control}", arm, control, seed) for control in RANDOM_METRICS]
                    shuffles = range(self._n_shuffles)
                    own += [self._cell(f"{arm.name}: {SHUFFLED}", arm, SHUFFLED, seed, draw) for draw in shuffles]
                cells |= {(cell.row, seed, cell.draw): cell for cell in own}
        return list(cells.values())

    def missing(self) -> list[Cell]:
        """The cells that are not computed yet."""
        return [cell for cell in self.cells() if cell.key not in self._store]

    def run(self, *, progress: bool = False, n_jobs: int = 1) -> StudyResult:
        """Compute the missing cells and return the result of all.

        Processes started by `torchrun` or `accelerate launch` share the missing cells; `out` must then be a folder
        on a shared disk, or None.

        Args:
            progress: show a progress bar.
            n_jobs: processes to share the missing cells among; each loads the models again.

        Raises:
            RadiantError: a cell that cannot be computed, or a process that has died. Finished cells are kept.
            RankError: another rank has died, or does not see the same `out`.
            InvalidArgumentError: several processes, and a model given as an object, or hooks of one's own.
        """
        self._check_jobs(n_jobs)
        rank, missing = this_rank(), self.missing()
        if missing:
            self._store.check()
        # All ranks must list the same missing cells: none may write before every list is made.
        rank.wait()
        mine, progress = rank.part(missing), progress and rank.number == 0
        if n_jobs == 1 or len(mine) < 2:
            self._compute(mine, progress=progress)
        else:
            self._compute_in_processes(mine, n_jobs, progress=progress)
        # Without a folder each rank holds the cells that it computed; with one, this exchanges nothing.
        for memory in rank.gather(self._store.memory):
            self._store.memory |= memory
        if lost := self.missing():
            raise RankError(
                f"Rank {rank.number} of {rank.n} does not see {len(lost)} cells that others computed: `out` = "
                f"{str(self.out)!r} must be a folder that all machines share."
            )
        return StudyResult(self.name, self._rows(), len(missing))

    def _check_jobs(self, n_jobs: int) -> None:
        _checks.whole("n_jobs", n_jobs, 1)
        if n_jobs > 1 and (self._sources.models or self._sources.hooks):
            raise InvalidArgumentError(
                "`n_jobs` must be 1 where a model is given as an object or hook functions are: they cannot be sent to "
                f"other processes; got {n_jobs}. Name the model or its folder instead."
            )

    def _compute(self, cells: Sequence[Cell], *, progress: bool = False) -> dict[str, Evaluation]:
        """Compute cells in this process; returns the evaluations of a study without a folder."""
        runner = CellRunner(self._sources, self.options)
        # Ranks share out cells. Within a cell a rank works alone: to wait for the others would be a deadlock.
        with alone(), progress_bar(shown=progress) as bar:
            task = bar.add_task(self.name, total=len(cells))
            for cell in cells:
                bar.update(task, description=f"{cell.row}, seed {cell.seed}")
                self._store.save(cell.key, runner.run(cell))
                bar.advance(task)
        return self._store.memory

    def _compute_in_processes(self, cells: Sequence[Cell], n_jobs: int, *, progress: bool) -> None:
        # Neighbouring cells share steps, so a process computes a chunk of them. Two chunks for each process, so that
        # a slow one does not hold up the others.
        n = -(-len(cells) // (2 * n_jobs))
        chunks = [cells[i : i + n] for i in range(0, len(cells), n)]
        with (
            closing(in_processes(self._compute, chunks, n_jobs)) as computed,
            progress_bar(shown=progress) as bar,
        ):
            for memory in bar.track(computed, total=len(chunks), description=self.name):
                self._store.memory |= memory

    def _cell(self, row: str, arm: Arm, control: str | None, seed: int, draw: int = 0) -> Cell:
        assert arm.model is not None and arm.data is not None and arm.test_data is not None
        settings: dict[str, Any] = {
            "model": [arm.model, self._fingerprints.model(arm.model)],
            "test_data": self._fingerprints.data(arm.test_data),
            "few_shot": arm.few_shot,
            "evaluation": self.options,
            "fractions": list(self._sources.fractions),
            "control": control,
            "seed": seed,
        }
        # The unsteered model depends on no training data and no arm, so these stay out of its key and it is computed
        # once for all arms.
        if control != UNSTEERED:
            settings |= {"data": self._fingerprints.data(arm.data), "draw": draw, "arm": arm_settings(arm)}
        if control == SHUFFLED:
            # Cells kept by versions whose shuffled labels were not forced to edit must not be taken for these.
            settings["forced"] = True
        return Cell(row, arm, control, seed, draw, cell_key(settings))

    def _baseline(self, arm: Arm) -> str:
        """Name of the unsteered row on an arm's prompts, with the settings in which arms differ."""
        parts = {
            "model": arm.model,
            "data": arm.test_data,
            "few_shot": f"{arm.few_shot} examples" if arm.few_shot else None,
        }
        varying = {
            "model": len({a.model for a in self.arms}) > 1,
            "data": len({a.test_data for a in self.arms}) > 1,
            "few_shot": True,
        }
        named = [value for key, value in parts.items() if varying[key] and value]
        return f"{UNSTEERED} ({', '.join(named)})" if named else UNSTEERED

    def _rows(self) -> tuple[Row, ...]:
        """The rows of the result: no steering first, then the arms, then their controls."""
        order = {name: i for i, name in enumerate((UNSTEERED, None, *RANDOM_METRICS, SHUFFLED))}
        # Sorting is stable: rows of one kind stay in the order of the arms.
        by_row: dict[str, list[Cell]] = {}
        for cell in sorted(self.cells(), key=lambda c: order[c.control]):
            by_row.setdefault(cell.row, []).append(cell)
        rows = []
        for name, cells in by_row.items():
            first = cells[0]
            evaluations = {seed: [self._store.load(c.key) for c in cells if c.seed == seed] for seed in self.seeds}
            unsteered = first.control == UNSTEERED
            baseline = None if unsteered else self._baseline(first.arm)
            rows.append(Row(name, baseline, _flat(first.arm, unsteered), evaluations))
        return tuple(rows)


def _check_arms(arms: Sequence[Arm], seeds: Sequence[int], hooks: Mapping[str, Hooks]) -> None:
    for name, values in (("arms", arms), ("seeds", seeds)):
        _checks.instance(name, values, (list, tuple, range))
    if not arms or not seeds:
        raise InvalidArgumentError(f"A study needs at least one arm and one seed; got {len(arms)} and {len(seeds)}.")
    for arm in arms:
        _checks.instance("arms", arm, Arm, hint="`Arm(name, ...)` or `grid(...)`")
    for seed in seeds:
        _checks.seed(seed, "seeds")
    for kind, names in (("arms", [arm.name for arm in arms]), ("seeds", [str(seed) for seed in seeds])):
        repeated = sorted(name for name, n in Counter(names).items() if n > 1)
        if repeated:
            raise InvalidArgumentError(f"`{kind}` must differ; got {', '.join(map(repr, repeated))} more than once.")
    for arm in arms:
        arm.check()
        if arm.hooks is not None:
            _checks.known("name in the study's `hooks`", arm.hooks, hooks)


# Columns of the tidy table: place, settings of the arm, then those of its detector and policy, all on one level.
def _flat(arm: Arm, unsteered: bool) -> dict[str, Any]:
    place = {"model": arm.model, "data": arm.data, "test_data": arm.test_data, "few_shot": arm.few_shot}
    if unsteered:
        return {**place, "data": arm.test_data}
    settings = arm_settings(arm)
    return {**place, **{k: v for k, v in settings.items() if k not in ("options", "detector")}} | {
        **settings.get("detector", {}),
        **settings.get("options", {}),
    }
