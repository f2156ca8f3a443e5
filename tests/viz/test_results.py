"""Figures of studies: idle arms are named, a study of idle arms alone has words, scales are centred on zero."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, UnknownNameError


def result_of(*notes: str, evaluations) -> SimpleNamespace:
    """The result of a study with one arm for each note; an arm with a note edited nothing."""

    def noted(evaluation, note):
        return replace(evaluation, settings={**evaluation.settings, "note": note})

    plain = SimpleNamespace(name="none", baseline=None, evaluations={0: [evaluations["no steering"]]})
    arms = [
        SimpleNamespace(name=f"arm {i}", baseline="none", evaluations={0: [noted(evaluations["RADIANT"], note)]})
        for i, note in enumerate(notes)
    ]
    rows = [plain, *arms]
    lines = [
        {"row": row.name, "metric": metric, **interval._asdict()}
        for row in rows
        for metric, interval in row.evaluations[0][0].metrics.items()
    ]
    table = pd.DataFrame(lines)
    metrics = list(table["metric"].unique())
    return SimpleNamespace(name="mine", n_seeds=1, rows=rows, metrics=lambda: metrics, pooled=lambda: table)


def words_of(figure) -> str:
    return figure.layout.annotations[0].text.replace("<br>", " ")


def test_a_study_in_which_every_arm_edits_nothing_has_words_and_no_figure(evaluations):
    figure = rl.viz.study(result_of("No head is significant.", "No head is significant.", evaluations=evaluations))
    assert not figure.data
    assert words_of(figure) == "Nothing was edited in any of the 2 steered rows. No head is significant."
    assert "no arm but the unsteered model" in words_of(rl.viz.study(result_of(evaluations=evaluations)))


def test_an_idle_arm_among_others_is_named_as_idle(evaluations):
    figure = rl.viz.study(result_of("", "No head is significant.", evaluations=evaluations))
    assert [trace.name for trace in figure.data] == ["none", "arm 0", "arm 1 (nothing edited)"]
    assert figure.layout.xaxis.title.text == "KL from the unsteered model<br>(nats per token)"
    assert figure.layout.yaxis.title.text == "correct answers, after<br>undesirable context<br>(share)"
    assert figure.layout.xaxis.rangemode == "tozero"


def test_a_metric_that_was_not_measured_is_refused(evaluations):
    with pytest.raises(UnknownNameError, match="'korrekt' is not a known metric"):
        rl.viz.study(result_of("", evaluations=evaluations), y="korrekt")
    with pytest.raises(InvalidArgumentError, match="`width` must be a whole number of at least 100"):
        rl.viz.study(result_of("", evaluations=evaluations), width=1)


def table_of(*effects: float) -> SimpleNamespace:
    table = pd.DataFrame({"layer": [0] * len(effects), "head": range(len(effects)), "effect": effects})
    return SimpleNamespace(kind="mean", metric="log_odds", table=table)


def test_effects_of_knocking_out_are_white_at_zero_and_darken_to_both_sides():
    heat = rl.viz.knock_out(table_of(0.5, -2.0, 0.0)).data[0]
    assert (heat.zmin, heat.zmax) == (-2.0, 2.0)
    assert heat.colorscale[2] == (0.5, "#ffffff")
    # Both ends are dark: red, green and blue add up to 765 in white.
    for end in (heat.colorscale[0][1], heat.colorscale[-1][1]):
        assert sum(int(end[i : i + 2], 16) for i in (1, 3, 5)) < 300


def test_effects_of_zero_are_reported_in_words():
    figure = rl.viz.knock_out(table_of(0.0, 0.0))
    assert not figure.data
    assert words_of(figure) == "No single head changes log-odds of correct answers: all effects are 0."
    assert words_of(rl.viz.knock_out(table_of(float("nan")))) == "No effect was measured."
    assert rl.viz.knock_out(table_of(1.0), width=300, height=250).layout.width == 300
