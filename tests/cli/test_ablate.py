"""`radiant-lens ablate` on data that are read by the options of the command."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def renamed(tmp_path, facts):
    """Questions with columns of other names."""
    rows = [
        {
            "q": p.text.removeprefix("Q : ").removesuffix(" A :"),
            "right": list(p.correct_answers),
            "wrong": list(p.incorrect_answers),
        }
        for p in facts.head(60).bare_prompts
    ]
    (tmp_path / "renamed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = "question=q,correct_answers=right,incorrect_answers=wrong"
    return ("--data", tmp_path / "renamed.jsonl", "--columns", names, "--template", "Q : {question} A : {answer}")


def test_a_grid(command_line, renamed):
    options = ("--vary", "heads=layers:1", "--vary", "loss=lda", "--groups", 20, "--samples", 1, "--json")
    status, out, err = command_line("ablate", *options, *renamed)
    assert status == 0, err
    assert {row["data"] for row in json.loads(out)["studies"][0]["rows"]} == {"renamed"}


def test_every_head_by_itself(command_line, renamed):
    status, out, err = command_line("ablate", "knock-out", *renamed, "--json")
    assert status == 0, err
    assert len(json.loads(out)["heads"]) == 32


def test_a_ready_study(command_line, renamed):
    status, out, err = command_line("ablate", "vote", *renamed, "--groups", 20, "--samples", 1, "--json")
    assert status == 0, err
    assert json.loads(out)["studies"][0]["study"] == "vote on renamed"
