"""Gate and strength of an arm at each budget of KL, chosen on a fold's validation part, and kept in a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radiant_lens._files import load_json, save_json
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import KLCurve, desirable_statements, mean_kl
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import ArtefactError, ConvergenceError, NothingToEditError
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.studies.benchmark.arms import Fold, SteeringArm

_KIND, _FILE = "benchmark choice", "choice.json"


@dataclass(frozen=True)
class Chosen:
    """The gate and strength of an arm at one budget.

    Attributes:
        budget: KL in nats a token.
        gate: with the most MC2 at this budget.
        strength: in units of the steering as it was fitted.
        kl: measured on desirable validation text.
        mc2: on the validation part; 0 where there was no gate to choose.
        steering: with that strength.
    """

    budget: float
    gate: str
    strength: float
    kl: float
    mc2: float
    steering: Steering

    def row(self) -> dict[str, Any]:
        """The columns that every row of a benchmark has of it."""
        return {"budget": self.budget, "gate": self.gate, "strength": self.strength, "validation_kl": self.kl}


@dataclass(frozen=True)
class Choice:
    """The steerings of an arm on one fold.

    Attributes:
        chosen: by budget, ascending; a budget that no gate can meet has none.
        notes: why a gate has no steering, or does not meet a budget.
        seconds: of fit and choice.
    """

    chosen: tuple[Chosen, ...]
    notes: tuple[str, ...]
    seconds: float

    def save(self, folder: Path, place: Mapping[str, Any]) -> None:
        """Keep the steerings in folders by budget, and the rest in a file that is written last.

        Args:
            folder: for all of it.
            place: the arm and the fold, for readers of the file.
        """
        for chosen in self.chosen:
            chosen.steering.save(folder / _name(chosen.budget))
        rows = [{**chosen.row(), "mc2": chosen.mc2} for chosen in self.chosen]
        save_json(folder / _FILE, _KIND, {**place, "chosen": rows, "notes": self.notes, "seconds": self.seconds})

    @classmethod
    def load(cls, folder: Path) -> Choice | None:
        """Read what `save` kept; None if it is not there.

        Raises:
            ArtefactError: it is damaged.
        """
        if not (folder / _FILE).is_file():
            return None
        content = load_json(folder / _FILE, _KIND)
        try:
            rows = content["chosen"]
            if not all((folder / _name(row["budget"])).is_dir() for row in rows):
                # Somebody has moved a steering away: it is chosen anew.
                return None
            chosen = [
                Chosen(
                    row["budget"],
                    row["gate"],
                    row["strength"],
                    row["validation_kl"],
                    row["mc2"],
                    Steering.load(folder / _name(row["budget"])),
                )
                for row in rows
            ]
            return cls(tuple(chosen), tuple(content["notes"]), content["seconds"])
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"The saved {_KIND} at {str(folder)!r} is damaged ({error!r}).") from error


def _name(budget: float) -> str:
    return f"kl-{budget!r}"


def choose(fold: Fold, arm: SteeringArm, budgets: Sequence[float], validation: Dataset) -> Choice:
    """For each budget that some gate can meet, take the gate with the most MC2 on validation groups.

    Args:
        fold: on whose training part the arm is fitted.
        arm: with the gates that it may choose from.
        budgets: KL in nats a token.
        validation: groups of the fold's validation part on which strengths are set.
    """
    start = time.perf_counter()
    best: dict[float, Chosen] = {}
    notes: list[str] = []
    gates = arm.gates(fold.gates)
    for gate in gates:
        try:
            steering = arm.fit(fold, gate)
        except (NothingToEditError, ConvergenceError) as reason:
            # No head to edit, or a gate that stays shut on the text on which a strength is set.
            notes.append(f"gate {gate}: {reason}")
            continue
        curve = _kl_curve(fold, validation, steering)
        for budget in budgets:
            try:
                measured = curve.at(budget)
            except ConvergenceError as reason:
                # A gate that stays shut on desirable text has no strength of this KL.
                notes.append(f"gate {gate}: {reason}")
                continue
            scaled = steering.scaled(measured.strength)
            mc2 = 0.0
            if len(gates) > 1:
                mc2 = float(score_choices(fold.model, validation.prompts, scaled)["mc2"].mean())
            if budget not in best or mc2 > best[budget].mc2:
                best[budget] = Chosen(budget, gate, *measured, mc2, scaled)
    return Choice(tuple(best[budget] for budget in sorted(best)), tuple(notes), time.perf_counter() - start)


def _kl_curve(fold: Fold, data: Dataset, steering: Steering) -> KLCurve:
    statements, unsteered = desirable_statements(data), fold.unsteered["validation"]
    return KLCurve(lambda strength: mean_kl(fold.model, statements, steering.scaled(strength), kept=unsteered))
