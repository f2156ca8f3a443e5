"""Every head by itself: its effect when it is knocked out or edited, and the risk of its detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiant_lens import _checks
from radiant_lens.analysis.effects import HeadEffects, head_effects
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.distributed import progress_bar
from radiant_lens.evaluation._evaluate import evaluate
from radiant_lens.evaluation.result import Evaluation
from radiant_lens.notebook import Fragment, card, html_table
from radiant_lens.policies.ablation import AblationPolicy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.policies.registry import Policy
from radiant_lens.studies.experiment import Experiment

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOG_ODDS = "log_odds"
Metric = str | Callable[[Evaluation], float]


@dataclass(frozen=True)
class HeadKnockOut:
    """Effect of knocking out each head on a metric.

    Attributes:
        kind: of the ablation, as for `AblationPolicy`.
        metric: name of the metric.
        table: one row a head: `layer`, `head`, `effect` (with minus without), and where they are known its
            interval `low`, `high` and permutation `p_value`, or its first-order estimate `estimated`. Intervals are
            over groups, for this one model and its activations.
    """

    kind: str
    metric: str
    table: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head, the largest effects first."""
        return self.table.sort_values("effect", key=lambda e: e.abs(), ascending=False, ignore_index=True)

    def _repr_html_(self) -> str:
        return card(f"{self.kind} ablation of each head: effect on {self.metric}", _rows(self.to_dataframe()))

    def plot(self) -> go.Figure:
        """Heatmap of the effects (see `radiant_lens.viz.knock_out`)."""
        from radiant_lens.viz.results import knock_out

        return knock_out(self)


def knock_out(
    experiment: Experiment,
    *,
    kind: str = "mean",
    metric: Metric = LOG_ODDS,
    data: Dataset | None = None,
    progress: bool = False,
    **options: Any,
) -> HeadKnockOut:
    """Replace one head after another and measure the change of a metric.

    Args:
        experiment: from `prepare`; replacements are drawn from its training activations.
        kind: as for `AblationPolicy`.
        metric: "log_odds" of correct against incorrect answers (nats, one pass a head), the name of any metric of
            `evaluate`, or a function of an `Evaluation`.
        data: prompts and statements to measure on; default the validation part.
        progress: show a progress bar.
        options: of `evaluate`, such as `n_samples`.

    Raises:
        InvalidArgumentError: an unknown kind.
        UnknownNameError: a metric that `evaluate` does not return for this data.
    """
    data = experiment.validation if data is None else data
    steering = AblationPolicy(kind=kind, heads=_every_head(experiment)).fit(experiment.train_cache, experiment.detector)
    if metric == LOG_ODDS:
        # No generation: one pass a head over the given answers.
        table = head_effects(experiment.model, data, steering).exact().to_dataframe()
        # `low` and `high` belong to the first-order estimate, not to the measured effect.
        table = table.assign(effect=table["measured"]).drop(columns=["measured", "low", "high"])
        return HeadKnockOut(kind, LOG_ODDS, table)
    plain = evaluate(experiment.model, data, **options)
    if isinstance(metric, str):
        _checks.known("metric", metric, plain.metrics)
    # Metrics of generated text need one evaluation for each head.
    rows = []
    with progress_bar(shown=progress) as bar:
        for site in bar.track(steering.sites, description=f"{kind} ablation"):
            without = evaluate(experiment.model, data, steering.select([site]), **options)
            rows.append({"layer": site.layer, "head": site.head, **_effect(metric, without, plain)})
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return HeadKnockOut(kind, name, pd.DataFrame(rows))


def _effect(metric: Metric, without: Evaluation, plain: Evaluation) -> dict[str, float]:
    if callable(metric):
        return {"effect": metric(without) - metric(plain)}
    change = without.difference(plain, metric)
    return {"effect": change.value, "low": change.low, "high": change.high, "p_value": change.p_value}


@dataclass(frozen=True)
class DetectingAndDoing:
    """Risk of each head's detector, and the effect of editing the head.

    Attributes:
        table: one row a head: `layer`, `head`, validation `risk`, first-order `estimated` effect on the log-odds with
            its interval `low`, `high`, and `measured` effect of the real edit.
        effects: the same effects, for `Steering.select`.
        experiment: the experiment it was measured on.
    """

    table: pd.DataFrame
    effects: HeadEffects
    experiment: Experiment

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head, the largest measured effects first."""
        return self.table.sort_values("measured", ascending=False, ignore_index=True)

    def _repr_html_(self) -> str:
        correlations = ", ".join(f"{name} {value:.2f}" for name, value in self.correlations().items())
        words = f"Rank correlations with the measured effect: {correlations}"
        return card("Risk of each head's detector, and effect of its edit", words, _rows(self.to_dataframe()))

    def correlations(self) -> dict[str, float]:
        """Spearman correlation of the measured effect with (negative) risk and with the estimate."""
        # Spearman's, by ranks: a few heads carry most of the effect, and would decide a correlation of values alone.
        ranked = self.table.assign(detecting=-self.table["risk"]).corr(method="spearman")
        return {
            "detecting": float(ranked.at["detecting", "measured"]),
            "estimate": float(ranked.at["estimated", "measured"]),
        }

    def plot(self) -> go.Figure:
        """Effect against risk (see `radiant_lens.viz.head_effects`)."""
        from radiant_lens.viz.heads import head_effects

        return head_effects(self.effects, self.experiment.detector)


def detecting_and_doing(experiment: Experiment, policy: Policy | None = None) -> DetectingAndDoing:
    """Edit every head by itself on the validation part, and compare the effect with the risk of its detector.

    Args:
        experiment: from `prepare`.
        policy: default `RadiantPolicy()`.
    """
    all_heads: Any = replace(policy or RadiantPolicy(), heads=_every_head(experiment))
    steering: Steering = experiment.fit(all_heads)
    effects = head_effects(experiment.model, experiment.validation, steering).exact()
    table = effects.to_dataframe()
    risk = experiment.detector.head_risk_
    table.insert(2, "risk", [float(risk[layer, head]) for layer, head in zip(table["layer"], table["head"])])
    return DetectingAndDoing(table, effects, experiment)


def _rows(table: pd.DataFrame) -> Fragment:
    return html_table(table.to_dict("records"), note=", in `.to_dataframe()`")


def _every_head(experiment: Experiment) -> list[tuple[int, int]]:
    n_layers, n_heads = experiment.detector.head_risk_.shape
    return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
