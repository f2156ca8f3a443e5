"""`Study`: arms with their controls over seeds; what is computed is kept, what is missing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from radiant_lens import _checks
from radiant_lens._files import check_target
from radiant_lens.datasets.examples import Dataset
from radiant_lens.datasets.loading import load_dataset
from radiant_lens.errors import InvalidArgumentError, RankError
from radiant_lens.evaluation.choosing import MODELS, RULES
from radiant_lens.evaluation.evaluate import FAMILIES
from radiant_lens.evaluation.generation import check_sampling
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.identity import signature
from radiant_lens.models import EMBEDDED, load_model
from radiant_lens.ranks import alone, this_rank
from radiant_lens.studies.arms import Arm
from radiant_lens.studies.bench import Bench, Hooks
from radiant_lens.studies.cells import (
    RANDOM,
    SHUFFLED,
    Cell,
    arm_settings,
    cell_key,
    data_fingerprint,
    folder_fingerprint,
)
from radiant_lens.studies.compare import UNSTEERED
from radiant_lens.studies.results import Row, StudyResult
from radiant_lens.studies.workers import in_processes
from radiant_lens.tiny import model_folder

CONTROLS = ("reference", "all")


class Study:
    """A grid of steerings, evaluated on held-out prompts beside their controls.

    Always in: no steering; and for the reference arm (the first) or for all, a random direction of equal
    displacement and detectors of shuffled labels, on the same heads. Every cell (one arm or control, one seed) is
    written to `out` when it is done, under a hash of all that it depends on; a rerun does only what is missing.

    Args:
        name: of the study.
        arms: what to compare (see `Arm` and `grid`).
        model: a name, a folder, or a model, for arms that name none.
        data: a name, a file, or a `Dataset`, for arms that name none.
        seeds: each decides a split, the detectors and the samples.
        n_samples, max_new_tokens, temperature, metrics, judge, fluency_model: as for `evaluate`; the last two by name.
        controls: "reference" or "all".
        n_shuffles: shuffles of the labels that the control averages; one alone can be anything, so at least 3.
        hooks: the user's own hook functions by the name that arms give as `hooks`. In results that are kept, the
            name stands for the functions: give changed functions another name.
        n_groups: use only the first groups of each data set, for a quick look.
        fractions: of groups for training, validation and test.
        out: folder to keep cells in; None keeps them in memory.

    Raises:
        UnknownNameError, InvalidArgumentError: an arm that cannot be run; nothing is computed before all are checked.

    Example:
        >>> from radiant_lens.studies import grid
        >>> study = Study("margins", grid(gamma=[0.005, 0.05]), seeds=(0, 1))  # .run().to_markdown()
        >>> len(study.cells())
        14
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
        self.name, self.seeds, self.controls = name, tuple(seeds), controls
        for family in metrics or ():
            _checks.known("family of metrics", family, FAMILIES)
        check_sampling(n_samples, max_new_tokens, temperature)
        given = {"metrics": None if metrics is None else list(metrics), "judge": judge, "fluency_model": fluency_model}
        sampling = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "temperature": temperature}
        self.options = {**sampling, **{name: value for name, value in given.items() if value is not None}}
        self.out = None if out is None else Path(out)
        self._n_shuffles, self._hooks, self._fractions = n_shuffles, dict(hooks or {}), fractions
        self._models: dict[str, TransformerBridge] = {}
        self._data: dict[str, Dataset] = {}
        self._memory: dict[str, Evaluation] = {}
        self._prints: dict[str, str] = {}
        model_name, data_name = self._name_model(model), self._add_data(data, n_groups)
        self.arms = tuple(self._completed(arm, model_name, data_name, n_groups) for arm in arms)

    def _name_model(self, model: str | Path | PreTrainedModel | TransformerBridge) -> str:
        if isinstance(model, (str, Path)):
            return str(model)
        bridge = load_model(model)
        made = signature(bridge)
        self._models[made["name"]] = bridge
        self._prints[made["name"]] = made["weights"]
        return made["name"]

    def _add_data(self, data: str | Path | Dataset, n_groups: int | None) -> str:
        name = data.name if isinstance(data, Dataset) else str(data)
        if name not in self._data:
            loaded = data if isinstance(data, Dataset) else load_dataset(data)
            self._data[name] = loaded if n_groups is None else loaded.head(n_groups)
        return name

    def _completed(self, arm: Arm, model: str, data: str, n_groups: int | None) -> Arm:
        fitted_on = data if arm.data is None else self._add_data(arm.data, n_groups)
        tested_on = fitted_on if arm.test_data is None else self._add_data(arm.test_data, n_groups)
        return replace(arm, model=arm.model or model, data=fitted_on, test_data=tested_on)

    def cells(self) -> list[Cell]:
        """All cells, those that share most standing together."""
        cells: dict[tuple[str, int, int], Cell] = {}
        for seed in self.seeds:
            for arm in self.arms:
                cell = self._cell(self._baseline(arm), arm, UNSTEERED, seed)
                cells.setdefault((cell.row, seed, 0), cell)
            for i, arm in enumerate(self.arms):
                own = [self._cell(arm.name, arm, None, seed)]
                if arm.hooks is None and (i == 0 or self.controls == "all"):
                    own.append(self._cell(f"{arm.name}: {RANDOM}", arm, RANDOM, seed))
                    shuffles = range(self._n_shuffles)
                    own += [self._cell(f"{arm.name}: {SHUFFLED}", arm, SHUFFLED, seed, draw) for draw in shuffles]
                cells |= {(cell.row, seed, cell.draw): cell for cell in own}
        return list(cells.values())

    def missing(self) -> list[Cell]:
        """The cells that are not computed yet."""
        return [cell for cell in self.cells() if self._stored(cell) is None]

    def run(self, *, progress: bool = False, n_jobs: int = 1) -> StudyResult:
        """Compute what is missing and gather everything.

        Processes that `torchrun` or `accelerate launch` started share the missing cells; `out` must then be a folder
        that all of them see, or None.

        Args:
            progress: show a progress bar.
            n_jobs: processes to share the missing cells among; each loads the models anew.

        Raises:
            RadiantError: a cell that cannot be computed, or a process that has died. Those that are done stay.
            RankError: another rank has died, or does not see `out`.
            InvalidArgumentError: several processes, and a model given as an object, or hooks of one's own.
        """
        _checks.whole("n_jobs", n_jobs, 1)
        if n_jobs > 1 and (self._models or self._hooks):
            raise InvalidArgumentError(
                "`n_jobs` must be 1 where a model is given as an object or hook functions are: other processes "
                f"cannot be handed them; got {n_jobs}."
            )
        rank, missing = this_rank(), self.missing()
        if self.out is not None and missing:
            check_target(self.out / "cells" / "any.json")
        # Nobody may write before all have seen what is missing.
        rank.wait()
        mine, progress = rank.part(missing), progress and rank.number == 0
        if n_jobs == 1 or len(mine) < 2:
            self._compute(mine, progress=progress)
        else:
            self._share(mine, n_jobs, progress=progress)
        for kept in rank.gather(self._memory):
            self._memory |= kept
        if lost := self.missing():
            raise RankError(
                f"Rank {rank.number} of {rank.n} does not see {len(lost)} cells that others computed: `out` = "
                f"{str(self.out)!r} must be a folder that all machines share."
            )
        cells = self.cells()
        found = {(c.row, c.seed, c.draw): e for c in cells if (e := self._stored(c)) is not None}
        return StudyResult(self.name, self._rows(cells, found), len(missing))

    def _compute(self, cells: Sequence[Cell], *, progress: bool = False) -> dict[str, Evaluation]:
        bench = Bench(self._models, self._data, self._hooks, self.options, self._fractions)
        # A cell is one rank's alone; what it calls is not shared.
        with alone(), Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task(self.name, total=len(cells))
            for cell in cells:
                bar.update(task, description=f"{cell.row}, seed {cell.seed}")
                self._keep(cell, bench.run(cell))
                bar.advance(task)
        return self._memory

    def _share(self, cells: Sequence[Cell], n_jobs: int, *, progress: bool) -> None:
        """Neighbours share most, so every process gets a run of cells, cut in two lest one waits for the other."""
        n = -(-len(cells) // (2 * n_jobs))
        parts = [cells[i : i + n] for i in range(0, len(cells), n)]
        with (
            closing(in_processes(self._compute, parts, n_jobs)) as computed,
            Progress(transient=True, disable=not progress) as bar,
        ):
            for kept in bar.track(computed, total=len(parts), description=self.name):
                self._memory |= kept

    def _cell(self, row: str, arm: Arm, control: str | None, seed: int, draw: int = 0) -> Cell:
        assert arm.model is not None and arm.data is not None and arm.test_data is not None
        settings: dict[str, Any] = {
            "model": [arm.model, self._fingerprint(arm.model)],
            "test_data": self._data_print(arm.test_data),
            "few_shot": arm.few_shot,
            "evaluation": self.options,
            "fractions": list(self._fractions),
            "control": control,
            "seed": seed,
        }
        if control != UNSTEERED:
            settings |= {"data": self._data_print(arm.data), "draw": draw, "arm": arm_settings(arm)}
        return Cell(row, arm, control, seed, draw, cell_key(settings))

    def _fingerprint(self, model: str) -> str:
        if model not in self._prints:
            folder = model_folder() if model in EMBEDDED else Path(model)
            # A Hub id stands for itself.
            self._prints[model] = folder_fingerprint(folder) if folder.is_dir() else ""
        return self._prints[model]

    def _data_print(self, data: str) -> str:
        if data not in self._prints:
            self._prints[data] = data_fingerprint(self._data[data])
        return self._prints[data]

    def _path(self, cell: Cell) -> Path | None:
        return None if self.out is None else self.out / "cells" / f"{cell.key}.json"

    def _stored(self, cell: Cell) -> Evaluation | None:
        path = self._path(cell)
        if path is None:
            return self._memory.get(cell.key)
        return Evaluation.load(path) if path.is_file() else None

    def _keep(self, cell: Cell, evaluation: Evaluation) -> None:
        path = self._path(cell)
        if path is None:
            self._memory[cell.key] = evaluation
        else:
            evaluation.save(path)

    def _baseline(self, arm: Arm) -> str:
        """Name of the unsteered row on an arm's prompts: with what is not the same for all arms."""
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

    def _rows(self, cells: Sequence[Cell], found: Mapping[tuple[str, int, int], Evaluation]) -> tuple[Row, ...]:
        order = {UNSTEERED: 0, None: 1, RANDOM: 2, SHUFFLED: 3}
        firsts: dict[str, Cell] = {}
        for cell in sorted(cells, key=lambda c: order[c.control]):
            firsts.setdefault(cell.row, cell)
        rows = []
        for name, cell in firsts.items():
            evaluations = {
                seed: [found[c.row, c.seed, c.draw] for c in cells if c.row == name and c.seed == seed]
                for seed in self.seeds
            }
            unsteered = cell.control == UNSTEERED
            baseline = None if unsteered else self._baseline(cell.arm)
            rows.append(Row(name, baseline, _flat(cell.arm, unsteered), evaluations))
        return tuple(rows)


def _check_arms(arms: Sequence[Arm], seeds: Sequence[int], hooks: Mapping[str, Hooks]) -> None:
    for name, given in (("arms", arms), ("seeds", seeds)):
        _checks.instance(name, given, (list, tuple, range))
    if not arms or not seeds:
        raise InvalidArgumentError(f"A study needs at least one arm and one seed; got {len(arms)} and {len(seeds)}.")
    for arm in arms:
        _checks.instance("arms", arm, Arm, hint="`Arm(name, ...)` or `grid(...)`")
    for seed in seeds:
        _checks.seed(seed, "seeds")
    for kind, values in (("arms", [arm.name for arm in arms]), ("seeds", [str(seed) for seed in seeds])):
        twice = sorted(name for name, n in Counter(values).items() if n > 1)
        if twice:
            raise InvalidArgumentError(f"`{kind}` must differ; {', '.join(map(repr, twice))} stand more than once.")
    for arm in arms:
        arm.check()
        if arm.hooks is not None:
            _checks.known("name in the study's `hooks`", arm.hooks, hooks)


def _flat(arm: Arm, unsteered: bool) -> dict[str, Any]:
    place = {"model": arm.model, "data": arm.data, "test_data": arm.test_data, "few_shot": arm.few_shot}
    if unsteered:
        return {**place, "data": arm.test_data}
    settings = arm_settings(arm)
    return {**place, **{k: v for k, v in settings.items() if k not in ("options", "detector")}} | {
        **settings.get("detector", {}),
        **settings.get("options", {}),
    }
