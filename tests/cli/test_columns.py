"""`radiant-lens columns`: what would be read from a file."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def show(command_line, tmp_path):
    def command(text: str, *arguments: object, name: str = "data.csv"):
        (tmp_path / name).write_text(text)
        return command_line("columns", tmp_path / name, *arguments)

    return command


CITIES = "statement,truth,city\nA is in B.,1,A\nA is in C.,0,A\n"
SENSE = ("--columns", "text=statement,label=truth,group=city", "--undesirable", 0)


def test_statements_with_labels_in_words(show):
    status, out, err = show(CITIES, *SENSE, "--json")
    assert status == 0, err
    shown = json.loads(out)
    assert shown["statements"] == [
        {"label": "0, desirable", "group": "A", "text": "A is in B."},
        {"label": "1, undesirable (truth is 0)", "group": "A", "text": "A is in C."},
    ]
    assert (shown["desirable"], shown["undesirable"], shown["n_prompts"]) == (1, 1, 0)
    words = " ".join(show(CITIES, *SENSE)[1].split())
    assert "1 desirable and 1 undesirable statements, 0 prompts, in 1 groups; 0 skipped." in words
    assert "undesirable (truth is 0)" in words


def test_the_sense_of_labels_is_asked_for(show):
    status, _, err = show(CITIES, *SENSE[:2])
    assert status == 2
    assert "--undesirable 0 (label 0 is undesirable) or --undesirable 1" in err


def test_skipped_lines_with_their_reasons(show):
    status, out, err = show("text,label\na,0\nb,1\nc,2\n,1\n", "--json")
    assert status == 0, err
    skipped = json.loads(out)["skipped"]
    assert len(skipped) == 2
    assert "line 4" in skipped[0] and "got '2'" in skipped[0]
    words = " ".join(show("text,label\na,0\nb,1\nc,2\n,1\n")[1].split())
    assert "Skipped, 2 in all" in words and "line 4" in words


def test_prompts_and_only_as_many_rows_as_asked_for(show):
    rows = [{"question": f"who {i}?", "correct_answers": ["me"], "incorrect_answers": ["you", "he"]} for i in range(9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    status, out, err = show(text, "--rows", 2, "--json", name="q.jsonl")
    assert status == 0, err
    assert json.loads(out)["prompts"] == [
        {"prompt": f"Q: who {i}? A:", "correct": "me", "incorrect": "you; he"} for i in range(2)
    ]


def test_texts_are_printed_as_they_are(show):
    """Square brackets are no markup, colons no emoji, and a line break does not break the table."""
    status, out, err = show('text,label\n[bold]a[/bold] :smile:,0\n"b\nc",1\n')
    assert status == 0, err
    assert "[bold]a[/bold] :smile:" in out
    assert "b\\nc" in out


def test_long_texts_are_cut(show):
    status, out, _ = show(f"text,label\n{'word ' * 1000},0\nb,1\n", "--json")
    assert status == 0
    assert len(json.loads(out)["statements"][0]["text"]) == 203
