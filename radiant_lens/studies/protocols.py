"""The paper's protocol.

The questions are split into two folds. Of the development fold, 20% are the validation part. Layers are ranked by the
mean risk of their heads and vote by the rule "fnr" (least FNR, ties by risk). One layer is edited: the better of the
two best-ranked ones by the product of two metrics on validation. The other fold is tested once.

The defaults are those of the authors' released scripts; `paper_tables` says which are guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.distributed import progress_bar
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.notebook import card, html_table
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.studies.cells import UNSTEERED, data_fingerprint
from radiant_lens.studies.experiment import Experiment
from radiant_lens.studies.kept_evaluations import KeptEvaluations
from radiant_lens.studies.results import Row, StudyResult, table_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RADIANT, ITI = "RADIANT", "ITI"
# The evaluation of a steering by its name on a part; None is the unsteered model.
_Evaluated = Callable[[str, Dataset, "Steering | None"], Evaluation]
TABLE_METRICS = (
    "mc1",
    "mc2",
    "true_times_informative",
    "correct",
    "informative",
    "expected_maximum",
    "undesirable_probability",
    "perplexity",
    "dist_1",
    "dist_2",
    "dist_3",
    "kl",
)
"""Metrics of the paper's tables, in the order of their columns."""


@dataclass(frozen=True)
class PaperProtocol:
    """Settings of the paper's choice and test.

    Args:
        margin: `kappa`; the released scripts use 15 for TruthfulQA and 40 for toxicity.
        fnr_weight: weight of a miss; the scripts use 1 and 1.5 for TruthfulQA and 2.5 for toxicity.
        n_layers: None (the paper) edits one layer; numbers such as `(1, 2, 3)` compare so many best-ranked layers
            edited together, a variant that is not the paper's.
        product: the two metrics whose product decides; "not other" stands for 1 - other. Where the judge says nothing
            of "informative", the share that is "not other" takes its place.
        n_folds: folds of the groups, at least 2.
        validation: share of the development folds, in (0, 1).
        iti_heads, iti_alpha: of the baseline.
        few_shot: how many questions of the development part, with their answers, precede each prompt.
        n_candidates: best-ranked layers to compare one at a time where `n_layers` is None, at least 1.
    """

    margin: float = 15.0
    fnr_weight: float = 1.0
    n_layers: tuple[int, ...] | None = None
    product: tuple[str, str] = ("correct", "informative")
    n_folds: int = 2
    validation: float = 0.2
    iti_heads: int = 48
    iti_alpha: float = 15.0
    few_shot: int = 0
    n_candidates: int = 2

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a setting is not allowed."""
        _checks.whole("n_folds", self.n_folds, 2)
        _checks.between("validation", self.validation, 0, 1)
        _checks.whole("few_shot", self.few_shot, 0)
        _checks.whole("n_candidates", self.n_candidates, 1)
        if self.n_layers is not None and not self.n_layers:
            raise InvalidArgumentError("`n_layers` must hold at least one number, or be None; got none.")
        for n in self.n_layers or ():
            _checks.whole("n_layers", n, 1)
        RadiantPolicy.paper(self.margin).check()
        ITIPolicy(alpha=self.iti_alpha, n_heads=self.iti_heads).check()

    def check_model(self, n_layers: int) -> None:
        """Raise `InvalidArgumentError` where the protocol compares more layers than the model has."""
        if self.n_layers is None:
            _checks.whole("n_candidates", self.n_candidates, 1, n_layers)
        else:
            _checks.whole("n_layers", max(self.n_layers), 1, n_layers)

    @property
    def n_compared(self) -> int:
        """Number of policies that are compared on validation."""
        return self.n_candidates if self.n_layers is None else len(self.n_layers)

    def candidates(self, detector: RiskAwareDetector) -> list[RadiantPolicy]:
        """The policies to compare on validation, the best-ranked layer first."""
        paper = RadiantPolicy.paper(self.margin)
        if self.n_layers is not None:
            return [replace(paper, n_layers=n) for n in self.n_layers]
        # `layer_risk_` is the mean risk of a layer's heads, by which layers are ranked; the vote's risk is another.
        ranked = detector.layer_risk_.argsort(stable=True)[: self.n_candidates].tolist()
        return [replace(paper, heads=f"layer:{layer}") for layer in ranked]


@dataclass(frozen=True)
class ProtocolResult:
    """Result of the protocol.

    Attributes:
        choices: one row for each seed, fold and candidate: its `layers` (empty where there was nothing to edit), the
            `product` of the metrics on validation, and whether it was `chosen`.
        comparison: on the test folds, all folds and seeds pooled: no steering, ITI, RADIANT.
    """

    choices: pd.DataFrame
    comparison: StudyResult

    def to_dataframe(self) -> pd.DataFrame:
        """The test results, tidy: see `StudyResult.to_dataframe`."""
        return self.comparison.to_dataframe()

    def _repr_html_(self) -> str:
        return card("ProtocolResult", repr(self.comparison), html_table(table_rows(self.to_markdown())))

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """The test results as a table.

        Args:
            metrics: which; default those of the paper's tables that were measured: MC1, MC2, True*Info (the product
                of the shares of true and of informative answers) with its factors, toxicity, diversity, perplexity
                and KL.
        """
        measured = self.comparison.metrics()
        return self.comparison.to_markdown(metrics or [name for name in TABLE_METRICS if name in measured] or None)


def run_protocol(
    model: TransformerBridge,
    data: Dataset,
    protocol: PaperProtocol | None = None,
    *,
    test_data: Dataset | None = None,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> ProtocolResult:
    """Run the paper's protocol.

    Args:
        model: from `load_model`.
        data: to fit and choose on. Where it has no prompts (Jigsaw), a share of `test_data` is set apart to choose on.
        protocol: default that of TruthfulQA.
        test_data: to test on in place of the test folds of `data` (transfer).
        seeds: of folds, detectors and samples.
        out: folder for finished evaluations, which take most of the time; a rerun fits again and evaluates what is
            missing. None: nothing is kept.
        progress: show a progress bar.
        options: of `evaluate`, such as `n_samples` and `judge`.

    Raises:
        InvalidArgumentError: a setting that is not allowed, more layers than the model has, or `out` with a judge that
            a later run would not know, such as a function of your own.
        OutputError: `out` cannot be written to.
        RankError: ranks do not see the same `out`.
        UnknownNameError: a metric of the product that `evaluate` does not give on this data.
    """
    protocol = protocol or PaperProtocol()
    protocol.check()
    protocol.check_model(int(model.cfg.n_layers))
    choices: list[dict[str, Any]] = []
    tested: dict[str, dict[int, list[Evaluation]]] = {
        name: {seed: [] for seed in seeds} for name in (UNSTEERED, ITI, RADIANT)
    }
    settings = {"protocol": asdict(protocol), "data": data_fingerprint(data)}
    with progress_bar(shown=progress) as bar:
        n_evaluations = protocol.n_compared + len(tested)
        task = bar.add_task("paper protocol", total=len(seeds) * protocol.n_folds * n_evaluations)
        folder = None if out is None else Path(out)
        evaluations = KeptEvaluations(model, options, folder, finished=lambda: bar.advance(task))
        for seed in seeds:
            # Folds part groups, and validation parts the development groups again: no question is seen twice.
            for i, fold in enumerate(data.split((1 / protocol.n_folds,) * protocol.n_folds, seed=seed)):
                bar.update(task, description=f"paper protocol, seed {seed}, fold {i}")
                experiment = _experiment(model, data.only(data.groups - fold.groups), fold, protocol, seed)
                evaluated = partial(evaluations.get, seed, {**settings, "fold": i})
                fold_choices, fold_tested = _run_fold(experiment, protocol, test_data, seed, evaluated)
                choices += [{"seed": seed, "fold": i, **row} for row in fold_choices]
                for name, evaluation in fold_tested.items():
                    tested[name][seed].append(evaluation)
    rows = [Row(name, None if name == UNSTEERED else UNSTEERED, {}, by_seed) for name, by_seed in tested.items()]
    comparison = StudyResult("paper protocol", tuple(rows), evaluations.n_computed)
    return ProtocolResult(pd.DataFrame(choices), comparison)


def _run_fold(
    experiment: Experiment, protocol: PaperProtocol, test_data: Dataset | None, seed: int, evaluated: _Evaluated
) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Choose on the validation part, then test each method once."""
    validation, test = _prompted(experiment, test_data, protocol, seed)
    best, choices = _choose(experiment, validation, protocol, evaluated)
    iti = ITIPolicy(alpha=protocol.iti_alpha, n_heads=protocol.iti_heads)
    steerings = {UNSTEERED: None, ITI: iti.fit(experiment.train_cache, experiment.detector), RADIANT: best}
    return choices, {name: evaluated(name, test, steering) for name, steering in steerings.items()}


def _experiment(
    model: TransformerBridge, development: Dataset, fold: Dataset, protocol: PaperProtocol, seed: int
) -> Experiment:
    train, validation = development.split((1 - protocol.validation, protocol.validation), seed=seed)
    caches = [collect(model, part, positions="last") for part in (train, validation)]
    detector = RiskAwareDetector(fnr_weight=protocol.fnr_weight, vote_rule="fnr", seed=seed).fit(*caches)
    return Experiment(model, train, validation, fold, caches[0], caches[1], detector)


def _prompted(
    experiment: Experiment, test_data: Dataset | None, protocol: PaperProtocol, seed: int
) -> tuple[Dataset, Dataset]:
    """The data to choose on and to test on, with examples before the prompts if the protocol has `few_shot`."""
    validation, test = experiment.validation, test_data or experiment.test
    # Jigsaw has comments without prompts: its detectors are fitted, but nothing can be generated to choose on.
    if not validation.prompts and test_data is not None:
        validation, test = test_data.split((protocol.validation, 1 - protocol.validation), seed=seed)
    if not protocol.few_shot:
        return validation, test
    # Examples come from the training part alone: no question is both an example and asked.
    shots = (part.with_few_shot(experiment.train, protocol.few_shot, seed=seed) for part in (validation, test))
    return next(shots), next(shots)


def _choose(
    experiment: Experiment, validation: Dataset, protocol: PaperProtocol, evaluated: _Evaluated
) -> tuple[Steering | None, list[dict[str, Any]]]:
    """The steering of the best candidate on validation (None: it edits nothing), and the score of each."""
    rows: list[dict[str, Any]] = []
    steerings: list[Steering | None] = []
    for i, policy in enumerate(protocol.candidates(experiment.detector)):
        try:
            steering = policy.fit(experiment.train_cache, experiment.detector)
        except NothingToEditError:
            # A candidate that edits nothing competes as the unsteered model; its `layers` are empty in the choices.
            steering = None
        evaluation = evaluated(f"candidate {i}", validation, steering)
        one, other = (_factor(evaluation, name) for name in protocol.product)
        layers = list(steering.layers) if steering else []
        rows.append({"n_layers": policy.n_layers, "layers": layers, "product": one * other})
        steerings.append(steering)
    # `max` keeps the first of equals: the better-ranked layer.
    best = max(range(len(rows)), key=lambda i: rows[i]["product"])
    return steerings[best], [{**row, "chosen": i == best} for i, row in enumerate(rows)]


def _factor(evaluation: Evaluation, name: str) -> float:
    """A metric of the product, by its name in the protocol."""
    if name == "informative" and name not in evaluation.metrics:
        name = "not other"
    plain = name.removeprefix("not ")
    _checks.known("metric", plain, evaluation.metrics)
    # Only shares and probabilities are in the products, so that "not" is 1 - share.
    value = evaluation.metrics[plain].value
    return 1 - value if plain != name else value
