"""`Benchmark`: arms on the folds of one task, each at the same budgets of KL; finished arms are kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from radiant_lens import _checks
from radiant_lens._files import load_json, save_json
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import KLCurve, MeasuredStrength, desirable_statements, mean_kl, text_kl
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import ConvergenceError, InvalidArgumentError, NothingToEditError
from radiant_lens.evaluation.generation import generate_answers
from radiant_lens.evaluation.judges.judge import judge_answers
from radiant_lens.evaluation.judges.registry import get_judge
from radiant_lens.evaluation.likelihood import ScoredText, score_statements
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.hooks._steer import steer
from radiant_lens.models.identity import signature
from radiant_lens.models.lengths import within_context
from radiant_lens.studies.benchmark.arms import ARMS, AnswerArm, Fold, SteeringArm
from radiant_lens.studies.benchmark.result import BenchmarkResult
from radiant_lens.studies.benchmark.style import with_swapped_answers
from radiant_lens.studies.cells import cell_key

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = (0.02, 0.08, 0.25)
NEW_TOKENS = 30
UNSTEERED = "none"
_KIND = "benchmark arm"


class _Finished(NamedTuple):
    """Rows of an arm on one fold, and why some gate or budget has none."""

    rows: list[dict[str, Any]]
    notes: list[str]


class _Chosen(NamedTuple):
    """The gate and strength of an arm at one budget, chosen on the validation part."""

    steering: Steering
    gate: str
    measured: MeasuredStrength
    validation_mc2: float


@dataclass(frozen=True)
class Benchmark:
    """Compare steerings on one task at the same KL, with the same gates on offer to all policies of activations.

    The groups are split into two halves. Each in turn is the test part of a fold. The other is split into training and
    validation parts, on which all is fitted and chosen: a steering for each gate, its strength at each budget of KL,
    and the gate with the most MC2 at that budget. Trained shifts act without a gate, the paper's recipe under its own.
    The test part is scored once for each arm and budget, with the questions' own answers and with those of other
    questions (what rises there is style, not truth), and greedy answers to its first questions are judged.

    Args:
        model: from `load_model`.
        data: prompts with correct and incorrect answers, and statements of both classes.
        arms: names in `ARMS`; None for all.
        budgets: KL in nats a token on desirable validation text.
        folds: 0, 1 or both.
        n_validation: validation groups on which strengths and gates are chosen, drawn at random; None for all.
        n_test: test groups that are scored, drawn at random; None for all.
        n_answered: test groups whose generated answers are judged, drawn at random from these; 0 for none.
        seed: of the splits and draws.
        out: folder for finished arms; a rerun computes the missing ones. None: nothing is kept.
    """

    model: TransformerBridge
    data: Dataset
    arms: Sequence[str] | None = None
    budgets: Sequence[float] = BUDGETS
    folds: Sequence[int] = (0, 1)
    n_validation: int | None = None
    n_test: int | None = None
    n_answered: int = 40
    seed: int = 0
    out: str | Path | None = None

    def __post_init__(self) -> None:
        """Check all settings before anything is computed."""
        for name in self.names:
            _checks.known("arm of the benchmark", name, ARMS)
        for budget in self.budgets:
            _checks.between("budgets", budget, 0)
        for fold in self.folds:
            _checks.whole("folds", fold, 0, 1)
        for name, values in (("arms", self.names), ("budgets", self.budgets), ("folds", self.folds)):
            if not values or len(set(values)) < len(values):
                raise InvalidArgumentError(f"`{name}` must be at least one, each once; got {list(values)!r}.")
        for name, number in (("n_validation", self.n_validation), ("n_test", self.n_test)):
            if number is not None:
                _checks.whole(name, number, 1)
        _checks.whole("n_answered", self.n_answered, 0)
        _checks.seed(self.seed)
        desirable_statements(self.data)

    @property
    def names(self) -> list[str]:
        """The arms, by name."""
        return list(ARMS if self.arms is None else self.arms)

    def make_fold(self, number: int) -> Fold:
        """Split the data; nothing is collected or fitted yet."""
        halves = within_context(self.model, self.data).split((0.5, 0.5), seed=self.seed)
        train, validation = halves[number].split((0.8, 0.2), seed=self.seed)
        return Fold(self.model, train, validation, self._drawn(halves[1 - number], self.n_test), self.seed)

    def run(self, *, progress: bool = False) -> BenchmarkResult:
        """Compute the missing arms; returns the table of all.

        Args:
            progress: show a progress bar with the time left.
        """
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True, disable=not progress) as bar:
            task = bar.add_task(self.data.name, total=len(self.folds) * (1 + len(self.names)))
            for number in self.folds:
                fold = self.make_fold(number)
                for name in (UNSTEERED, *self.names):
                    bar.update(task, description=f"{name}, fold {number}")
                    finished = self._finished(number, name, fold)
                    rows += finished.rows
                    notes += [f"{name}, fold {number}: {note}" for note in finished.notes]
                    bar.advance(task)
        return BenchmarkResult(self.data.name, pd.DataFrame(rows), tuple(notes))

    def _finished(self, number: int, name: str, fold: Fold) -> _Finished:
        """One arm on one fold, from the folder if it is there."""
        if self.out is None:
            return self._compute(number, name, fold)
        path = Path(self.out) / f"{self._key(number, name)}.json"
        if path.exists():
            content = load_json(path, _KIND)
            return _Finished(content["rows"], content.get("notes", []))
        finished = self._compute(number, name, fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, _KIND, {"fold": number, "arm": name, **finished._asdict()})
        return finished

    def _key(self, number: int, name: str) -> str:
        """Hash of all that the rows of an arm depend on."""
        arm = ARMS.get(name)
        settings: Mapping[str, Any] = {
            "model": signature(self.model),
            "data": [self.data.name, *map(repr, self.data.statements), *map(repr, self.data.prompts)],
            "fold": number,
            "arm": name,
            "gates": list(arm.gates) if isinstance(arm, SteeringArm) else [],
            # The unsteered model has no budget.
            "budgets": [] if name == UNSTEERED else list(self.budgets),
            "n_validation": self.n_validation,
            "n_test": self.n_test,
            # A draw; of earlier versions the first ones by name.
            "groups": "drawn",
            "n_answered": self.n_answered,
            "seed": self.seed,
        }
        return cell_key(settings)

    def _compute(self, number: int, name: str, fold: Fold) -> _Finished:
        start = time.perf_counter()
        place = {"fold": number, "arm": name}
        arm = None if name == UNSTEERED else ARMS[name]
        if not isinstance(arm, SteeringArm):
            if arm is None:
                scores = self._score(fold, None)
            elif isinstance(arm, AnswerArm):
                scores = _without_model(arm.score(fold.train, fold.test))
            else:
                scores = self._score_texts(fold, arm.change(fold))
            return _Finished([{**place, **_no_budget(time.perf_counter() - start), **row} for row in scores], [])
        chosen, notes = self._choose(fold, arm)
        seconds = time.perf_counter() - start
        rows = []
        for budget, best in chosen.items():
            settings = {
                "budget": budget,
                "gate": best.gate,
                "strength": best.measured.strength,
                "validation_kl": best.measured.kl,
                "seconds": seconds,
            }
            rows += [{**place, **settings, **row} for row in self._score(fold, best.steering)]
        return _Finished(rows, notes)

    def _score(self, fold: Fold, steering: Steering | None) -> list[dict[str, Any]]:
        """One row for each test question."""
        model, test = fold.model, fold.test
        own = score_choices(model, test.prompts, steering)
        swapped = score_choices(model, with_swapped_answers(test).prompts, steering)
        text = score_statements(model, desirable_statements(test), steering, kept=fold.unsteered["test"])
        return _joined(test, own, swapped, text, self._verdicts(model, test, steering))

    def _score_texts(self, fold: Fold, changed: Dataset) -> list[dict[str, Any]]:
        own = score_choices(fold.model, changed.prompts)
        swapped = score_choices(fold.model, with_swapped_answers(changed).prompts)
        text = score_statements(fold.model, desirable_statements(changed), compare=False)
        # The two models read different texts before the answers, and are compared on the answers' tokens.
        kl = text_kl(fold.model, desirable_statements(fold.test), desirable_statements(changed))
        verdicts = self._verdicts(fold.model, changed, None)
        return _joined(fold.test, own, swapped, text._replace(kl=kl), verdicts)

    def _verdicts(self, model: TransformerBridge, data: Dataset, steering: Steering | None) -> dict[str, str]:
        """The judge's verdict on a greedy answer to the first prompt of each of the first groups."""
        if not self.n_answered:
            return {}
        by_group = {prompt.group: prompt for prompt in reversed(self._drawn(data, self.n_answered).prompts)}
        prompts = list(by_group.values())
        with nullcontext() if steering is None else steer(model, steering, allow_mismatch=True):
            answers = generate_answers(model, prompts, max_new_tokens=NEW_TOKENS, temperature=0, stop=data.stop)
        verdicts = judge_answers(get_judge(data.judge), prompts, [samples[0] for samples in answers])
        return {prompt.group: verdict.verdict for prompt, verdict in zip(prompts, verdicts)}

    def _drawn(self, data: Dataset, n_groups: int | None) -> Dataset:
        return data if n_groups is None else data.sample(n_groups, seed=self.seed)

    def _choose(self, fold: Fold, arm: SteeringArm) -> tuple[dict[float, _Chosen], list[str]]:
        """For each budget that some gate can meet, the gate with the most MC2 on the validation part.

        Also returns the reason for each gate without a steering, and for each budget that a gate does not meet.
        """
        best: dict[float, _Chosen] = {}
        notes: list[str] = []
        chosen_on = self._drawn(fold.validation, self.n_validation)
        for gate in arm.gates:
            try:
                steering = arm.fit(fold, gate)
            except (NothingToEditError, ConvergenceError) as reason:
                # No head to edit, or a gate that stays shut on the text on which a strength is set.
                notes.append(f"gate {gate}: {reason}")
                continue
            curve = _kl_curve(fold, chosen_on, steering)
            for budget in self.budgets:
                try:
                    measured = curve.at(budget)
                except ConvergenceError as reason:
                    # A gate that stays shut on desirable text has no strength of this KL.
                    notes.append(f"gate {gate}: {reason}")
                    continue
                scaled = steering.scaled(measured.strength)
                mc2 = 0.0
                if len(arm.gates) > 1:
                    mc2 = float(score_choices(fold.model, chosen_on.prompts, scaled)["mc2"].mean())
                if budget not in best or mc2 > best[budget].validation_mc2:
                    best[budget] = _Chosen(scaled, gate, measured, mc2)
        return dict(sorted(best.items())), notes


def _kl_curve(fold: Fold, data: Dataset, steering: Steering) -> KLCurve:
    statements, unsteered = desirable_statements(data), fold.unsteered["validation"]
    return KLCurve(lambda strength: mean_kl(fold.model, statements, steering.scaled(strength), kept=unsteered))


def _no_budget(seconds: float) -> dict[str, Any]:
    return {"budget": None, "gate": "", "strength": None, "validation_kl": None, "seconds": seconds}


def _without_model(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of an arm that reads answers alone; it has no text to be compared on."""
    table: Any = scores
    means = table.groupby("group")[["mc1", "mc2"]].mean().reset_index()
    nothing = dict.fromkeys(("kl", "log_prob", "edited", "tokens"), 0.0)
    # Nothing changes for it under the answers of other questions: all that it has is style.
    rows: list[dict[str, Any]] = means.assign(swapped_mc2=means["mc2"], **nothing, verdict="").to_dict("records")
    return rows


def _joined(
    test: Dataset, own: pd.DataFrame, swapped: pd.DataFrame, text: ScoredText, verdicts: Mapping[str, str]
) -> list[dict[str, Any]]:
    # `Any`: the types of pandas do not follow a chain of tables.
    sums: Any = pd.DataFrame(
        {
            "group": [s.group for s in desirable_statements(test)],
            "kl": text.kl,
            "log_prob": text.log_prob,
            "edited": text.n_edited,
            "tokens": text.n_tokens,
        }
    )
    scores: Any = own.assign(swapped_mc2=swapped["mc2"])
    table = scores.groupby("group")[["mc1", "mc2", "swapped_mc2"]].mean()
    table = table.join(sums.groupby("group").sum()).fillna(0.0).reset_index()
    rows: list[dict[str, Any]] = table.assign(verdict=[verdicts.get(g, "") for g in table["group"]]).to_dict("records")
    return rows
