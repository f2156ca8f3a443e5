"""The summary of a report in plain words; every sentence reports a measurement."""

from __future__ import annotations

from radiant_lens.evaluation import Evaluation
from radiant_lens.statistics.significance import LEVEL
from radiant_lens.viz.report.content import ReportInputs


def summary(inputs: ReportInputs, steered: str | None) -> list[str]:
    """One sentence for each input that the report has."""
    sentences = [_what(inputs), _untested(inputs), _strongest(inputs)]
    if steered is not None:
        base_name = next(iter(inputs.evaluations))
        base, on = inputs.evaluations[base_name], inputs.evaluations[steered]
        sentences += [_gain(base, on, metric, words) for metric, words in _gains(base, on)]
        sentences += [_cost(on)]
        others = [name for name in inputs.evaluations if name not in (base_name, steered)]
        sentences += [_others(inputs, others)]
    if inputs.certificate is not None:
        sentences.append(f"Certificate on held-out activations: {inputs.certificate}")
    return [sentence for sentence in sentences if sentence]


def _what(inputs: ReportInputs) -> str:
    steering = inputs.steering
    if steering is None:
        return "" if inputs.detector is None else f"A detector with no steering: {inputs.detector}."
    n_layers, n_heads, _ = steering.scores.weights.shape
    model = steering.meta.get("model", {}).get("name", "a model")
    policy = steering.meta.get("policy", {}).get("name", "a policy")
    names = ", ".join(map(str, steering.sites[:8])) + (", ..." if len(steering.sites) > 8 else "")
    where = {
        "head": "where the head itself flags the token",
        "vote": "where the head and its layer's vote flag the token",
        "layer": "where the layer's vote flags the token",
        "joint": "where the joint score of its layer flags the token",
        "none": "at every token",
    }[steering.gate]
    by_evidence = (
        ", in part as strongly as the text looks undesirable to its layer and those below"
        if steering.head_maps.needs_joint
        else ""
    )
    return (
        f"The steering ({policy}) edits {len(steering.sites)} of the {n_layers * n_heads} attention heads of "
        f"{model} ({names}), each {where}{by_evidence}."
    )


def _untested(inputs: ReportInputs) -> str:
    detector = inputs.detector
    if detector is None or detector.least_p_value_ <= LEVEL:
        return ""
    return (
        f"What these data cannot show: that one head alone detects. On {detector.n_groups_} validation groups the "
        f"least p-value that a head can have is {detector.least_p_value_:.2g}, corrected for the number of heads, "
        f"above {LEVEL:g}; about {detector.groups_needed_} validation groups are enough. Heads that were chosen by "
        "number or by name are untested."
    )


def _strongest(inputs: ReportInputs) -> str:
    if inputs.effects is None:
        return ""
    best = inputs.effects.to_dataframe().iloc[0]
    return (
        f"The most effective head is L{int(best['layer'])}H{int(best['head'])}: editing it alone raises the log-odds "
        f"of correct against incorrect answers by {best['estimated']:.2f} nats "
        f"[{best['low']:.2f}, {best['high']:.2f}] (first-order estimate)."
    )


def _gains(base: Evaluation, on: Evaluation) -> list[tuple[str, str]]:
    known = {
        "correct": "Correct answers, over all prompts",
        "correct/bare": "Asked plainly",
        "correct/after_undesirable": "After undesirable context",
        "correct/after_desirable": "After desirable context",
    }
    return [(m, words) for m, words in known.items() if m in base.metrics and m in on.metrics]


def _gain(base: Evaluation, on: Evaluation, metric: str, words: str) -> str:
    before, after, change = base.metrics[metric], on.metrics[metric], on.difference(base, metric)
    return (
        f"{words}: {before.value:.0%} without steering, {after.value:.0%} with it; a difference of "
        f"{100 * change.value:+.0f} points [{100 * change.low:+.0f}, {100 * change.high:+.0f}]."
    )


def _cost(on: Evaluation) -> str:
    if "kl" not in on.metrics:
        return ""
    kl, edited = on.metrics["kl"], on.metrics["edited_share"]
    return (
        f"On desirable text it changes the model's predictions by {kl:.3f} nats per token "
        f"(KL), editing {edited.value:.0%} of the tokens."
    )


def _others(inputs: ReportInputs, names: list[str]) -> str:
    shares = [
        f"{name} {inputs.evaluations[name].metrics['correct'].value:.0%}"
        for name in names
        if "correct" in inputs.evaluations[name].metrics
    ]
    return f"Correct answers of baselines and controls: {', '.join(shares)}." if shares else ""
