"""Evaluations of a run that are kept as soon as they are finished, so that it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.distributed import this_rank
from radiant_lens.errors import InvalidArgumentError, RankError
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.evaluation.judges.judge import EachAnswer
from radiant_lens.evaluation.judges.registry import RULES, get_judge
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.models.identity import signature
from radiant_lens.studies.cells import CellStore, cell_key, data_fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class KeptEvaluations:
    """Evaluations of one model with the same options.

    Args:
        model: from `load_model`.
        options: of `evaluate`, without its seed.
        folder: where they are kept, one file each; None keeps them in memory.
        finished: called after each.

    Attributes:
        n_computed: number of evaluations that were computed here; the others were kept.

    Raises:
        InvalidArgumentError: a folder, and an option by which a later run could not know its own evaluations.
        OutputError: the folder cannot be written to.
    """

    def __init__(
        self, model: TransformerBridge, options: Mapping[str, Any], folder: Path | None, finished: Callable[[], None]
    ) -> None:
        self._model, self._store, self._finished = model, CellStore(folder), finished
        # Models that judge are loaded once.
        judge = options.get("judge")
        self._options: dict[str, Any] = {**options, "judge": None if judge is None else get_judge(judge)}
        self._store.check()
        # To hash the weights takes seconds to minutes; in memory no other model is known.
        self._inputs = {} if folder is None else {"model": signature(model), "options": _recognised(self._options)}
        self.n_computed = 0

    def get(self, seed: int, fit: Mapping[str, Any], name: str, data: Dataset, steering: Steering | None) -> Evaluation:
        """The evaluation of a steering, from the folder if it is there.

        Args:
            seed: of the fit and of the samples.
            fit: all that steerings depend on besides the model, the seed and their name, as JSON.
            name: of the steering.
            data: to evaluate on.
            steering: None for the unsteered model, which depends on no fit.

        Raises:
            RankError: ranks do not see the same folder, or one of them has died.
        """
        # A refit on another machine may choose other heads under the same name.
        heads = [] if steering is None else [str(site) for site in steering.sites]
        fitted = None if steering is None else {**fit, "steering": name, "heads": heads}
        key = cell_key({**self._inputs, "seed": seed, "tested": data_fingerprint(data), "fit": fitted})
        stored_by_rank = this_rank().gather(key in self._store)
        if any(stored_by_rank) and not all(stored_by_rank):
            raise RankError(f"`out` = {str(self._store.folder)!r} must be a folder that all machines share.")
        if not all(stored_by_rank):
            self.n_computed += 1
            self._store.save(key, evaluate(self._model, data, steering, **self._options, seed=seed))
        self._finished()
        return self._store.load(key)


def _recognised(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON by which a later run knows them."""
    named = dict(options)
    judge = named["judge"]
    # The default representation, also of a function within a judge, is an address.
    if (isinstance(judge, EachAnswer) and judge.rule not in RULES.values()) or " at 0x" in repr(judge):
        raise InvalidArgumentError(
            f"`judge`: finished evaluations are kept under its name, and {judge!r} has none that a later run would "
            f"know. Take one of {', '.join(RULES)}, give a judge a `__repr__` that says what it depends on, or leave "
            "`out` away."
        )
    if named.pop("fwd_hooks", ()):
        raise InvalidArgumentError("`fwd_hooks` are functions, which a later run would not know: leave `out` away.")
    second = named.get("fluency_model")
    if second is not None and not isinstance(second, (str, Path)):
        named["fluency_model"] = signature(second)
    return {name: value if _is_plain(value) else repr(value) for name, value in named.items()} | {"judge": repr(judge)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
