"""The report: everything that was measured is on one page, nothing is fetched, and nothing is read as HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, LeakageError, UnknownNameError

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def text_of(report: rl.Report) -> str:
    """The page without scripts and tags."""
    body = re.sub(r"<(script|style).*?</\1>", " ", report.html, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def figures(report: rl.Report) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', report.html, flags=re.S)
    return [json.loads(one) for one in found]


def test_it_is_one_small_file_with_each_script_once(full_report, tmp_path):
    path = full_report.save(tmp_path / "deep" / "report.html")
    assert path.stat().st_size < 8_000_000
    html = path.read_text(encoding="utf-8")
    assert html == full_report.html
    assert html.count("window.CircuitsVis=") == 1
    assert html.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?(https?:)?//", html)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html"]


def test_the_summary_says_what_was_measured(full_report, steering, evaluations):
    words = text_of(full_report)
    assert f"edits {len(steering.sites)} of the 32 attention heads of tiny" in words
    before, after = (evaluations[name].metrics["correct"].value for name in ("no steering", "RADIANT"))
    assert f"{before:.0%} without steering, {after:.0%} with it" in words
    assert f"random direction {evaluations['random direction'].metrics['correct'].value:.0%}" in words
    assert "held-out groups still flagged after the edit" in words
    assert "kappa" in words
    assert rl.fitting and "transformer-lens" in words


def test_all_figures_are_there_and_nothing_is_missing(full_report):
    titles = [figure["layout"]["title"]["text"] for figure in figures(full_report)]
    starts = ("Validation risk of each head", "Effect of editing", "Validation risk of each layer", "ROC", "Errors of")
    starts += ("Scores of head", "Activations of head", "What the edits write", "Votes and edits", "correct")
    assert len(titles) == len(starts)
    assert all(title.startswith(start) for title, start in zip(titles, starts))
    assert full_report.html.count("CircuitsVis.render(") == 3
    assert "Not in this report" not in full_report.html


def test_the_most_effective_head_is_shown(full_report, recipe):
    best = recipe.effects.to_dataframe().iloc[0]
    assert f"Scores of head L{int(best.layer)}H{int(best['head'])} " in full_report.html


def test_answers_are_the_first_of_each_condition_in_turn(full_report, evaluations):
    table = evaluations["RADIANT"].table
    first = table[table["sample"] == 0].groupby("condition").head(1)
    words = text_of(full_report)
    assert all(" ".join(answer.split()) in words for answer in first["answer"])
    with pytest.raises(InvalidArgumentError, match="`n_examples`"):
        rl.report(evaluations=evaluations, n_examples=-1)
    assert 'id="answers"' not in rl.report(evaluations=evaluations, n_examples=0).html


def test_what_is_not_given_is_left_out_and_named(steering, evaluations):
    page = rl.report(steering)
    assert not figures(page)
    words = text_of(page)
    assert "Which heads detect, and which act: needs `detector`" in words
    assert "needs `answer`" in words
    alone = rl.report(evaluations={"plain": evaluations["no steering"]})
    assert 'id="answers"' not in alone.html
    assert "No control was given" in text_of(alone)
    assert "No control was given" not in text_of(rl.report(evaluations=evaluations))


def test_a_steering_and_a_cache_are_enough_for_most(steering, held_out):
    page = rl.report(steering, cache=held_out)
    assert len(figures(page)) == 6
    assert "held-out groups still flagged" in text_of(page)


def test_no_text_is_read_as_html(steering, evaluations, experiment):
    def spoiled(evaluation):
        table = evaluation.table.assign(prompt=EVIL, answer=EVIL, condition=EVIL)
        return replace(evaluation, table=table, settings={**evaluation.settings, "data": EVIL})

    names = ("no steering", EVIL, "random direction")
    given = {name: spoiled(e) for name, e in zip(names, evaluations.values())}
    meta = {**steering.meta, "model": {**steering.meta["model"], "name": EVIL}}
    page = rl.report(replace(steering, meta=meta), evaluations=given, title=EVIL)
    assert "<script>alert" not in page.html
    assert "<img src=x" not in page.html
    assert "&lt;img src=x onerror=alert(2)&gt;" in page.html


def test_refusals(steering, evaluations, experiment):
    with pytest.raises(InvalidArgumentError, match="There is nothing to report on"):
        rl.report()
    with pytest.raises(UnknownNameError, match="'ITI' is not a known evaluation"):
        rl.report(evaluations=evaluations, steered="ITI")
    with pytest.raises(LeakageError, match="must not share groups"):
        rl.report(steering, cache=experiment.train_cache)


def test_an_unfinished_page_never_replaces_a_good_one(full_report, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("good")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        full_report.save(path)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
