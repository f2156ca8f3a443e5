"""`RiskAwareDetector`: a score for every head, a vote for every layer, and which heads can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.scores import LOSSES, AffineScores, fit_heads
from radiant_lens.detectors.subset import Part, head_chunks
from radiant_lens.detectors.votes import VOTE_RULES, LayerVotes, VotingData, choose_thresholds
from radiant_lens.distributed import fitting_rank, shared
from radiant_lens.errors import InvalidArgumentError, NotFittedError
from radiant_lens.sites import hook_name, layer_of
from radiant_lens.statistics.rates import ErrorRates, benjamini_hochberg, detection_p_values, error_rates


class Detection(NamedTuple):
    """What a detector sees at one layer: every head's score, and how many flag."""

    layer: int
    scores: Float[Tensor, "batch pos head"]
    votes: Int[Tensor, "batch pos"]


class RiskAwareDetector(BaseEstimator):
    """Detect undesirable content from the activations of attention heads (RADIANT, section 3).

    Every head gets an affine score, trained on `FPR + fnr_weight * FNR`; a layer flags an example when
    enough of its heads do. Every figure comes from a part of the validation data that training never saw.
    With weak heads a large `fnr_weight` makes "flag everything" the best detector: such heads are not
    `head_significant_`, and `str(detector)` counts them.

    Args:
        fnr_weight: weight of a miss against a false alarm, positive.
        loss: "risk", "cross_entropy", "mass_mean" or "lda".
        vote_rule: "fnr", "risk" or "certified" (see `radiant_lens.detectors.choose_thresholds`).
        target_fnr: what the certified rule promises, in (0, 1).
        delta: probability with which that promise may fail, in (0, 1).
        seed: halves the validation data and picks the tokens that certificates count.
        vote_layer: for the certified rule, the one layer that was named beforehand.
        l2: penalty on the weights of standardised activations, at least 0.
        max_iterations: of the quasi-Newton method, at least 1.

    Attributes:
        weights_, biases_: the scores, `layer head d_head` and `layer head`, in units of the activations.
        head_fpr_, head_fnr_, head_risk_: validation error rates and risk, `layer head`.
        head_p_value_, head_significant_: is the risk below that of flagging all or none? `layer head`;
            significant at a false discovery rate of 5%.
        vote_thresholds_, vote_fpr_, vote_fnr_, vote_risk_, vote_certified_: of the layers' votes.
        training_groups_, validation_groups_: names of the groups that were learned from and chosen on.
        layer_risk_: mean validation risk of each layer's heads; `best_layer_` has the least.

    Example:
        >>> detector = RiskAwareDetector(fnr_weight=2.0)  # .fit(cache, validation=other_cache)
    """

    def __init__(
        self,
        fnr_weight: float = 1.0,
        loss: str = "risk",
        vote_rule: str = "fnr",
        target_fnr: float = 0.1,
        delta: float = 0.05,
        seed: int = 0,
        *,
        vote_layer: int | None = None,
        l2: float = 1e-3,
        max_iterations: int = 12,
    ) -> None:
        self.fnr_weight = fnr_weight
        self.loss = loss
        self.vote_rule = vote_rule
        self.target_fnr = target_fnr
        self.delta = delta
        self.seed = seed
        self.vote_layer = vote_layer
        self.l2 = l2
        self.max_iterations = max_iterations

    def fit(self, cache: HeadCache, validation: HeadCache | None = None) -> RiskAwareDetector:
        """Fit all heads and votes.

        Args:
            cache: training activations.
            validation: of other groups; half of it stops the training, the other half gives every figure.
                None: a fifth of the groups of `cache` is set apart.

        Raises:
            InvalidArgumentError: a parameter out of its range, or caches of different shapes.
            DataError: no example of a class, or activations that are not finite.
            LeakageError: training and validation share a group.
            GuaranteeError: the certified rule cannot hold on this data.
        """
        _checks.instance("cache", cache, HeadCache, hint="`collect` makes one")
        _checks.instance("validation", validation, (HeadCache, type(None)))
        self._check_parameters(cache.n_layers)
        train = Part.whole(cache)
        if validation is None:
            train, held = train.split((0.8, 0.2), seed=self.seed)
        else:
            _checks.shape("validation.z", validation.z, (None, *cache.z.shape[1:]), "example layer head d_head")
            held = Part.whole(validation)
        _check_parts(train, held)
        stop, test = held.split((0.5, 0.5), seed=self.seed)
        for part, where in ((stop, "the stop half"), (test, "the test half")):
            _checks.both_classes(part.labels, f"{where} of the validation data")
        weights, biases = self._fit_scores(train, stop)
        flags = test.flags(weights, biases)
        # Thresholds may be refused; only then is anything learned kept.
        votes = self._choose_votes(test, flags)
        self.weights_: Float[Tensor, "layer head d_head"] = weights
        self.biases_: Float[Tensor, "layer head"] = biases
        self.training_groups_ = train.group_names
        self.validation_groups_ = held.group_names
        self._judge_heads(test, flags)
        self._keep_votes(votes.thresholds, votes.rates)
        self.vote_certified_: Bool[Tensor, " layer"] = votes.certified
        return self

    def judge(self, cache: HeadCache) -> RiskAwareDetector:
        """Measure every figure of heads and layers anew on a cache; scores and vote thresholds stay as they are.

        Args:
            cache: activations that the scores were not fitted on.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a cache of another shape.
            DataError: no example of a class, or activations that are not finite.
        """
        _checks.both_classes(cache.labels, "`cache`")
        _checks.finite("cache.z", cache.z)
        flags = self.flags(cache)
        self._judge_heads(Part.whole(cache), flags)
        counts = flags.sum(-1)
        self._keep_votes(self.vote_thresholds_, error_rates(counts >= self.vote_thresholds_, cache.labels))
        return self

    def _judge_heads(self, test: Part, flags: Bool[Tensor, "example layer head"]) -> None:
        rates = error_rates(flags, test.labels)
        self.head_fpr_: Float[Tensor, "layer head"] = rates.fpr
        self.head_fnr_: Float[Tensor, "layer head"] = rates.fnr
        self.head_risk_: Float[Tensor, "layer head"] = rates.risk(self.fnr_weight)
        self.head_constant_: Bool[Tensor, "layer head"] = flags.all(dim=0) | ~flags.any(dim=0)
        self.head_p_value_ = detection_p_values(flags, test.labels, test.groups, self.fnr_weight)
        self.head_significant_: Bool[Tensor, "layer head"] = benjamini_hochberg(self.head_p_value_)
        self.layer_risk_: Float[Tensor, " layer"] = self.head_risk_.mean(dim=1)
        self.best_layer_ = int(self.layer_risk_.argmin())

    def _keep_votes(self, thresholds: Int[Tensor, " layer"], rates: ErrorRates) -> None:
        self.vote_thresholds_: Int[Tensor, " layer"] = thresholds
        self.vote_fpr_, self.vote_fnr_ = rates
        self.vote_risk_: Float[Tensor, " layer"] = rates.risk(self.fnr_weight)

    def _fit_scores(
        self, train: Part, stop: Part
    ) -> tuple[Float[Tensor, "layer head d_head"], Float[Tensor, "layer head"]]:
        """All heads together, or as many at a time as memory is meant to hold; ranks fit `together`."""
        n_layers, n_heads, d_head = train.cache.z.shape[1:]

        def fit(chunks: Sequence[slice]) -> list[AffineScores]:
            return [
                fit_heads(
                    train.sample(heads),
                    loss=self.loss,
                    fnr_weight=self.fnr_weight,
                    stop=stop.sample(heads),
                    l2=self.l2,
                    max_iterations=self.max_iterations,
                )
                for heads in chunks
            ]

        chunks = head_chunks(n_layers * n_heads, len(train.index) + len(stop.index), d_head)
        weights, biases = (torch.cat(tensors) for tensors in zip(*shared(chunks, fit, fitting_rank())))
        return weights.unflatten(0, (n_layers, n_heads)), biases.unflatten(0, (n_layers, n_heads))

    def _choose_votes(self, test: Part, flags: Bool[Tensor, "example layer head"]) -> LayerVotes:
        return choose_thresholds(
            VotingData(flags.sum(-1), test.labels, test.groups),
            flags.shape[-1],
            rule=self.vote_rule,
            fnr_weight=self.fnr_weight,
            target_fnr=self.target_fnr,
            delta=self.delta,
            layer=self.vote_layer,
            seed=self.seed,
        )

    def decision_function(self, cache: HeadCache) -> Float[Tensor, "example layer head"]:
        """Score of every head; at or above 0 it flags.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a cache of another shape.
        """
        self._require_fitted()
        _checks.instance("cache", cache, HeadCache)
        _checks.shape("cache.z", cache.z, (None, *self.weights_.shape), "example layer head d_head")
        return torch.cat(list(Part.whole(cache).scores(self.weights_, self.biases_)))

    def flags(self, cache: HeadCache) -> Bool[Tensor, "example layer head"]:
        """Where `decision_function` is at or above 0, without holding the scores."""
        self._require_fitted()
        _checks.shape("cache.z", cache.z, (None, *self.weights_.shape), "example layer head d_head")
        return Part.whole(cache).flags(self.weights_, self.biases_)

    def votes(self, cache: HeadCache) -> Int[Tensor, "example layer"]:
        """How many heads of each layer flag each example."""
        return self.flags(cache).sum(dim=-1)

    def predict(self, cache: HeadCache, layer: int | None = None) -> Int[Tensor, " example"]:
        """1 where the layer flags (at least its vote threshold of heads do), else 0.

        Args:
            cache: activations.
            layer: default `best_layer_`.
        """
        self._require_fitted()
        layer = self.best_layer_ if layer is None else layer
        _checks.whole("layer", layer, 0, len(self.vote_thresholds_) - 1)
        return (self.votes(cache)[:, layer] >= self.vote_thresholds_[layer]).long()

    def hook(self, recorder: Callable[[Detection], object]) -> HookFunction:
        """A hook function for any `hook_z`: hands a `Detection` to `recorder` and leaves `z` as it is.

        Args:
            recorder: called once for each pass through the hook, for instance a list's `append`.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a recorder that cannot be called, or (in a pass) a layer or shape of another model.
            UnknownNameError: (in a pass) a hook that is no `hook_z`.
        """
        self._require_fitted()
        if not callable(recorder):
            raise InvalidArgumentError(f"`recorder` must be callable, such as a list's `append`; got {recorder!r}.")

        def detect(z: Tensor, hook: Any) -> Tensor:
            layer = layer_of(hook.name)
            _checks.whole("layer", layer, 0, len(self.weights_) - 1)
            _checks.shape(f"z of layer {layer}", z, (None, None, *self.weights_.shape[1:]), "batch pos head d_head")
            scores = torch.einsum("bphd,hd->bph", z.to(self.weights_), self.weights_[layer]) + self.biases_[layer]
            recorder(Detection(layer, scores, (scores >= 0).sum(-1)))
            return z

        return detect

    def hooks(self, recorder: Callable[[Detection], object]) -> list[tuple[str, HookFunction]]:
        """`hook(recorder)` for every layer, as TransformerLens takes them."""
        function = self.hook(recorder)
        return [(hook_name(layer), function) for layer in range(len(self.weights_))]

    def __str__(self) -> str:
        """Parameters, and once fitted how many heads are significant and how many flag all or none."""
        if not hasattr(self, "weights_"):
            return repr(self)
        n = self.head_significant_.numel()
        return (
            f"{self!r}: {int(self.head_significant_.sum())} of {n} heads significant, "
            f"{int(self.head_constant_.sum())} flag all or none; best layer {self.best_layer_}, "
            f"risk of its vote {float(self.vote_risk_[self.best_layer_]):.2f}"
        )

    def _require_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise NotFittedError("This RiskAwareDetector is not fitted yet: call `fit(cache, validation=...)` first.")

    def _check_parameters(self, n_layers: int) -> None:
        _checks.between("fnr_weight", self.fnr_weight, 0)
        _checks.choice("loss", self.loss, LOSSES)
        _checks.choice("vote_rule", self.vote_rule, VOTE_RULES)
        _checks.between("target_fnr", self.target_fnr, 0, 1)
        _checks.between("delta", self.delta, 0, 1)
        _checks.seed(self.seed)
        _checks.between("l2", self.l2, 0, closed="low")
        _checks.whole("max_iterations", self.max_iterations, 1)
        if self.vote_layer is not None:
            _checks.whole("vote_layer", self.vote_layer, 0, n_layers - 1)


def _check_parts(train: Part, validation: Part) -> None:
    for part, where in ((train, "the training data"), (validation, "the validation data")):
        _checks.both_classes(part.labels, where)
        _checks.finite(f"activations of {where}", part.cache.z)
    _checks.disjoint_groups(train.group_names, validation.group_names, ("training", "validation"))
