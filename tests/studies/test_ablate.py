"""`radiant-lens ablate`."""

from __future__ import annotations

import json
from functools import partial

import pytest

from radiant_lens.studies import PAPER_TABLES, READY


@pytest.fixture
def run(command_line):
    return partial(command_line, "ablate")


def test_a_grid_from_flags_and_its_rerun(run, tmp_path):
    options = ("--vary", "loss=lda", "--vary", "heads=layers:1,least_risk:2", "--groups", 30, "--samples", 1)
    status, out, err = run(*options, "--out", tmp_path, "--json")
    assert status == 0, err
    study = json.loads(out)["studies"][0]
    assert study["computed"] == 8
    assert {row["row"] for row in study["pooled"]} == {
        "no steering",
        "heads=layers:1",
        "heads=least_risk:2",
        "heads=layers:1: random direction",
        "heads=layers:1: random direction, total covariance",
        "heads=layers:1: shuffled labels",
    }
    status, out, _ = run(*options, "--out", tmp_path)
    assert status == 0
    # Lines of Markdown stay whole.
    assert study["markdown"] in out


def test_the_list(run):
    status, out, _ = run("--list", "--json")
    assert status == 0
    tables = [f"paper:{name}" for name in PAPER_TABLES]
    assert [row["study"] for row in json.loads(out)["studies"]] == [*READY, *tables]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "Name a study (see --list), or give at least one --vary"),
        (["policies", "--vary", "gamma=0.1"], 2, "but not both"),
        (["policy"], 2, "'policy' is not a known ready study: did you mean 'policies'"),
        (["--vary", "gamma"], 2, "`vary` must read name=value,value; got 'gamma'"),
        (["--vary", "gamma=0.7"], 2, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
        (["policies", "--seeds", "a"], 2, "`seeds` must be whole numbers separated by commas; got 'a'"),
        (["policies", "--judge", "overlap"], 2, "`--judge` is for a paper:TABLE; got 'overlap'"),
        (["paper:truthfulqa-llama-7b", "--controls", "all"], 2, "`--controls` is not for a paper:TABLE; got 'all'"),
        (["nothing.yaml"], 1, "Study file 'nothing.yaml' cannot be read"),
    ],
)
def test_bad_usage(run, arguments, status, words):
    code, out, err = run(*arguments)
    assert code == status, err
    assert words in " ".join((out + err).split())
    assert "Traceback" not in err
