"""`Steering` as users meet it: the edits of `radiant_lens.steering`, with the methods that run a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, overload

from radiant_lens import _checks
from radiant_lens.analysis.behaviour import BehaviourCertificate, certify_behaviour
from radiant_lens.analysis.strength import KLCurve, desirable_statements, measure_kl
from radiant_lens.caches import HeadCache
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.evaluation.likelihood import KeptLogits
from radiant_lens.models.identity import require_fitting
from radiant_lens.models.lengths import fit_context
from radiant_lens.steering import steering as without_model
from radiant_lens.steering.held_out import HeldOutCertificate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Steering(without_model.Steering):
    """Edits of attention heads at `hook_z`, with the gate that decides where they happen.

    Made by a policy's `fit`; use it with `radiant_lens.steer`, or its `hooks()` with `model.hooks`. The base class,
    `radiant_lens.steering.Steering`, has the attributes and all that needs no model (a server reads steerings where
    TransformerLens is not installed); this class adds the strength at a budget of KL, and bounds on behaviour.
    """

    def at_kl(
        self,
        model: TransformerBridge,
        data: Dataset,
        budget: float,
        *,
        confidence: float | None = None,
        max_tokens: int | None = None,
    ) -> Steering:
        """The same edits with the strength at which the KL on desirable text meets a budget.

        Where the KL jumps over the budget, as gates of later layers open or close, it is the strength below the jump,
        if half of the budget is used there.

        Groups of `data` took part in the choice, so `certify` refuses them afterwards. Texts beyond the model's context
        are skipped with a warning, or what else `data.on_long` says.

        Args:
            model: from `load_model`.
            data: its desirable statements are measured.
            budget: KL in nats a token, positive.
            confidence: None: the mean KL meets the budget. Else an upper bound of it over groups does, with this
                confidence in (0.5, 1): a lower strength, which keeps the budget on other groups.
            max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.

        Raises:
            InvalidArgumentError: a budget or confidence out of range.
            DataError: no desirable statements, or all of them (with the rule "error", one) longer than the context.
            ConvergenceError: no strength meets the budget; where a gate stays shut on `data`, none does.
        """
        _checks.between("budget", budget, 0)
        if confidence is not None:
            _checks.between("confidence", confidence, 0.5, 1)
        require_fitting(self, model)
        statements = fit_context(model, desirable_statements(data), data.on_long).records

        unsteered = KeptLogits()

        def measured(strength: float) -> float:
            kl = measure_kl(model, statements, self.scaled(strength), kept=unsteered, max_tokens=max_tokens)
            return kl.mean if confidence is None else kl.upper(confidence)

        strength = KLCurve(measured).at(budget).strength
        seen = {*self.meta.get("seen_groups", ()), *data.groups}
        scaled = self.scaled(strength)
        return replace(scaled, meta={**scaled.meta, "kl_budget": budget, "seen_groups": sorted(seen)})

    @overload
    def certify(
        self, cache: HeadCache, *, confidence: float = ..., seed: int = ..., draws: int = ...
    ) -> HeldOutCertificate: ...

    @overload
    def certify(
        self, cache: TransformerBridge, data: Dataset, *, confidence: float = ..., seed: int = ..., draws: int = ...
    ) -> BehaviourCertificate: ...

    def certify(
        self,
        cache: HeadCache | TransformerBridge,
        data: Dataset | None = None,
        *,
        confidence: float = 0.95,
        seed: int = 0,
        draws: int = 20,
    ) -> HeldOutCertificate | BehaviourCertificate:
        """Bounds on held-out groups: of the heads alone, or of what the steered model says.

        `certify(cache)` counts the gated activations that their head still flags after the edit.
        `certify(model, data)` bounds the KL on desirable text and the share of questions whose log-odds of a correct
        answer rise, and has the heads' certificate third; texts beyond the model's context are skipped with a warning,
        or what else `data.on_long` says.

        Args:
            cache: activations, or the model, with `data` as second argument.
            data: prompts with both kinds of answers, and desirable statements, of groups that were not used so far.
            confidence: of the bounds, in (0, 1), and above 0.5 with a model.
            seed: of the draw of one token or question a group. Choose it before looking.
            draws: number of draws of tokens that are reported beside the first, at least 1.

        Raises:
            LeakageError: a group was used to fit, to choose heads, or to set the strength.
            DataError: activations that are not finite, data without prompts or statements of the kinds above, or all
                texts (with the rule "error", one) longer than the context.
            InvalidArgumentError: a cache with `data`, or a model without.
        """
        if isinstance(cache, HeadCache) != (data is None):
            raise InvalidArgumentError("Give `certify` either a cache, or a model and a data set.")
        if isinstance(cache, HeadCache):
            return super().certify(cache, confidence=confidence, seed=seed, draws=draws)
        assert data is not None
        return certify_behaviour(cache, self, data, confidence=confidence, seed=seed, draws=draws)
