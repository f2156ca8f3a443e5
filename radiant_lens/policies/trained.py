"""`TrainedShiftPolicy`: shifts of heads found by gradient steps, the ceiling for those found in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from radiant_lens import _checks
from radiant_lens.analysis.families import Family
from radiant_lens.analysis.sensitivity import gain_gradient, kl_gradient, require_gain
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import desirable_statements
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import DESIRABLE
from radiant_lens.distributed import progress_bar
from radiant_lens.models.lengths import within_context
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.policies.least_kl import LeastKLPolicy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TrainedShiftPolicy:
    """Shifts of heads trained by Adam for the log-share of correct answers, with a penalty on the KL.

    The objective is `gain - kl_weight * KL`, on small batches of training questions. After training the strength is
    set to the budget of KL, as for `LeastKLPolicy`. The head biases of LoFiT (arXiv 2406.01563) with that objective in
    place of a fine-tuning loss; LoFiT's choice of heads and its scales are left out.

    Args:
        budget: KL in nats a token, positive.
        heads: "all", "layer:I", heads by name or pairs `(layer, head)`.
        family: "constant" or "affine" (see `radiant_lens.analysis.families`).
        epochs: passes over the training questions, at least 1.
        batch_size: questions in a step, at least 1.
        learning_rate: of Adam, positive.
        kl_weight: nats of log-share that a nat of KL a token costs, at least 0.
        seed: of the order of the questions.
    """

    budget: float = 0.05
    heads: HeadChoice = "all"
    family: str = "constant"
    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 0.01
    kl_weight: float = 10.0
    seed: int = 0

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        _checks.between("budget", self.budget, 0)
        _checks.choice("family", self.family, ("constant", "affine"))
        _checks.whole("epochs", self.epochs, 1)
        _checks.whole("batch_size", self.batch_size, 1)
        _checks.between("learning_rate", self.learning_rate, 0)
        _checks.between("kl_weight", self.kl_weight, 0, closed="low")
        _checks.seed(self.seed)

    def fit(
        self,
        model: TransformerBridge,
        train: Dataset,
        *,
        validation: Dataset,
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> Steering:
        """Train the shifts.

        Args:
            model: from `load_model`.
            train: prompts with correct and incorrect answers, and desirable statements.
            validation: desirable statements of other groups, on which the KL is measured.
            max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.
            progress: show a progress bar.

        Raises:
            InvalidArgumentError: a parameter out of its range.
            DataError: data without prompts of both kinds of answers, or without desirable statements.
            LeakageError: training and validation share a group.
            ConvergenceError: no strength meets the budget.
        """
        self.check()
        _checks.disjoint_groups(train.groups, validation.groups, ("training", "validation"))
        train = within_context(model, train)
        for data in (train, validation):
            desirable_statements(data)
        batches = self._batches(train)
        family = LeastKLPolicy(heads=self.heads, family=self.family).make_family(model, train, max_tokens=max_tokens)
        parameters = torch.zeros((len(family.sites), family.n_parameters), requires_grad=True)
        optimiser = torch.optim.Adam([parameters], lr=self.learning_rate)
        with progress_bar(shown=progress) as bar:
            for batch in bar.track(batches, description="training shifts"):
                optimiser.zero_grad()
                parameters.grad = -self._ascent(model, batch, family, parameters.detach(), max_tokens)
                optimiser.step()
        trained = replace(family.template, head_maps=family.maps(parameters.detach().double()))
        seen = sorted({*train.groups, *family.template.meta.get("seen_groups", ())})
        meta = {**family.template.meta, "policy": self._settings(family), "data": train.name, "seen_groups": seen}
        return replace(trained, meta=meta).at_kl(model, validation, self.budget, max_tokens=max_tokens)

    def _batches(self, train: Dataset) -> list[Dataset]:
        """Questions with both kinds of answers and their desirable statements, in a new order in each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = sorted({p.group for p in require_gain(train.prompts)})
        batches = []
        for _ in range(self.epochs):
            order = torch.randperm(len(groups), generator=generator).tolist()
            for first in range(0, len(order), self.batch_size):
                batches.append(train.only({groups[i] for i in order[first : first + self.batch_size]}))
        return batches

    def _ascent(
        self, model: TransformerBridge, batch: Dataset, family: Family, parameters: torch.Tensor, max_tokens: int | None
    ) -> torch.Tensor:
        """Gradient of `gain - kl_weight * KL` at the present shifts."""
        steering = replace(family.template, head_maps=family.maps(parameters.double()))
        gradient = gain_gradient(model, batch.prompts, family, steering, max_tokens=max_tokens).gradient
        desirable = [s for s in batch.statements if s.label == DESIRABLE]
        if self.kl_weight and desirable:
            kl = kl_gradient(model, desirable, family, steering, max_tokens=max_tokens)
            gradient = gradient - self.kl_weight * kl.gradient
        return gradient.float()

    def _settings(self, family: Family) -> dict[str, object]:
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"name": "trained shift", **settings, "heads": [list(site) for site in family.sites]}
