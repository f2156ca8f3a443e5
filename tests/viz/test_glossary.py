"""Words that a report explains."""

from __future__ import annotations

from markupsafe import Markup

from radiant_lens.viz.report.glossary import MEANINGS, explain


def test_the_first_use_of_a_word_is_marked():
    text = explain("KL in nats; KL again")
    assert text.count("<abbr") == 2
    assert text.startswith(f'<abbr title="{Markup.escape(MEANINGS["KL"])}">KL</abbr> in ')
    assert text.endswith("; KL again")


def test_plurals_and_capitals_are_the_same_word_and_parts_are_not():
    assert "<abbr" in explain("Heads") and explain("Heads").striptags() == "Heads"
    assert "<abbr" not in explain("overhead, ahead, a half-head, investigate")


def test_other_text_is_escaped():
    text = explain("<b> & gate")
    assert text.startswith("&lt;b&gt; &amp; <abbr")
