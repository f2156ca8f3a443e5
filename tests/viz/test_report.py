"""The report: all measurements on one page, without network, and no text read as HTML."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, LeakageError, UnknownNameError
from radiant_lens.evaluation.side_effects.metrics import METRICS

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def text_of(report: rl.Report) -> str:
    """The page without scripts and tags."""
    body = re.sub(r"<(script|style).*?</\1>", " ", report.html, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def figures(report: rl.Report) -> list[dict]:
    scripts = re.findall(r'<script type="application/json">(.*?)</script>', report.html, flags=re.S)
    return [json.loads(script) for script in scripts]


def test_it_is_one_small_file_with_each_script_once(full_report, tmp_path):
    path = full_report.save(tmp_path / "deep" / "report.html")
    assert path.stat().st_size < 8_000_000
    page = path.read_text(encoding="utf-8")
    assert page == full_report.html
    assert page.count("window.CircuitsVis=") == 1
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?(https?:)?//", page)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html"]


def test_the_summary_has_every_measurement(full_report, steering, evaluations):
    words = text_of(full_report)
    assert f"edits {len(steering.sites)} of the 32 attention heads of tiny" in words
    before, after = (evaluations[name].metrics["correct"].value for name in ("no steering", "RADIANT"))
    assert f"{before:.0%} without steering, {after:.0%} with it" in words
    assert f"random direction {evaluations['random direction'].metrics['correct'].value:.0%}" in words
    assert "held-out groups still flagged after the edit" in words
    assert "kappa" in words
    assert rl.__version__ in words and "transformer-lens" in words


def tiles_of(report: rl.Report) -> list[tuple[str, str, str]]:
    """Name, number and detail of each tile."""
    pattern = r'<div class="tile[^"]*"><h2>(.*?)</h2>\s*<p class="number">(.*?)</p><p class="quiet">(.*?)</p>'
    matches = re.findall(pattern, report.html, flags=re.S)
    return [tuple(html.unescape(re.sub("<.*?>", "", text)) for text in match) for match in matches]


def test_tiles_show_measured_numbers(full_report, evaluations, steering, held_out, measured):
    base, on = evaluations["no steering"], evaluations["RADIANT"]
    gain, kl, other_text, certificate = tiles_of(full_report)
    change = on.difference(base, "correct")
    assert gain[:2] == ("Gain", f"{100 * change.value:+.0f} points")
    assert f"{base.metrics['correct'].value:.0%} without steering" in gain[2]
    assert kl[:2] == ("KL", f"{on.metrics['kl'].value:.3f}")
    assert other_text[:2] == ("Side effects", f"{measured.metrics['cross_entropy'].difference.value:+.3f}")
    assert "neutral text" in other_text[2] and "Other tasks" not in other_text[2]
    same_text = tiles_of(rl.report(evaluations=evaluations))[2]
    assert same_text[:2] == ("Side effects", f"{on.difference(base, 'cross_entropy').value:+.3f}")
    assert "Other tasks: not measured" in same_text[2]
    row = steering.certify(held_out).overall
    assert certificate[:2] == ("Certificate", f"≤ {row.upper:.1%}")
    assert f"{row.n_still_flagged} of {row.n_groups}" in certificate[2]
    assert f"{row.n_any_flagged} at any gated token" in certificate[2]


def test_tiles_say_what_was_not_measured(steering, evaluations):
    assert [tile[:2] for tile in tiles_of(rl.report(steering))] == [
        (name, "not measured") for name in ("Gain", "KL", "Side effects", "Certificate")
    ]

    def without(evaluation, *metrics):
        return replace(evaluation, parts=evaluation.parts[~evaluation.parts["metric"].isin(metrics)])

    # Each tile depends on its own measurement alone.
    few = {name: without(e, "kl", "cross_entropy", "edited_share") for name, e in evaluations.items()}
    assert [value == "not measured" for _, value, _ in tiles_of(rl.report(evaluations=few))] == [
        False,
        True,
        True,
        True,
    ]


def test_settings_have_three_significant_digits(steering):
    policy = {**steering.meta["policy"], "gamma": 0.0123456, "trust": [0.98765, 3], "options": {"l2": 1e-3 / 3}}
    page = rl.report(replace(steering, meta={**steering.meta, "policy": policy}))
    assert re.search("<dt><abbr[^>]*>gamma</abbr></dt><dd>0.0123</dd>", page.html)
    assert "<dt>trust</dt><dd>0.988, 3</dd>" in page.html
    assert "<dt>options</dt><dd>l2: 0.000333</dd>" in page.html


def test_every_table_scrolls_in_a_wrapper_with_a_hint(full_report):
    n_tables = full_report.html.count("<table")
    wrapped = re.findall(r'<p class="hint" hidden>[^<]*</p>\s*<div class="scroll"[^>]*><table', full_report.html)
    assert len(wrapped) == n_tables == 5


def test_a_full_report_has_all_figures(full_report):
    titles = [figure["layout"]["title"]["text"] for figure in figures(full_report)]
    starts = (
        "Correct answers",
        "Validation risk of each head",
        "Effect of editing",
        "Validation risk of each layer",
        "ROC",
        "Errors of",
    )
    starts += ("Scores of head", "Activations of head", "What the edits write", "Votes and edits")
    assert len(titles) == len(starts)
    assert all(title.startswith(start) for title, start in zip(titles, starts))
    assert full_report.html.count("CircuitsVis.render(") == 3
    assert "Not in this report" not in full_report.html


def test_the_most_effective_head_is_shown(full_report, recipe):
    best = recipe.effects.to_dataframe().iloc[0]
    assert f"Scores of head L{int(best.layer)}H{int(best['head'])} " in full_report.html


def test_the_contents_lead_to_every_section(full_report):
    page = full_report.html
    targets = re.findall(r'<a href="#([^"]+)">', page)
    sections = re.findall(r'<(?:section|header) id="([^"]+)"', page)
    inner = {"trade-off", "changes"}
    assert targets == [name for name in sections if name not in inner]
    assert len(set(targets)) == len(targets) > 8


def test_a_page_without_evaluations_has_no_first_screen_of_them(steering):
    page = rl.report(steering).html
    assert 'id="trade-off"' not in page and 'id="changes"' not in page and 'id="generations"' not in page


def test_answers_are_the_first_of_each_condition_in_turn(full_report, evaluations):
    table = evaluations["RADIANT"].table
    first = table[table["sample"] == 0].groupby("condition").head(1)
    words = text_of(full_report)
    assert all(" ".join(answer.split()) in words for answer in first["answer"])
    with pytest.raises(InvalidArgumentError, match="`n_examples`"):
        rl.report(evaluations=evaluations, n_examples=-1)
    assert 'id="answers"' not in rl.report(evaluations=evaluations, n_examples=0).html


def test_side_effects_are_a_table_and_three_changed_answers(full_report, measured):
    words = html.unescape(text_of(full_report))
    for name, effect in measured.metrics.items():
        assert METRICS[name].words in words and f"{effect.difference:+.3f}" in words
    changed = measured.changed_answers()
    assert len(changed) > 0
    assert f"{len(changed)} of 30 answers to harmless requests differ" in words
    section = full_report.html.split('<section id="side-effects">')[1].split("</section>")[0]
    texts = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", section, flags=re.S)]
    shown = changed.head(3)
    assert [*shown["request"], *shown["plain"], *shown["steered"]] == [
        text for column in range(3) for text in texts[5 * len(measured.metrics) :][column::3]
    ]
    same = replace(measured, answers=measured.answers.assign(steered=measured.answers["plain"]))
    assert "0 of 30 answers to harmless requests differ." in text_of(rl.report(side_effects=same))


def test_missing_inputs_are_named(steering, evaluations):
    page = rl.report(steering)
    assert not figures(page)
    words = text_of(page)
    assert "Which heads detect, and which act: needs `detector`" in words
    assert "needs `answer`" in words
    assert "Side effects: needs `side_effects`" in words
    alone = rl.report(evaluations={"plain": evaluations["no steering"]})
    assert 'id="answers"' not in alone.html
    assert "No control was given" in text_of(alone)
    assert "No control was given" not in text_of(rl.report(evaluations=evaluations))


def test_a_steering_and_a_cache_are_enough_for_most(steering, held_out):
    page = rl.report(steering, cache=held_out)
    assert len(figures(page)) == 6
    assert "held-out groups still flagged" in text_of(page)


def test_no_text_is_read_as_html(steering, evaluations, experiment, measured):
    # Every place where text of others reaches the page: prompts, answers, conditions, settings and names.
    def spoiled(evaluation):
        table = evaluation.table.assign(prompt=EVIL, answer=EVIL, condition=EVIL)
        return replace(evaluation, table=table, settings={**evaluation.settings, "data": EVIL})

    names = ("no steering", EVIL, "random direction")
    named = {name: spoiled(e) for name, e in zip(names, evaluations.values())}
    meta = {**steering.meta, "model": {**steering.meta["model"], "name": EVIL}}
    evil = replace(measured, answers=measured.answers.assign(request=EVIL, plain=EVIL, steered=EVIL + "!"))
    page = rl.report(replace(steering, meta=meta), evaluations=named, side_effects=evil, title=EVIL)
    assert "<script>alert" not in page.html
    assert "<img src=x" not in page.html
    assert "&lt;img src=x onerror=alert(2)&gt;" in page.html


def test_bad_input_is_refused(steering, evaluations, experiment):
    with pytest.raises(InvalidArgumentError, match="There is nothing to report on"):
        rl.report()
    with pytest.raises(UnknownNameError, match="'ITI' is not a known evaluation"):
        rl.report(evaluations=evaluations, steered="ITI")
    with pytest.raises(LeakageError, match="must not share groups"):
        rl.report(steering, cache=experiment.train_cache)


def test_an_unfinished_page_never_replaces_a_good_one(full_report, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("good")
    # The page is written beside its target and moved there; the move is the only step that may replace it.
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        full_report.save(path)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
