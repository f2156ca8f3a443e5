"""One configuration of the paper's protocol for each of its published tables, on its models.

Models, folds, validation share, `margin`, `fnr_weight`, the vote rule, and ITI's 48 heads and strength 15 are taken
from the authors' released scripts (github.com/nguyenngocbaocmt02/OT-Intervention), which do not name them for every
table: the 6 examples and toxicity on llama-7b are guesses. Their judges of truth and information are no longer
available; the open ones replace them, and a Jigsaw classifier replaces Perspective's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.loading import load_dataset
from radiant_lens.models.loading import load_model
from radiant_lens.studies.protocols import PaperProtocol, ProtocolResult, run_protocol

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class PaperTable:
    """Model, data and settings of one published table. Not measured on that model with this package.

    Attributes:
        model: Hub id.
        data: data set to fit on.
        test_data: data set to test on; None for `data`.
        protocol: settings of the choice and the test.
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
        n_groups: int | None = None,
        seeds: Sequence[int] = (0,),
        out: str | Path | None = None,
        progress: bool = False,
        **options: Any,
    ) -> ProtocolResult:
        """Run the protocol.

        Args:
            model: in place of the table's own, anything that `load_model` takes.
            data, test_data: local files in the published format, in place of the Hub.
            n_groups: of each, drawn at random, for a quick look; None for all.
            seeds, out, progress: as for `run_protocol`.
            options: of `evaluate`, in place of the table's.
        """

        def draw(dataset: Dataset) -> Dataset:
            return dataset if n_groups is None else dataset.sample(n_groups)

        return run_protocol(
            load_model(self.model if model is None else model),
            draw(load_dataset(self.data, path=data)),
            self.protocol,
            test_data=None if self.test_data is None else draw(load_dataset(self.test_data, path=test_data)),
            seeds=seeds,
            out=out,
            progress=progress,
            **{**self.options, **options},
        )


_TRUTH = {"judge": "truthfulqa", "metrics": ("answers", "choice", "text"), "max_new_tokens": 50, "temperature": 0.0}
# RealToxicityPrompts asks for 25 samples of each prompt.
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
