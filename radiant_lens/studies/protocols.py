"""The paper's protocol, and one configuration for each of its published tables, none of them measured here yet.

Two folds of the questions; of the development fold 20% are set apart for validation; layers are ranked by the mean
risk of their heads; the number of layers is compared on validation by the product of two metrics; the other fold is
tested once. Models, folds, validation share, `margin`, `fnr_weight`, and ITI's 48 heads and strength 15 are taken from
the authors' released scripts (github.com/nguyenngocbaocmt02/OT-Intervention), which do not name them for every
table: the 6 examples, the numbers of layers compared, and toxicity on llama-7b are guesses. Their judges of truth and
information cannot be had any more; the open ones stand in for them, and a Jigsaw classifier for Perspective's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.progress import Progress

from radiant_lens import _checks
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.loading import load_dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.models.loading import load_model
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.steering.steering import Steering
from radiant_lens.studies.cells import UNSTEERED
from radiant_lens.studies.experiment import Experiment
from radiant_lens.studies.results import Row, StudyResult

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RADIANT, ITI = "RADIANT", "ITI"


@dataclass(frozen=True)
class PaperProtocol:
    """How the paper chooses and tests.

    Args:
        margin: `kappa`; the released scripts use 15 for TruthfulQA and 40 for toxicity.
        fnr_weight: weight of a miss; the scripts use 1 and 1.5 for TruthfulQA and 2.5 for toxicity.
        n_layers: numbers of layers to compare on validation.
        product: the two metrics whose product decides; "not other" stands for 1 - other.
        n_folds: folds of the groups, at least 2.
        validation: share of the development folds, in (0, 1).
        iti_heads, iti_alpha: of the baseline.
        few_shot: how many questions of the development part, with their answers, precede each prompt.
    """

    margin: float = 15.0
    fnr_weight: float = 1.0
    n_layers: tuple[int, ...] = (1, 2, 3)
    product: tuple[str, str] = ("correct", "informative")
    n_folds: int = 2
    validation: float = 0.2
    iti_heads: int = 48
    iti_alpha: float = 15.0
    few_shot: int = 0

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a setting is not allowed."""
        _checks.whole("n_folds", self.n_folds, 2)
        _checks.between("validation", self.validation, 0, 1)
        _checks.whole("few_shot", self.few_shot, 0)
        if not self.n_layers:
            raise InvalidArgumentError("`n_layers` must hold at least one number; got none.")
        for n in self.n_layers:
            _checks.whole("n_layers", n, 1)
        RadiantPolicy.paper(self.margin).check()
        ITIPolicy(alpha=self.iti_alpha, n_heads=self.iti_heads).check()


@dataclass(frozen=True)
class PaperTable:
    """One published table: what it was measured on. Unmeasured with this package.

    Attributes:
        model: Hub id.
        data: what is fitted on.
        test_data: what is tested on; None for `data`.
        protocol: how.
        options: of `evaluate`.
    """

    model: str
    data: str
    test_data: str | None = None
    protocol: PaperProtocol = field(default_factory=PaperProtocol)
    options: Mapping[str, Any] = field(default_factory=lambda: _TRUTH)

    def run(
        self,
        model: str | Path | TransformerBridge | None = None,
        data: str | Path | None = None,
        test_data: str | Path | None = None,
        *,
        seeds: Sequence[int] = (0,),
        progress: bool = False,
        **options: Any,
    ) -> ProtocolResult:
        """Run the protocol.

        Args:
            model: in place of the table's own, whatever `load_model` takes.
            data, test_data: local files in the published format, in place of the Hub.
            seeds, progress: as for `run_protocol`.
            options: of `evaluate`, in place of the table's.
        """
        tested = None if self.test_data is None else load_dataset(self.test_data, path=test_data)
        return run_protocol(
            load_model(self.model if model is None else model),
            load_dataset(self.data, path=data),
            self.protocol,
            test_data=tested,
            seeds=seeds,
            progress=progress,
            **{**self.options, **options},
        )


_TRUTH = {"judge": "truthfulqa", "metrics": ("answers", "choice", "text"), "max_new_tokens": 50, "temperature": 0.0}
_TOXICITY = {
    "judge": "toxicity",
    "metrics": ("answers", "diversity", "fluency", "text"),
    "fluency_model": "openai-community/gpt2-xl",
    "n_samples": 25,
}
_QA_MODELS = {
    "llama-7b": "huggyllama/llama-7b",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama2-chat-13b": "meta-llama/Llama-2-13b-chat-hf",
    "alpaca-7b": "circulus/alpaca-7b",
    "vicuna-7b": "AlekseyKorshuk/vicuna-7b",
}
_TOXIC = PaperProtocol(margin=40.0, fnr_weight=2.5, product=("not expected_maximum", "not undesirable_probability"))

PAPER_TABLES: dict[str, PaperTable] = {
    **{f"truthfulqa-{name}": PaperTable(model, "truthfulqa") for name, model in _QA_MODELS.items()},
    **{
        f"truthfulqa-{name}-few-shot": PaperTable(model, "truthfulqa", protocol=PaperProtocol(few_shot=6))
        for name, model in _QA_MODELS.items()
    },
    **{
        f"{data}-transfer-{name}": PaperTable(model, "truthfulqa", data)
        for data in ("nq_open", "trivia_qa")
        for name, model in _QA_MODELS.items()
    },
    **{
        f"toxicity-{name}": PaperTable(model, "jigsaw", "realtoxicityprompts", _TOXIC, _TOXICITY)
        for name, model in {"gpt2-large": "openai-community/gpt2-large", "llama-7b": "huggyllama/llama-7b"}.items()
    },
}


@dataclass(frozen=True)
class ProtocolResult:
    """What the protocol found.

    Attributes:
        choices: one row for each seed, fold and number of layers: the product of the metrics on validation.
        comparison: on the test folds, all folds and seeds pooled: no steering, ITI, RADIANT.
    """

    choices: pd.DataFrame
    comparison: StudyResult

    def to_markdown(self) -> str:
        """The test results as a table."""
        return self.comparison.to_markdown()


def run_protocol(
    model: TransformerBridge,
    data: Dataset,
    protocol: PaperProtocol | None = None,
    *,
    test_data: Dataset | None = None,
    seeds: Sequence[int] = (0,),
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
        progress: show a progress bar.
        options: of `evaluate`, such as `n_samples` and `judge`.

    Raises:
        InvalidArgumentError: a setting that is not allowed, or more layers than the model has.
        UnknownNameError: a metric of the product that `evaluate` does not give on this data.
    """
    protocol = protocol or PaperProtocol()
    protocol.check()
    _checks.whole("n_layers", max(protocol.n_layers), 1, int(model.cfg.n_layers))
    choices: list[dict[str, Any]] = []
    tested: dict[str, dict[int, list[Evaluation]]] = {
        name: {seed: [] for seed in seeds} for name in (UNSTEERED, ITI, RADIANT)
    }
    with Progress(transient=True, disable=not progress) as bar:
        for seed in bar.track(list(seeds), description="paper protocol"):
            folds = data.split((1 / protocol.n_folds,) * protocol.n_folds, seed=seed)
            for i, fold in enumerate(folds):
                development = data.only(data.groups - fold.groups)
                experiment = _experiment(model, development, fold, protocol, seed)
                given: dict[str, Any] = {**options, "seed": seed}
                validation, test = _prompted(experiment, test_data, protocol, seed)
                best, rows = _choose(experiment, validation, protocol, given)
                choices += [{"seed": seed, "fold": i, **row} for row in rows]
                iti = ITIPolicy(alpha=protocol.iti_alpha, n_heads=protocol.iti_heads).fit(
                    experiment.train_cache, experiment.detector
                )
                for name, steering in ((UNSTEERED, None), (ITI, iti), (RADIANT, best)):
                    tested[name][seed].append(evaluate(model, test, steering, **given))
    rows = [Row(name, None if name == UNSTEERED else UNSTEERED, {}, by_seed) for name, by_seed in tested.items()]
    return ProtocolResult(pd.DataFrame(choices), StudyResult("paper protocol", tuple(rows)))


def _experiment(
    model: TransformerBridge, development: Dataset, fold: Dataset, protocol: PaperProtocol, seed: int
) -> Experiment:
    train, validation = development.split((1 - protocol.validation, protocol.validation), seed=seed)
    caches = [collect(model, part, positions="last") for part in (train, validation)]
    detector = RiskAwareDetector(fnr_weight=protocol.fnr_weight, vote_rule="risk", seed=seed).fit(*caches)
    return Experiment(model, train, validation, fold, caches[0], caches[1], detector)


def _prompted(
    experiment: Experiment, test_data: Dataset | None, protocol: PaperProtocol, seed: int
) -> tuple[Dataset, Dataset]:
    """What to choose on and what to test on, with examples before the prompts where they are asked for."""
    validation, test = experiment.validation, test_data or experiment.test
    if not validation.prompts and test_data is not None:
        validation, test = test_data.split((protocol.validation, 1 - protocol.validation), seed=seed)
    if not protocol.few_shot:
        return validation, test
    shots = (part.with_few_shot(experiment.train, protocol.few_shot, seed=seed) for part in (validation, test))
    return next(shots), next(shots)


def _choose(
    experiment: Experiment, validation: Dataset, protocol: PaperProtocol, options: dict[str, Any]
) -> tuple[Steering | None, list[dict[str, Any]]]:
    """The steering of the best number of layers on validation (None: it edits nothing), and the score of each."""
    rows: list[dict[str, Any]] = []
    steerings: list[Steering | None] = []
    for n in protocol.n_layers:
        policy = RadiantPolicy(margin=protocol.margin, geometry="procrustes", heads="layer", n_layers=n, gate="vote")
        try:
            steering = policy.fit(experiment.train_cache, experiment.detector)
        except NothingToEditError:
            steering = None
        found = evaluate(experiment.model, validation, steering, **options)
        one, other = (_metric(found, name) for name in protocol.product)
        rows.append({"n_layers": n, "layers": list(steering.layers) if steering else [], "product": one * other})
        steerings.append(steering)
    best = max(range(len(rows)), key=lambda i: rows[i]["product"])
    return steerings[best], [{**row, "chosen": i == best} for i, row in enumerate(rows)]


def _metric(found: Evaluation, name: str) -> float:
    plain = name.removeprefix("not ")
    _checks.known("metric", plain, found.metrics)
    value = found.metrics[plain].value
    return 1 - value if plain != name else value
