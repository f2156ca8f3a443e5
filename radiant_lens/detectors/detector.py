"""`RiskAwareDetector`: a score for every head, a vote for every layer, and a test of every head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.detectors.collected import check_parts, common_layers, require_collected, without
from radiant_lens.detectors.display import detector_card, heads_table
from radiant_lens.detectors.joint import JointScores, fit_joint, joint_scores
from radiant_lens.detectors.scores import LOSSES, AffineScores, fit_heads
from radiant_lens.detectors.subset import Part, head_chunks
from radiant_lens.detectors.votes import VOTE_RULES, Detection, LayerVotes, VotingData, choose_thresholds
from radiant_lens.distributed import fitting_rank, shared
from radiant_lens.errors import InvalidArgumentError, NotFittedError
from radiant_lens.sites import hook_name, layer_of
from radiant_lens.statistics.rates import error_rates
from radiant_lens.statistics.significance import LEVEL, benjamini_hochberg, detection_p_values, detection_power


class RiskAwareDetector(BaseEstimator):
    """Detect undesirable content from the activations of attention heads (RADIANT, section 3).

    Every head gets an affine score, trained on `FPR + fnr_weight * FNR`; a layer flags an example when
    enough of its heads do. Every figure comes from half of the validation groups, the test half: training never saw
    it, and neither early stopping nor the choice of vote thresholds did. The certified rule alone chooses on the test
    half, as its bound requires: there, the promise is the bound, and the votes' rates are optimistic.

    With weak heads a large `fnr_weight` makes "flag everything" the best detector: such heads are not
    `head_significant_`, and `str(detector)` counts them. Heads of layers that were not collected
    (`collect(layers=...)`) are never significant, and have infinite risk.

    Args:
        fnr_weight: weight of a miss against a false alarm, positive.
        loss: "risk", "cross_entropy", "mass_mean" or "lda".
        vote_rule: "fnr", "risk" or "certified" (see `radiant_lens.detectors.choose_thresholds`).
        target_fnr: bound of the FNR that the certified rule promises, in (0, 1).
        delta: probability with which that promise may fail, in (0, 1).
        seed: of the halves of the validation data, of permutations, and of the tokens that certificates count.
        vote_layer: for the certified rule, the one layer to certify, chosen before seeing the data.
        l2: penalty on the weights of standardised activations, at least 0; joint scores take 100 times as much.
        max_iterations: of the quasi-Newton method, at least 1.
        joint: fit a score of each whole layer, with those below it, for the gate "joint" and for edits by evidence: by
            cross-entropy, with thresholds and ramps chosen on the stop half (`radiant_lens.detectors.joint`).

    Attributes:
        weights_, biases_: the scores, `layer head d_head` and `layer head`, in units of the activations.
        head_fpr_, head_fnr_, head_risk_: validation error rates and risk, `layer head`; NaN, NaN and infinite in layers
            that were not collected.
        head_p_value_, head_significant_: test of "the risk is not below that of flagging all or none" by permuting
            labels, `layer head`; significant at a false discovery rate of 5%.
        head_constant_: heads that flag all or none, `layer head`.
        least_p_value_: least p-value that one head can have on these groups, after Benjamini-Hochberg over all heads;
            above 0.05, one head alone cannot be significant.
        n_groups_, groups_needed_: validation groups, and how many it takes for one head alone to be significant.
        vote_thresholds_, vote_fpr_, vote_fnr_, vote_risk_, vote_certified_: of the layers' votes, `layer`.
        joint_weights_, joint_biases_, joint_carry_, joint_fpr_, joint_fnr_: scores of layers, `layer head d_head` and
            `layer`, factors of the score of the layer below, and validation error rates; None without `joint`.
        joint_ramps_: joint scores at which the evidence of a layer is 0 and 1, and its size on desirable text, the root
            of its mean square, `layer start_end_size`; None without `joint`.
        layer_risk_: mean validation risk of each layer's heads; `best_layer_` has the least.
        training_groups_, validation_groups_: names of the groups of both parts.
        collected_layers_: layers that training and validation data both hold.

    Example:
        >>> detector = RiskAwareDetector(fnr_weight=2.0)  # .fit(cache, validation=other_cache)
    """

    joint_weights_: Float[Tensor, "layer head d_head"] | None = None
    joint_biases_: Float[Tensor, " layer"] | None = None
    joint_carry_: Float[Tensor, " layer"] | None = None
    joint_ramps_: Float[Tensor, "layer start_end_size"] | None = None
    joint_fpr_: Float[Tensor, " layer"] | None = None
    joint_fnr_: Float[Tensor, " layer"] | None = None

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
        joint: bool = False,
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
        self.joint = joint

    def fit(self, cache: HeadCache, validation: HeadCache | None = None) -> RiskAwareDetector:
        """Fit all heads and votes.

        Args:
            cache: training activations.
            validation: of other groups; half of them stops the training and chooses vote thresholds, the other half
                gives every figure. None: a fifth of the groups of `cache` is set apart.

        Raises:
            InvalidArgumentError: a parameter out of its range, or caches of different shapes or layers.
            DataError: no example of a class, or activations that are not finite.
            LeakageError: training and validation share a group.
            GuaranteeError: the certified rule cannot hold on this data.
        """
        _checks.instance("cache", cache, HeadCache, hint="`collect` makes one")
        _checks.instance("validation", validation, (HeadCache, type(None)))
        layers = common_layers(cache, cache if validation is None else validation)
        self._check_parameters(cache.n_layers, layers)
        train, held_out = self._train_and_held_out(cache, validation)
        check_parts(train, held_out)
        stop, test = held_out.split((0.5, 0.5), seed=self.seed)
        for part, where in ((stop, "the stop half"), (test, "the test half")):
            _checks.both_classes(part.labels, f"{where} of the validation data")
        weights, biases = self._fit_scores(train, stop)
        flags = test.flags(weights, biases)
        # The scores were stopped on the stop half, so a bound is valid on the test half alone. The other rules choose
        # on the stop half, because the best of many thresholds looks better than it is on the data that chose it.
        certifies = self.vote_rule == "certified"
        chooser, chooser_flags = (test, flags) if certifies else (stop, stop.flags(weights, biases))
        # The choice may raise; attributes are set only after it, so that a failed refit does not mix two fits.
        votes = self._choose_votes(chooser, chooser_flags, layers)
        joint = fit_joint(train, stop, layers, self.l2, self.max_iterations) if self.joint else (None,) * 4
        self.weights_: Float[Tensor, "layer head d_head"] = weights
        self.biases_: Float[Tensor, "layer head"] = biases
        self.joint_weights_, self.joint_biases_, self.joint_carry_, self.joint_ramps_ = joint
        self.collected_layers_ = layers
        self.training_groups_ = train.group_names
        self.validation_groups_ = held_out.group_names
        self.vote_thresholds_: Int[Tensor, " layer"] = votes.thresholds
        self.vote_certified_: Bool[Tensor, " layer"] = votes.certified
        self._measure(test, flags, layers, n_groups=len(held_out.group_names))
        return self

    def judge(self, cache: HeadCache) -> RiskAwareDetector:
        """Measure every figure of heads and layers again, on another cache; scores and vote thresholds do not change.

        Args:
            cache: activations that the scores were not fitted on.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a cache of another shape, or of other layers.
            DataError: no example of a class, or activations that are not finite.
        """
        require_fitted(self)
        _checks.both_classes(cache.labels, "`cache`")
        _checks.finite("cache.z", cache.z)
        flags = self.flags(cache)
        whole = Part.whole(cache)
        layers = tuple(layer for layer in common_layers(cache, cache) if layer in self.collected_layers_)
        if not layers:
            raise InvalidArgumentError(
                f"`cache` holds layers {cache.collected_layers}; the detector was fitted on {self.collected_layers_}. "
                "Collect at least one of the same layers."
            )
        self._measure(whole, flags, layers, n_groups=len(whole.group_names))
        return self

    def _train_and_held_out(self, cache: HeadCache, validation: HeadCache | None) -> tuple[Part, Part]:
        train = Part.whole(cache)
        if validation is None:
            train, held_out = train.split((0.8, 0.2), seed=self.seed)
            return train, held_out
        _checks.shape("validation.z", validation.z, (None, *cache.z.shape[1:]), "example layer head d_head")
        return train, Part.whole(validation)

    def _measure(
        self, test: Part, flags: Bool[Tensor, "example layer head"], layers: tuple[int, ...], n_groups: int
    ) -> None:
        """Set every figure; `n_groups` counts the groups that had to be held out to have those of `test`."""
        missing = [layer for layer in range(flags.shape[1]) if layer not in layers]
        rates = error_rates(flags, test.labels)
        self.head_fpr_: Float[Tensor, "layer head"] = without(rates.fpr, missing, math.nan)
        self.head_fnr_: Float[Tensor, "layer head"] = without(rates.fnr, missing, math.nan)
        self.head_risk_: Float[Tensor, "layer head"] = without(rates.risk(self.fnr_weight), missing, math.inf)
        self.head_constant_: Bool[Tensor, "layer head"] = flags.all(dim=0) | ~flags.any(dim=0)
        self._test_heads(test, flags, layers, n_groups)
        self.layer_risk_: Float[Tensor, " layer"] = self.head_risk_.mean(dim=1)
        self.best_layer_ = int(self.layer_risk_.argmin())
        votes = error_rates(flags.sum(-1) >= self.vote_thresholds_, test.labels)
        self.vote_fpr_: Float[Tensor, " layer"] = without(votes.fpr, missing, math.nan)
        self.vote_fnr_: Float[Tensor, " layer"] = without(votes.fnr, missing, math.nan)
        self.vote_risk_: Float[Tensor, " layer"] = without(votes.risk(self.fnr_weight), missing, math.inf)
        self.joint_fpr_ = self.joint_fnr_ = None
        if (scores := self._joint_scores) is not None:
            self.joint_fpr_, self.joint_fnr_ = scores.rates(test, layers)

    @property
    def _joint_scores(self) -> JointScores | None:
        return joint_scores(self.joint_weights_, self.joint_biases_, self.joint_carry_)

    def _test_heads(
        self, test: Part, flags: Bool[Tensor, "example layer head"], layers: tuple[int, ...], n_groups: int
    ) -> None:
        """Test which heads detect; heads of layers that were not collected take no part."""
        tested = flags[:, list(layers)]
        p_values = detection_p_values(tested, test.design, self.fnr_weight, seed=self.seed)
        self.head_p_value_: Float[Tensor, "layer head"] = torch.ones(flags.shape[1:], dtype=torch.float64)
        self.head_significant_: Bool[Tensor, "layer head"] = torch.zeros(flags.shape[1:], dtype=torch.bool)
        self.head_p_value_[list(layers)] = p_values
        self.head_significant_[list(layers)] = benjamini_hochberg(p_values)
        power = detection_power(test.design, p_values.numel())
        self.least_p_value_ = min(1.0, power.least_p_value * p_values.numel())
        self.n_groups_ = n_groups
        self.groups_needed_ = math.ceil(power.n_groups_needed * n_groups / power.n_groups)

    def _fit_scores(
        self, train: Part, stop: Part
    ) -> tuple[Float[Tensor, "layer head d_head"], Float[Tensor, "layer head"]]:
        """Fit chunks of heads that fit into memory; the ranks of one launch share them."""
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

    def _choose_votes(
        self, part: Part, flags: Bool[Tensor, "example layer head"], layers: tuple[int, ...]
    ) -> LayerVotes:
        """Choose thresholds of the collected layers; elsewhere all heads must flag, and nothing is certified."""
        n_layers, n_heads = flags.shape[1:]
        votes = choose_thresholds(
            VotingData(flags[:, list(layers)].sum(-1), part.labels, part.groups),
            n_heads,
            rule=self.vote_rule,
            fnr_weight=self.fnr_weight,
            target_fnr=self.target_fnr,
            delta=self.delta,
            layer=None if self.vote_layer is None else layers.index(self.vote_layer),
            seed=self.seed,
        )
        thresholds, certified = torch.full((n_layers,), n_heads), torch.zeros(n_layers, dtype=torch.bool)
        thresholds[list(layers)], certified[list(layers)] = votes.thresholds, votes.certified
        return votes._replace(thresholds=thresholds, certified=certified)

    def decision_function(self, cache: HeadCache) -> Float[Tensor, "example layer head"]:
        """Score of every head; at or above 0 it flags.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a cache of another shape.
        """
        require_fitted(self)
        _checks.instance("cache", cache, HeadCache)
        _checks.shape("cache.z", cache.z, (None, *self.weights_.shape), "example layer head d_head")
        return torch.cat(list(Part.whole(cache).scores(self.weights_, self.biases_)))

    def flags(self, cache: HeadCache) -> Bool[Tensor, "example layer head"]:
        """Flag where `decision_function` is at or above 0, without holding all scores in memory."""
        require_fitted(self)
        _checks.shape("cache.z", cache.z, (None, *self.weights_.shape), "example layer head d_head")
        return Part.whole(cache).flags(self.weights_, self.biases_)

    def joint_flags(self, cache: HeadCache) -> Bool[Tensor, "example layer"]:
        """Flag where the joint score of the layer is at or above 0.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a cache of another shape, or a detector without joint scores. A layer that the cache
                lacks, or that takes up one that it lacks, has no meaning.
        """
        require_fitted(self)
        _checks.instance("cache", cache, HeadCache)
        _checks.shape("cache.z", cache.z, (None, *self.weights_.shape), "example layer head d_head")
        if self._joint_scores is None:
            raise InvalidArgumentError("This detector has no joint scores: fit a `RiskAwareDetector(joint=True)`.")
        return self._joint_scores.flags(Part.whole(cache))

    def votes(self, cache: HeadCache) -> Int[Tensor, "example layer"]:
        """Count the heads of each layer that flag each example."""
        return self.flags(cache).sum(dim=-1)

    def predict(self, cache: HeadCache, layer: int | None = None) -> Int[Tensor, " example"]:
        """1 where the layer flags (at least its vote threshold of heads do), else 0.

        Args:
            cache: activations.
            layer: default `best_layer_`.

        Raises:
            InvalidArgumentError: a layer out of range, or one that was not collected.
        """
        require_fitted(self)
        layer = self.best_layer_ if layer is None else layer
        _checks.whole("layer", layer, 0, len(self.vote_thresholds_) - 1)
        require_collected("layer", layer, tuple(i for i in self.collected_layers_ if i in cache.collected_layers))
        return (self.votes(cache)[:, layer] >= self.vote_thresholds_[layer]).long()

    def hook(self, recorder: Callable[[Detection], object]) -> HookFunction:
        """Return a hook function for any `hook_z` that calls `recorder` with a `Detection` and does not change `z`.

        Args:
            recorder: called once for each pass through the hook, for instance a list's `append`.

        Raises:
            NotFittedError: before `fit`.
            InvalidArgumentError: a recorder that cannot be called, or (in a pass) a layer or shape of another model.
            UnknownNameError: (in a pass) a hook that is not a `hook_z`.
        """
        require_fitted(self)
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
        """Return `hook(recorder)` for every layer, in the pairs that TransformerLens takes."""
        function = self.hook(recorder)
        return [(hook_name(layer), function) for layer in range(len(self.weights_))]

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each head: `layer`, `head`, validation `fpr`, `fnr`, `risk`, `p_value` and `significant`."""
        require_fitted(self)
        rates = {"fpr": self.head_fpr_, "fnr": self.head_fnr_, "risk": self.head_risk_}
        return heads_table({**rates, "p_value": self.head_p_value_, "significant": self.head_significant_})

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        # In place of scikit-learn's table of parameters.
        risk = self.head_risk_ if hasattr(self, "weights_") else None
        return {"text/plain": str(self), "text/html": detector_card(str(self), risk)}

    def __str__(self) -> str:
        """Show the parameters and, once fitted, how many heads are significant and how many flag all or none."""
        if not hasattr(self, "weights_"):
            return repr(self)
        n = self.head_significant_.numel()
        too_few = (
            f"; {self.n_groups_} validation groups cannot show that one head alone is significant, which takes "
            f"{self.groups_needed_}"
        )
        return (
            f"{self!r}: {int(self.head_significant_.sum())} of {n} heads significant, "
            f"{int(self.head_constant_.sum())} flag all or none; best layer {self.best_layer_}, "
            f"risk of its vote {float(self.vote_risk_[self.best_layer_]):.2f}"
            f"{too_few if self.least_p_value_ > LEVEL else ''}"
        )

    def _check_parameters(self, n_layers: int, layers: tuple[int, ...]) -> None:
        _checks.between("fnr_weight", self.fnr_weight, 0)
        _checks.choice("loss", self.loss, LOSSES)
        _checks.choice("vote_rule", self.vote_rule, VOTE_RULES)
        _checks.between("target_fnr", self.target_fnr, 0, 1)
        _checks.between("delta", self.delta, 0, 1)
        _checks.seed(self.seed)
        _checks.between("l2", self.l2, 0, closed="low")
        _checks.whole("max_iterations", self.max_iterations, 1)
        _checks.instance("joint", self.joint, bool)
        if self.vote_layer is not None:
            _checks.whole("vote_layer", self.vote_layer, 0, n_layers - 1)
            require_collected("vote_layer", self.vote_layer, layers)


def require_fitted(detector: object, *, hint: str = "") -> None:
    """Raise `NotFittedError` before `fit`, `InvalidArgumentError` for another object; `hint` tells how to get one."""
    _checks.instance("detector", detector, RiskAwareDetector, hint=hint)
    if not hasattr(detector, "weights_"):
        raise NotFittedError("This RiskAwareDetector is not fitted yet: call `fit(cache, validation=...)` first.")
