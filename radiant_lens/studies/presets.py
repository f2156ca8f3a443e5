"""Ready studies: the table of all policies, and the paper's ablations, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from radiant_lens import _checks
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.models.loading import load_model
from radiant_lens.studies.arms import Arm, grid
from radiant_lens.studies.study import Study

# ITI's best heads and strength on the embedded model, from a sweep on one split (tests/benchmarks/iti_sweep.py).
ITI_HEADS, ITI_ALPHA = "least_risk:16", 2.5


@dataclass(frozen=True)
class ReadyStudy:
    """A study by name.

    Attributes:
        title: its question, in a line.
        arms: function of a model's number of layers that makes them.
        data: default data sets.
    """

    title: str
    arms: Callable[[int], list[Arm]]
    data: tuple[str, ...] = ("tiny-facts",)


def paper_arm(name: str = "RADIANT, the paper's recipe", margin: float = 10.0, **changes: Any) -> Arm:
    """One voted layer, the paper's map, detectors of the last token, and the paper's vote rule.

    The arm edits the best-ranked layer. The paper edits the better of the two best-ranked layers on validation
    answers; `run_protocol` does that.
    """
    options = {"margin": margin, "geometry": "procrustes", "gate": "vote"}
    detector = {"fnr_weight": 1.0, "vote_rule": "fnr"}
    return Arm(name, "radiant", options, heads="layers:1", detector=detector, positions="last", **changes)


def _policies(n_layers: int) -> list[Arm]:
    """All policies; those with no rule of their own for heads edit RADIANT's."""
    return [
        Arm("RADIANT"),
        paper_arm(),
        Arm("ITI", "iti", {"alpha": ITI_ALPHA}, heads=ITI_HEADS),
        Arm("ITI on RADIANT's heads", "iti", {"alpha": ITI_ALPHA}, heads="recipe"),
        Arm("mean shift", "mean_shift", heads="recipe"),
        Arm("moment matching", "moment_matching", heads="recipe"),
        Arm("Linear-AcT", "linear_act", heads="recipe"),
        *([Arm("LEACE", "leace", heads="recipe")] if find_spec("concept_erasure") else []),
        *(Arm(f"{kind} ablation", "ablation", {"kind": kind}, heads="recipe") for kind in ("zero", "mean", "resample")),
    ]


def _same_heads(n_layers: int) -> list[Arm]:
    # Each map on each choice of heads separates the effect of the map from that of the heads.
    pairs = [
        (f"{name} on {where}", policy, options, heads)
        for heads, where in (("recipe", "RADIANT's heads"), (ITI_HEADS, "ITI's heads"))
        for name, policy, options in (("RADIANT's map", "radiant", None), ("ITI's shift", "iti", {"alpha": ITI_ALPHA}))
    ]
    return [Arm(*pair) for pair in pairs]


def _strength(n_layers: int) -> list[Arm]:
    radiant = [Arm(f"RADIANT, gamma {g:g}", options={"gamma": g}) for g in (0.3, 0.1, 0.03, 0.01, 0.001)]
    return radiant + [Arm(f"ITI, alpha {a:g}", "iti", {"alpha": a}, heads=ITI_HEADS) for a in (0.5, 1.0, 2.0, 3.0, 4.0)]


def _head_choice(n_layers: int) -> list[Arm]:
    rules = {
        "effective": "most effective heads",
        "effective:4": "4 most effective heads",
        "least_risk:4": "4 best-detecting heads",
        "random:4": "4 random heads",
        "significant": "significant heads",
        "layers:1": "layer of least risk",
    }
    return [Arm(f"RADIANT, {name}", heads=rule) for rule, name in rules.items()]


def _axis(axis: str, *values: Any, base: Arm | None = None) -> Callable[[int], list[Arm]]:
    return lambda n_layers: grid(base, **{axis: list(values)})


READY: dict[str, ReadyStudy] = {
    "policies": ReadyStudy(
        "All policies and controls (LEACE where concept-erasure is installed).",
        _policies,
        ("tiny-facts", "tiny-tone"),
    ),
    "loss": ReadyStudy(
        "Risk-aware training of detectors against cross-entropy and others.",
        _axis("loss", "risk", "cross_entropy", "mass_mean", "lda"),
    ),
    "fnr-weight": ReadyStudy("The weight of a miss.", _axis("fnr_weight", 0.5, 0.65, 1.0, 1.5, 2.5)),
    "vote": ReadyStudy("Rules of the layers' vote.", _axis("vote_rule", "risk", "fnr")),
    "gate": ReadyStudy("Gates: when a head is edited.", _axis("gate", "vote", "head", "layer", "joint", "none")),
    "geometry": ReadyStudy(
        "The metric in which an edit is least.", _axis("geometry", "mahalanobis", "wasserstein", "procrustes")
    ),
    "floor": ReadyStudy("With and without a floor under the spread.", _axis("floor", "desirable", None)),
    "tail": ReadyStudy("Gaussian margin against one for any distribution.", _axis("tail", "gaussian", "cantelli")),
    "layer-or-heads": ReadyStudy(
        "The layer chosen by vote against ITI's heads, with RADIANT's map.",
        lambda n_layers: [Arm("vote-chosen layer", heads="layers:1"), Arm("ITI's heads", heads=ITI_HEADS)],
    ),
    "same-heads": ReadyStudy("RADIANT's map against ITI's shift on the same heads.", _same_heads),
    "strength": ReadyStudy("Gain against cost of each method.", _strength, ("tiny-facts", "tiny-tone")),
    "layers": ReadyStudy(
        "Editing one layer after another.", lambda n_layers: grid(heads=[f"layer:{i}" for i in range(n_layers)])
    ),
    "head-choice": ReadyStudy("Detecting is not doing: best-detecting against most effective heads.", _head_choice),
    "few-shot": ReadyStudy("Desirable examples before the prompt, with steering.", _axis("few_shot", 0, 1, 3, 5)),
}


def ready_studies(
    name: str, *, model: str = "tiny", data: str | Dataset | None = None, out: str | None = None, **options: Any
) -> list[Study]:
    """Make a ready study, one `Study` for each of its data sets.

    Args:
        name: a key of `READY`.
        model: a name or folder.
        data: in place of the study's own data sets.
        out: folder for the cells.
        options: of `Study`, such as `seeds`.

    Raises:
        UnknownNameError: an unknown name.

    Example:
        >>> [study.name for study in ready_studies("policies")]
        ['policies on tiny-facts', 'policies on tiny-tone']
    """
    _checks.known("ready study", name, READY)
    ready = READY[name]
    # Only this study has an arm for each layer; the others need no model before they run.
    n_layers = int(load_model(model).cfg.n_layers) if name == "layers" else 0
    chosen: tuple[str | Dataset, ...] = ready.data if data is None else (data,)
    # A share of rude answers is small, so several replies to one prompt are judged together.
    tone: dict[str, Any] = {"metrics": ("answers", "text", "diversity")}
    return [
        Study(
            f"{name} on {d.name if isinstance(d, Dataset) else d}",
            ready.arms(n_layers),
            model=model,
            data=d,
            out=out,
            **{**(tone if d == "tiny-tone" else {}), **options},
        )
        for d in chosen
    ]
