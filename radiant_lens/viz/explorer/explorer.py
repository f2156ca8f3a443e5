"""`Explorer`: the state of a steering that is tried out by hand, its answers and its heads; it knows no front end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from radiant_lens import _checks
from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.identity import require_bridge, require_fitting
from radiant_lens.sites import HeadSite
from radiant_lens.viz import _style as style
from radiant_lens.viz.explorer.code import Source, reproducing_code
from radiant_lens.viz.explorer.data_scores import DataScores, TopToken, draw_statements, kl_sample
from radiant_lens.viz.explorer.prompts import TEXT, Example, examples, prompt_reader
from radiant_lens.viz.explorer.settings import Settings, allowed_settings
from radiant_lens.viz.explorer.streams import PLAIN, STEERED, Answer, Token, TokenKL, stream_answer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NO_DATA = "it is measured on data, and the explorer was opened without: rl.explore(model, steering, data)"


@dataclass(frozen=True)
class Rates:
    """Error rates of a head: `fpr`, `fnr`, and the risk `fpr + fnr_weight * fnr`."""

    fpr: float
    fnr: float
    risk: float


@dataclass(frozen=True)
class HeadDetails:
    """Details of one head.

    Attributes:
        site: the head.
        edited: it is one of the steering's heads.
        on: it is edited and not taken out.
        risk: of the detector on its validation data; None where it is not known.
        data_risk: of the steering's own scores on the drawn texts; None without data or before they are read.
        effect: on the log-odds of correct answers in nats, with its 95% interval; None where it is not known.
        top_tokens: of the drawn texts, those with the head's largest scores.
        no_tokens: the reason why there are no top tokens.
    """

    site: HeadSite
    edited: bool
    on: bool
    risk: Rates | None
    data_risk: Rates | None
    effect: tuple[float, float, float] | None
    top_tokens: tuple[TopToken, ...]
    no_tokens: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields; the head by its name."""
        return {**asdict(self), "site": str(self.site)}


class Explorer:
    """A steering with settings that are moved by hand.

    Args:
        model: from `load_model`.
        steering: from a policy's `fit`, or loaded.
        data: for examples, budgets of KL, and the tokens at which a head's score is largest.
        detector: of the steering, for the risk of every head; without it, the risks that the steering records.
        effects: from `head_effects`.
        max_new_tokens: tokens of an answer at most.
        source: where model and steering come from, for the code.

    Attributes:
        settings: the present state.
        examples: prompts drawn from the data.

    Raises:
        InvalidArgumentError: an object of another type, or a number out of its range.
        ModelMismatchError: a steering for another model.
    """

    def __init__(
        self,
        model: TransformerBridge,
        steering: Steering,
        data: Dataset | None = None,
        *,
        detector: RiskAwareDetector | None = None,
        effects: HeadEffects | None = None,
        max_new_tokens: int = 20,
        source: Source | None = None,
    ) -> None:
        require_bridge(model)
        require_fitting(steering, model)
        _checks.instance("data", data, (Dataset, type(None)), hint="`load_dataset` makes one")
        _checks.instance("effects", effects, (HeadEffects, type(None)), hint="`head_effects` returns them")
        if detector is not None:
            style.require_risks(detector)
        self.model, self.original, self.data, self.detector = model, steering, data, detector
        self._source = source
        self._reader = prompt_reader(model, data)
        self._kl_sample = None if data is None else kl_sample(data)
        self.allowed = allowed_settings(steering, forms=self._reader.forms, no_budget=self._no_budget())
        self.examples: tuple[Example, ...] = examples(data, self._reader)
        first = self.examples[0] if self.examples else Example("", TEXT, "")
        start = Settings(prompt=first.prompt, form=first.form, gate=steering.gate)
        self.settings = self.allowed.changed(start, {"max_new_tokens": max_new_tokens})
        self.scores = None if data is None else DataScores(draw_statements(model, data), steering.scores)
        self._effects = {} if effects is None else {site: i for i, site in enumerate(effects.sites)}
        self._measured = effects
        self._plain: dict[object, list[Token | TokenKL | Answer]] = {}
        self._solved: dict[object, float] = {}

    def __repr__(self) -> str:
        """The steering as it is set."""
        return f"Explorer({self.steering!r}, {self.settings!r})"

    def _no_budget(self) -> str:
        if self.data is None:
            return NO_DATA
        return "" if self._kl_sample else f"data set {self.data.name!r} has no desirable statements to measure it on"

    def set(self, **changes: object) -> Settings:
        """Change settings (see `Settings`) and return the new ones; after an error they are as before.

        A budget is met by `meet_budget`, or before the next answer.

        Raises:
            UnknownNameError: a setting that does not exist.
            InvalidArgumentError: a value that is not allowed.
        """
        self.settings = self.allowed.changed(self.settings, changes)
        return self.settings

    @property
    def gated(self) -> Steering | None:
        """The steering with the heads and the gate of the settings, at its own strength; None without heads."""
        sites = [site for site in self.original.sites if site not in self.settings.off]
        if not sites:
            return None
        chosen = self.original if len(sites) == len(self.original.sites) else self.original.select(sites)
        return chosen if chosen.gate == self.settings.gate else replace(chosen, gate=self.settings.gate)

    @property
    def steering(self) -> Steering | None:
        """The steering as it is set; None if every head is taken out."""
        gated = self.gated
        return None if gated is None else gated.scaled(self.settings.strength)

    @property
    def needs_strength(self) -> bool:
        """True if there is a budget whose strength has not been measured yet."""
        return self.settings.budget is not None and self._budget_key() not in self._solved

    def _budget_key(self) -> object:
        return self.settings.budget, self.settings.gate, self.settings.off

    def meet_budget(self) -> float:
        """Set the strength at which the KL on desirable statements of the data meets the budget; returns it.

        Without a budget, the strength is left as it is. For the same budget, gate and heads it is measured once.

        Raises:
            ConvergenceError: no strength meets the budget.
        """
        gated, budget = self.gated, self.settings.budget
        if budget is None or gated is None:
            return self.settings.strength
        key = self._budget_key()
        if key not in self._solved:
            assert self._kl_sample is not None
            solved = gated.at_kl(self.model, self._kl_sample, budget)
            self._solved[key] = solved.meta.get("strength", 1.0) / gated.meta.get("strength", 1.0)
        self.settings = replace(self.settings, strength=self._solved[key])
        return self.settings.strength

    def answer(self) -> Iterator[Token | TokenKL | Answer]:
        """Generate the plain answer, which is kept for the next time, and the steered one, token by token.

        Raises:
            InvalidArgumentError: an empty prompt.
            DataError: a prompt that leaves no room for the answer in the context.
            ConvergenceError: no strength meets the budget.
        """
        settings = self.settings
        if not settings.prompt.strip():
            raise InvalidArgumentError("`prompt` must hold some text to continue; got none.")
        if self.needs_strength:
            self.meet_budget()
        prompt, steering = self._reader.read(settings.prompt, settings.form), self.steering
        stop = () if self.data is None else self.data.stop
        options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "stop": stop}
        key = (prompt.text, prompt.rendered, settings.max_new_tokens)
        if key not in self._plain:
            events: list[Token | TokenKL | Answer] = []
            # All heads of the steering vote here, so that nothing but the prompt changes this answer.
            for event in stream_answer(self.model, prompt, self.original, side=PLAIN, **options):
                events.append(event)
                yield event
            # One answer, so that memory does not grow.
            self._plain = {key: events}
        else:
            yield from self._plain[key]
        yield from stream_answer(self.model, prompt, steering, side=STEERED, **options)

    def code(self) -> str:
        """Return Python code that sets `plain` and `steered` to the two answers."""
        return reproducing_code(
            self.settings,
            self.original,
            stop=() if self.data is None else self.data.stop,
            template=self._reader.template,
            source=self._source,
        )

    def head(self, site: HeadSite | tuple[int, int]) -> HeadDetails:
        """Return what is known of one head.

        Raises:
            InvalidArgumentError: a head that the model does not have.
        """
        n_layers, n_heads, _ = self.original.scores.weights.shape
        layer, head = site
        _checks.whole("layer", layer, 0, n_layers - 1)
        _checks.whole("head", head, 0, n_heads - 1)
        site = HeadSite(layer, head)
        edited = site in self.original.sites
        reason = self._no_tokens(site)
        return HeadDetails(
            site=site,
            edited=edited,
            on=edited and site not in self.settings.off,
            risk=self.recorded_risks().get(site),
            data_risk=self._data_risk(site),
            effect=self.effect(site),
            top_tokens=() if reason or self.scores is None else self.scores.top(site, self.model.tokenizer),
            no_tokens=reason,
        )

    def recorded_risks(self) -> dict[HeadSite, Rates]:
        """Error rates of heads on the detector's validation data: the detector's own, or those in the steering."""
        if self.detector is not None:
            risks, fprs, fnrs = (getattr(self.detector, f"head_{name}_").tolist() for name in ("risk", "fpr", "fnr"))
            return {
                HeadSite(layer, head): Rates(fprs[layer][head], fnrs[layer][head], risk)
                for layer in self.detector.collected_layers_
                for head, risk in enumerate(risks[layer])
            }
        recorded: dict[str, Any] = self.original.meta.get("metrics", {}).get("detector", {})
        n_heads = self.original.scores.weights.shape[1]
        sites = [HeadSite(layer, head) for layer in range(len(self.original.scores.weights)) for head in range(n_heads)]
        # A file may come from anywhere: entries that are no rates are left out.
        return {
            site: Rates(*(float(rates[name]) for name in ("fpr", "fnr", "risk")))
            for site in sites
            if isinstance(rates := recorded.get(str(site)), dict) and {"fpr", "fnr", "risk"} <= rates.keys()
        }

    @property
    def detects(self) -> bool:
        """True if the steering has a detector."""
        return bool(self.original.scores.weights.any())

    @property
    def fnr_weight(self) -> float:
        """Weight of a miss in the risk, as the steering records it."""
        weight = self.original.meta.get("detector", {}).get("fnr_weight", 1.0)
        return float(weight) if isinstance(weight, (int, float)) else 1.0

    def _data_risk(self, site: HeadSite) -> Rates | None:
        if self.scores is None or not self.scores.n_tokens or self._no_tokens(site):
            return None
        fpr, fnr = (float(rates[site]) for rates in self.scores.rates())
        return None if torch.tensor([fpr, fnr]).isnan().any() else Rates(fpr, fnr, fpr + self.fnr_weight * fnr)

    def effect(self, site: HeadSite) -> tuple[float, float, float] | None:
        """Effect of editing a head, with the ends of its interval; None where it is not known."""
        if self._measured is None or site not in self._effects:
            return None
        i = self._effects[site]
        interval = self._measured.intervals[i]
        return float(self._measured.estimated[i]), interval.low, interval.high

    def _no_tokens(self, site: HeadSite) -> str:
        if self.scores is None:
            return "Tokens are ranked on data: rl.explore(model, steering, data)."
        if not bool(self.original.scores.weights[site].any()):
            return "This head has no detector, so its tokens have no score."
        return "" if self.scores.n_tokens else "The texts have not been read yet."
