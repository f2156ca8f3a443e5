"""Figures of a model of 32 layers with 32 heads: readable, and built in under two seconds."""

from __future__ import annotations

import re
import time

import pytest
import torch

import radiant_lens as rl
from radiant_lens.analysis.writes import EditWrites
from radiant_lens.evaluation import Evaluation
from radiant_lens.hooks.trace import TraceRecord
from radiant_lens.sites import HeadSite
from radiant_lens.statistics.bounds import Interval
from radiant_lens.steering.steering import LayerEdit

N = 32
SITES = tuple(HeadSite(i, j) for i in range(N) for j in range(N))


@pytest.fixture(scope="module")
def large(gaussian_cache):
    """A detector of random scores, measured on a cache, and a steering that edits every head."""
    cache = gaussian_cache(200, n_layers=N, n_heads=N, d_head=8, shift=0.1)
    small = gaussian_cache(60, n_layers=1, n_heads=1, d_head=8, shift=1.0)
    detector = rl.RiskAwareDetector().fit(small, gaussian_cache(60, n_layers=1, n_heads=1, d_head=8, seed=1))
    detector.weights_ = torch.randn(N, N, 8, generator=torch.Generator().manual_seed(0))
    detector.biases_, detector.vote_thresholds_ = torch.zeros(N, N), torch.full((N,), 16)
    # The fit saw one layer; without this line, figures would leave the other 31 blank.
    detector.collected_layers_ = tuple(range(N))
    detector.judge(cache)
    steering = rl.MeanShiftPolicy(heads=list(SITES)).fit(cache, detector)
    return cache, detector, steering


def trace() -> rl.Trace:
    records = []
    for layer in range(N):
        flags = torch.rand(1, 20, N, generator=torch.Generator().manual_seed(layer)) > 0.5
        edit = LayerEdit(layer, torch.arange(N), flags, flags, ~flags & False, flags[..., None] * torch.ones(8))
        shown, none = torch.ones(1, 20, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        records.append(TraceRecord(0, edit, torch.arange(20), shown, none))
    return rl.Trace(True, records)


def effects() -> rl.HeadEffects:
    values = torch.randn(N * N, generator=torch.Generator().manual_seed(0)).double()
    intervals = tuple(Interval(v, v - 0.1, v + 0.1) for v in values.tolist())
    return rl.HeadEffects(SITES, values, intervals, values * torch.nan, lambda site: 0.0)


def writes() -> EditWrites:
    change = torch.randn(N * N, 5000, generator=torch.Generator().manual_seed(0))
    names = tuple(f"token {i}" for i in range(5000))
    return EditWrites(SITES, names, change, change.mean(0), torch.ones(N * N, dtype=torch.long), 9)


FIGURES = {
    "head_risk": lambda c, d, s: rl.viz.head_risk(d, s),
    "head_effects": lambda c, d, s: rl.viz.head_effects(effects(), d, selected=SITES[:40]),
    "layer_risk": lambda c, d, s: rl.viz.layer_risk(d),
    "vote_curves": lambda c, d, s: rl.viz.vote_curves(d, c),
    "roc": lambda c, d, s: rl.viz.roc(d, c),
    "score_histogram": lambda c, d, s: rl.viz.score_histogram(s, c),
    "activation_scatter": lambda c, d, s: rl.viz.activation_scatter(s, c),
    "vote_timeline": lambda c, d, s: rl.viz.vote_timeline(trace(), [f"t{i}" for i in range(20)]),
    "edit_writes": lambda c, d, s: rl.viz.edit_writes(writes()),
}

SIZED = {
    "head_risk": lambda c, d, s, **size: rl.viz.head_risk(d, s, **size),
    "head_effects": lambda c, d, s, **size: rl.viz.head_effects(effects(), d, **size),
    "layer_risk": lambda c, d, s, **size: rl.viz.layer_risk(d, **size),
    "vote_curves": lambda c, d, s, **size: rl.viz.vote_curves(d, c, **size),
    "roc": lambda c, d, s, **size: rl.viz.roc(d, c, **size),
    "score_histogram": lambda c, d, s, **size: rl.viz.score_histogram(s, c, **size),
    "activation_scatter": lambda c, d, s, **size: rl.viz.activation_scatter(s, c, **size),
    "vote_timeline": lambda c, d, s, **size: rl.viz.vote_timeline(trace(), [f"t{i}" for i in range(20)], **size),
    "edit_writes": lambda c, d, s, **size: rl.viz.edit_writes(writes(), **size),
}


@pytest.mark.parametrize("name", FIGURES)
def test_under_two_seconds(large, name):
    # Time of the processor, not of the clock: other tests share the cores.
    start = time.process_time()
    text = FIGURES[name](*large).to_json()
    assert time.process_time() - start < 2
    assert len(text) < 400_000


def test_labels_stay_apart(large):
    _, detector, steering = large
    figure = rl.viz.head_risk(detector, steering)
    assert figure.layout.xaxis.dtick == figure.layout.yaxis.dtick == 4
    # Frames are one trace: a shape for each of 1,024 heads would take seconds.
    assert not figure.layout.shapes
    assert len(rl.viz.vote_timeline(trace(), [f"t{i}" for i in range(20)]).data[0].y) == 40


def test_trade_off_joins_strengths_of_one_method():
    def evaluation(kl, correct):
        # `metrics` is a cached property: set on the instance, it replaces the tables of answers.
        bare = object.__new__(Evaluation)
        object.__setattr__(bare, "metrics", {"kl": Interval(kl, kl, kl), "correct": Interval(correct, 0.0, 1.0)})
        return bare

    points = {"none": (0.0, 0.2), "R, strong": (0.4, 0.9), "R, weak": (0.1, 0.5), "ITI (2, 3)": (0.3, 0.4)}
    figure = rl.viz.trade_off({name: evaluation(*point) for name, point in points.items()})
    assert {t.name: (t.x, t.y) for t in figure.data} == {
        "none": ((0.0,), (0.2,)),
        "R": ((0.1, 0.4), (0.5, 0.9)),
        "ITI (2, 3)": ((0.3,), (0.4,)),
    }
    with pytest.raises(rl.errors.InvalidArgumentError, match="at least one"):
        rl.viz.trade_off({})
    with pytest.raises(rl.errors.UnknownNameError, match="not a known metric"):
        rl.viz.trade_off({"a": evaluation(0, 1)}, y="korrekt")


def test_a_metric_without_a_zero_does_not_start_at_zero(evaluations):
    layout = rl.viz.trade_off(evaluations, x="cross_entropy", y="correct").layout
    assert (layout.xaxis.rangemode, layout.yaxis.rangemode) == ("normal", "tozero")
    assert layout.xaxis.title.text == "cross-entropy of desirable<br>text<br>(nats per token)"
    assert layout.yaxis.title.text == "correct answers<br>(share)"


@pytest.mark.parametrize("name", FIGURES)
def test_width_and_height_are_those_asked_for(large, name):
    figure = FIGURES[name](*large)
    assert figure.layout.width is None
    assert figure.layout.height >= 200
    with pytest.raises(rl.errors.InvalidArgumentError, match=r"`width` must be a whole number of at least 100; got 9"):
        SIZED[name](*large, width=9)
    figure = SIZED[name](*large, width=420, height=300)
    assert (figure.layout.width, figure.layout.height) == (420, 300)
    lines = figure.layout.title.text.split("<br>")
    # 420 pixels hold about 64 of the smaller characters; without breaks, Plotly cuts the title off.
    assert max(len(re.sub("<.*?>", "", line)) for line in lines) <= 64


def test_figures_without_a_model_take_a_size_as_well(evaluations):
    figure = rl.viz.trade_off(evaluations, width=500, height=300)
    assert (figure.layout.width, figure.layout.height) == (500, 300)
    empty = rl.viz.vote_timeline(rl.Trace(True), [], width=300, height=200)
    assert (empty.layout.width, empty.layout.height) == (300, 200)
