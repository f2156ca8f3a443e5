"""`CAAPolicy`: contrastive activation addition at the residual stream of one layer, said with edits of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.analysis.families import Family
from radiant_lens.analysis.sensitivity import fisher_scores, gain_gradient, require_gain
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import desirable_statements
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import ConvergenceError, InvalidArgumentError, NothingToEditError
from radiant_lens.evaluation.multiple_choice import score_choices
from radiant_lens.models.identity import require_bridge
from radiant_lens.models.lengths import within_context
from radiant_lens.models.packing import answer_passes, predict
from radiant_lens.models.tokens import answer_rows, pass_tokens
from radiant_lens.policies.template import steering_template
from radiant_lens.steering.maps import RankOneMaps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.detectors.detector import RiskAwareDetector

GATES = ("none", "layer")
# Ratio of singular values below which an output projection counts as singular: shifts would be of that length.
SMALLEST_RATIO = 1e-5


@dataclass(frozen=True)
class CAAPolicy:
    """Add the difference of the class means of the residual stream after the attention of one layer.

    Contrastive activation addition (arXiv 2312.06681). The vector is added through the heads of the layer: the shift
    `x` of all its heads together is the shortest one that the output projection maps to it, `x = v pinv(W_O)`. That is
    exact where the projection reaches every direction of the residual stream and is added to it as it is.

    Args:
        layer: the layer; None: the one that gains most on validation text. All layers are ranked by their gain in
            log-share for its KL to first and second order, then `n_tried` of them by the MC2 measured at `budget`.
        alpha: strength, positive; 1 moves one mean onto the other.
        gate: "none" edits everywhere, "layer" where the layer's vote flags (its heads then move together).
        budget: KL in nats a token at which layers are compared, positive.
        n_tried: layers that are measured, at least 1.

    Example:
        >>> steering = CAAPolicy().fit(model, train, validation=validation)  # doctest: +SKIP
    """

    layer: int | None = None
    alpha: float = 1.0
    gate: str = "none"
    budget: float = 0.05
    n_tried: int = 3

    def check(self) -> None:
        """Raise `InvalidArgumentError` where a parameter is out of its range; `fit` does so first."""
        if self.layer is not None:
            _checks.whole("layer", self.layer, 0)
        _checks.between("alpha", self.alpha, 0)
        _checks.choice("gate", self.gate, GATES)
        _checks.between("budget", self.budget, 0)
        _checks.whole("n_tried", self.n_tried, 1)

    def fit(
        self,
        model: TransformerBridge,
        train: Dataset,
        *,
        validation: Dataset | None = None,
        detector: RiskAwareDetector | None = None,
        max_tokens: int | None = None,
    ) -> Steering:
        """Compute the class means, and choose the layer.

        Args:
            model: from `load_model`.
            train: statements of both classes.
            validation: of other groups, with prompts that have both kinds of answers and desirable statements; needed
                to choose a layer.
            detector: fitted; needed for the gate "layer".
            max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.

        Raises:
            InvalidArgumentError: a parameter out of its range, a gate without a detector, or no layer and no
                `validation`.
            NothingToEditError: a model whose heads cannot write every vector into its residual stream.
            DataError: one class only, or validation data without prompts or statements of the kinds above.
            LeakageError: training and validation share a group.
            ConvergenceError: at none of the tried layers any strength meets the budget.
        """
        self.check()
        _checks.instance("train", train, Dataset)
        require_bridge(model)
        if self.layer is not None:
            _checks.whole("layer", self.layer, 0, model.cfg.n_layers - 1)
        if validation is not None:
            _checks.disjoint_groups(train.groups, validation.groups, ("training", "validation"))
        if self.layer is None:
            if validation is None:
                raise InvalidArgumentError("Without a `layer`, `fit` needs `validation` data to choose one.")
            require_gain(validation.prompts)
            desirable_statements(validation)
        layers = range(model.cfg.n_layers) if self.layer is None else [self.layer]
        heads = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
        template = steering_template(model, heads, self.gate, detector, "CAA")
        inverses = {layer: _right_inverse(model, layer) for layer in layers}
        train = within_context(model, train)
        vectors = class_mean_differences(model, train, layers, max_tokens=max_tokens)
        by_layer = [(vectors[layer] @ inverses[layer]).unflatten(0, (-1, model.cfg.d_head)) for layer in layers]
        maps = RankOneMaps.translation(self.alpha * torch.cat(by_layer))
        every = replace(template, head_maps=maps)
        seen = {*template.meta["seen_groups"], *train.groups}
        layer = self.layer
        if layer is None:
            assert validation is not None
            layer = self._choose(model, every, within_context(model, validation), max_tokens)
            seen |= validation.groups
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        chosen = every.select([site for site in every.sites if site.layer == layer])
        policy_meta = {"name": "CAA", **settings, "layer": layer, "heads": [list(site) for site in chosen.sites]}
        return replace(
            chosen, meta={**template.meta, "policy": policy_meta, "data": train.name, "seen_groups": sorted(seen)}
        )

    def _choose(self, model: TransformerBridge, every: Steering, data: Dataset, max_tokens: int | None) -> int:
        """The layer with the most MC2 at the budget, among those with the most predicted gain for their KL."""
        family = Family("strength", every)
        texts = desirable_statements(data) if self.gate == "none" else data.statements
        gradient = gain_gradient(model, data.prompts, family, max_tokens=max_tokens).gradient[:, 0]
        scores = fisher_scores(model, texts, family, max_tokens=max_tokens).scores[..., 0].double()
        at = {layer: [i for i, site in enumerate(every.sites) if site.layer == layer] for layer in every.layers}
        # Along the one direction of a layer: gain g, KL s^2 / 2, so the gain at a KL goes with g over the root of s^2.
        ratio = {
            layer: float(gradient[sites].sum() / scores[:, sites].sum(1).square().sum().sqrt().clamp_min(1e-300))
            for layer, sites in at.items()
        }
        mc2: dict[int, float] = {}
        reasons: list[str] = []
        for layer in sorted(ratio, key=lambda layer: -ratio[layer])[: self.n_tried]:
            own = every.select([every.sites[i] for i in at[layer]])
            try:
                own = own.at_kl(model, data, self.budget, max_tokens=max_tokens)
            except ConvergenceError as reason:
                reasons.append(f"layer {layer}: {reason}")
                continue
            mc2[layer] = float(score_choices(model, data.prompts, own, max_tokens=max_tokens)["mc2"].mean())
        if not mc2:
            raise ConvergenceError(" ".join(reasons))
        return max(mc2, key=lambda layer: mc2[layer])


def class_mean_differences(
    model: TransformerBridge, data: Dataset, layers: Sequence[int], *, max_tokens: int | None = None
) -> dict[int, Float[Tensor, " d_model"]]:
    """Difference of the class means of the residual stream after each layer's attention, desirable minus undesirable.

    The means are over the positions that predict tokens of the answers.

    Raises:
        DataError: one class only.
    """
    statements = data.statements
    labels = torch.tensor([statement.label for statement in statements])
    _checks.both_classes(labels, "the training data")
    sums = {layer: torch.zeros((2, model.cfg.d_model), dtype=torch.float64) for layer in layers}
    counts = torch.zeros(2, dtype=torch.float64)
    stream: dict[int, Tensor] = {}

    def reader(layer: int) -> HookFunction:
        def read(value: Tensor, hook: object) -> Tensor:
            stream[layer] = value.detach()
            return value

        return read

    rows = list(answer_rows(model, statements))
    for batch in answer_passes(model, rows, max_tokens=pass_tokens(model, max_tokens)):
        with torch.no_grad(), model.hooks(fwd_hooks=[(_hook_name(layer), reader(layer)) for layer in layers]):
            # Of its logits, which nobody reads, `predict` computes the fewest.
            predict(model, batch)
        label = labels[batch.texts]
        counts += torch.bincount(label, minlength=2)
        for layer, values in stream.items():
            at = values[batch.rows.to(values.device), batch.columns.to(values.device)].double().cpu()
            sums[layer].index_add_(0, label, at)
    means = {layer: total / counts[:, None] for layer, total in sums.items()}
    return {layer: mean[0] - mean[1] for layer, mean in means.items()}


def _hook_name(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_mid"


def _right_inverse(model: TransformerBridge, layer: int) -> Float[Tensor, "d_model width"]:
    """The matrix from a vector of the residual stream to the shortest shift of the layer's heads that writes it.

    Raises:
        NothingToEditError: there is none; says why.
    """
    blocks: Any = model.blocks
    block = blocks[layer]
    if _hook_name(layer) not in model.hook_dict:
        reason = f"layer {layer} has no residual stream between attention and MLP"
    elif hasattr(block, "ln1_post"):
        reason = f"layer {layer} normalises the output of its attention before adding it"
    else:
        # Some architectures scale the output of attention before it is added to the residual.
        scale = getattr(block.attn, "_result_contribution_scale", 1.0)
        projection = scale * block.attn.W_O.detach().double().cpu().flatten(0, 1)
        values = torch.linalg.svdvals(projection)
        if len(projection) >= projection.shape[1] and values[-1] > SMALLEST_RATIO * values[0]:
            return torch.linalg.pinv(projection)
        reason = f"the output projection of layer {layer} does not reach every direction of the residual stream"
    raise NothingToEditError(
        f"Heads cannot add a given vector to the residual stream: {reason}. Use `MeanShiftPolicy`."
    )
