"""Results of studies from made-up evaluations: intervals over seeds, ranges, captions, and the paper's tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from radiant_lens.evaluation import Evaluation
from radiant_lens.evaluation.answers import ANSWER_COLUMNS
from radiant_lens.evaluation.ratios import make_parts
from radiant_lens.statistics.bounds import Interval
from radiant_lens.studies import ProtocolResult, StudyResult
from radiant_lens.studies.results import Row
from radiant_lens.studies.seeds import widen

NO_ANSWERS = pd.DataFrame(columns=[*ANSWER_COLUMNS, "verdict"])


def evaluation(shares, note="", **others) -> Evaluation:
    """An evaluation of one answer to each question, with `correct` and further metrics as given."""
    groups = [f"q{i}" for i in range(len(shares))]
    sums = {name: (np.asarray(values, float), 1) for name, values in {"correct": shares, **others}.items()}
    return Evaluation(NO_ANSWERS, make_parts(groups, sums), (), {"note": note})


def result(*rows: Row) -> StudyResult:
    return StudyResult("made up", rows)


def one_row(*seeds: Evaluation) -> StudyResult:
    return result(Row("RADIANT", None, {}, {seed: [e] for seed, e in enumerate(seeds)}))


def test_half_widths_are_added_in_quadrature():
    # Three seeds, s = 0.05, t(2) = 4.3027: half-width between seeds 4.3027 * 0.05 / sqrt(3) = 0.12421.
    wide = widen(Interval(0.5, 0.4, 0.55), [0.45, 0.5, 0.55])
    assert wide.low == pytest.approx(0.5 - math.hypot(0.1, 0.12421), abs=1e-5)
    assert wide.high == pytest.approx(0.5 + math.hypot(0.05, 0.12421), abs=1e-5)


def test_seeds_that_agree_add_nothing():
    interval = Interval(0.5, 0.4, 0.55)
    assert widen(interval, [0.5] * 3) == interval != widen(interval, [0.5, 0.5, 0.51])


def test_limits_and_missing_values():
    assert widen(Interval(0.9, 0.8, 1.0), [0.8, 0.9, 1.0], limits=(0, 1)).high == 1
    assert widen(Interval(0.9, 0.8, 1.0), [0.8, 0.9, 1.0]).high > 1
    missing = widen(Interval(*[math.nan] * 3), [0.1, math.nan, 0.2], limits=(0, 1))
    assert all(map(math.isnan, missing))


def simulated_coverage(n_seeds: int, fit_spread: float, n_studies: int = 150) -> dict[str, float]:
    """Share of simulated studies whose interval covers the method's mean over fits and questions.

    Each seed tests 30 of 100 questions. A question is answered truly with probability .5 plus an effect of the
    question (standard deviation .15), the same on all seeds, plus an effect of the seed's fit.
    """
    # Answers, not probabilities, are drawn: their noise is what the interval over groups is for.
    rng = np.random.default_rng(0)
    covered = {"over seeds": 0, "given fits": 0}
    for _ in range(n_studies):
        questions = rng.normal(0, 0.15, 100)
        seeds = []
        for _ in range(n_seeds):
            tested = rng.choice(100, 30, replace=False)
            probability = 0.5 + questions[tested] + rng.normal(0, fit_spread)
            parts = make_parts([f"q{i}" for i in tested], {"correct": (rng.random(30) < probability, 1)})
            seeds.append(Evaluation(NO_ANSWERS, parts, (), {}))
        line = one_row(*seeds).pooled().iloc[0]
        covered["over seeds"] += line["low"] <= 0.5 <= line["high"]
        covered["given fits"] += line["low_given_fits"] <= 0.5 <= line["high_given_fits"]
    return {name: n / n_studies for name, n in covered.items()}


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("fit_spread", [0.0, 0.12])
def test_intervals_over_seeds_cover(n_seeds, fit_spread):
    coverage = simulated_coverage(n_seeds, fit_spread)
    assert coverage["over seeds"] >= 0.93
    # The twin: bootstrapping the questions alone covers only where fits do not differ.
    assert (coverage["given fits"] < 0.85) == (fit_spread > 0)


def test_differences_include_other_fits_too():
    # A steering that sets the first n answers right gains half of them: every second one was right already.
    base, shifts = [0, 1] * 20, (4, 12, 20)
    plain = [evaluation(base) for _ in shifts]
    steered = [evaluation([1] * n + base[n:]) for n in shifts]
    rows = (
        Row("no steering", None, {}, dict(enumerate([e] for e in plain))),
        Row("RADIANT", "no steering", {}, dict(enumerate([e] for e in steered))),
    )
    line = result(*rows).pooled().set_index("row").loc["RADIANT"]
    differences = [n / 2 / 40 for n in shifts]
    given_fits = Interval(line["difference"], line["difference_low_given_fits"], line["difference_high_given_fits"])
    wide = widen(given_fits, differences)
    assert line["difference"] == pytest.approx(np.mean(differences))
    assert (line["difference_low"], line["difference_high"]) == pytest.approx(wide[1:])
    assert line["difference_low"] < line["difference_low_given_fits"]


@pytest.mark.parametrize(
    ("n_seeds", "caption"),
    [
        (1, "95% intervals over groups, given this one split and fit; from 3 seeds on they include other fits."),
        (2, "95% intervals over groups, given these fits of 2 seeds; from 3 seeds on they include other fits."),
        (3, "95% intervals over groups and over the fits of 3 seeds."),
    ],
)
def test_tables_say_what_their_intervals_include(n_seeds, caption):
    study = one_row(*(evaluation([1] * n + [0] * (20 - n)) for n in (5, 10, 15)[:n_seeds]))
    table, last = study.to_markdown().split("\n\n")
    assert last.startswith(caption)
    line, pooled = table.splitlines()[-1], study.pooled().iloc[0]
    assert f"{Interval(pooled['value'], pooled['low'], pooled['high']):.0%}" in line
    assert (pooled["low"] < pooled["low_given_fits"]) == (n_seeds == 3)
    # The range over runs is in the table if there are several.
    ranges = {1: "", 2: " (25% to 50%)", 3: " (25% to 75%)"}
    assert line.endswith(f"]{ranges[n_seeds]} |")
    assert ("In parentheses" in last) == (n_seeds > 1)


def test_the_range_is_over_draws_too():
    """Shuffles of one seed may differ by more than any interval says."""
    draws = [evaluation([1] * n + [0] * (20 - n)) for n in (2, 18, 10)]
    study = result(Row("shuffled labels", None, {}, {0: draws}))
    line = study.pooled().iloc[0]
    assert (line["least"], line["largest"]) == (0.1, 0.9)
    assert "(10% to 90%)" in study.to_markdown()


def test_a_range_leaves_out_runs_without_a_value():
    runs = [evaluation([1, 0], displacement=d) for d in ([math.nan] * 2, [1.0, 2.0], [3.0, 3.0])]
    line = one_row(*runs).pooled().set_index("metric").loc["displacement"]
    assert (line["least"], line["largest"]) == (1.5, 3)


@pytest.mark.parametrize(
    ("notes", "mark"),
    [(("", ""), ""), (("x", ""), " (nothing to edit in 1 of 2 runs)"), (("x", "x"), " (nothing to edit)")],
)
def test_rows_count_runs_that_edit_nothing(notes, mark):
    study = one_row(*(evaluation([1, 0], note) for note in notes))
    assert study["RADIANT"].mark == mark
    assert f"| RADIANT{mark} |" in study.to_markdown()


def test_the_papers_table_has_mc1_mc2_and_true_times_informative():
    runs = evaluation([1, 1, 1, 0], informative=[1, 0, 1, 0], mc1=[0, 0, 1, 0], mc2=[0.5] * 4, other=[0] * 4)
    markdown = ProtocolResult(pd.DataFrame(), one_row(runs)).to_markdown()
    head, _, line = markdown.split("\n\n")[0].splitlines()
    assert head == "| steering | MC1 | MC2 | True*Info | correct | informative |"
    values = [cell.split()[0] for cell in line.strip("| ").split(" | ")[1:]]
    # True*Info is the product of the two shares, .75 * .5, not the share of answers that are both (.5).
    assert values == ["0.250", "0.500", "0.375", "75%", "0.500"]


def test_the_papers_table_leaves_out_what_was_not_measured():
    markdown = ProtocolResult(pd.DataFrame(), one_row(evaluation([1, 0], kl=[0.1, 0.2]))).to_markdown()
    assert markdown.splitlines()[0] == "| steering | correct | kl |"
    study = ProtocolResult(pd.DataFrame(), one_row(evaluation([1, 0], kl=[0.1, 0.2])))
    assert study.to_markdown(["kl"]).splitlines()[0] == "| steering | kl |"
