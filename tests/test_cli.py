"""The command line: the same commands on the embedded model and on one's own, statuses, one JSON object."""

from __future__ import annotations

import json

import pytest

import radiant_lens as rl
from radiant_lens.evaluation.judges.judge import EachAnswer


@pytest.fixture
def run(command_line):
    return command_line


@pytest.fixture(scope="session")
def own_data(tmp_path_factory, facts):
    """A JSONL file as a user would write it: statements and prompts of some questions."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    small = facts.head(60)
    rows = [{"text": s.text, "label": s.label, "group": s.group} for s in small.atoms]
    rows += [
        {
            "prompt": p.text,
            "correct_answers": list(p.correct_answers),
            "incorrect_answers": "; ".join(p.incorrect_answers),
            "group": p.group,
        }
        for p in small.bare_prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_model_and_data_of_ones_own_through_all_commands(run, foreign_folder, own_data, tmp_path):
    own = ("--model", foreign_folder, "--data", own_data)
    status, out, _ = run("doctor", foreign_folder, "--json")
    assert (status, json.loads(out)["ok"]) == (0, True)
    status, out, _ = run("collect", *own, "--out", tmp_path / "cache", "--json")
    assert status == 0
    assert json.loads(out)["texts"] == 240
    assert len(rl.HeadCache.load(tmp_path / "cache")) == json.loads(out)["examples"]
    # Random weights still separate statements by their words: the answers differ.
    status, out, err = run("fit", *own, "--policy", "iti", "--out", tmp_path / "steering", "--json")
    assert status == 0, err
    assert json.loads(out)["heads"]
    prompt = "Q : what is the capital of dupeka ? A :"
    steered = ("--model", foreign_folder, "--steering", tmp_path / "steering", "--seed", 3, "--json")
    status, out, _ = run("generate", *steered, "--samples", 2, prompt)
    assert status == 0
    assert [a["prompt"] for a in json.loads(out)["answers"]] == [prompt] * 2
    assert run("generate", *steered, "--samples", 2, prompt)[1] == out
    status, out, _ = run("evaluate", *own, *steered[2:4], "--json")
    assert status == 0
    default = {"correct", "incorrect", "other", "kl", "cross_entropy", "edited_share"}
    assert set(json.loads(out)["metrics"]) - {"displacement"} == default
    chosen = ("--metrics", "choice", "--metrics", "fluency", "--fluency-model", "tiny", "--judge", "overlap")
    status, out, err = run("evaluate", *own, *chosen, "--out", tmp_path / "e.json", "--json")
    assert status == 0, err
    assert set(json.loads(out)["metrics"]) == {"mc1", "mc2", "perplexity"}
    kept = rl.Evaluation.load(tmp_path / "e.json")
    assert kept.settings == json.loads(out)["settings"]
    assert kept.settings["judge"] == "overlap"
    status, out, err = run("evaluate", *own, "--out", tmp_path / "plain.json", "--json")
    status, out, err = run("evaluate", *own, *steered[2:4], "--out", tmp_path / "on.json", "--json")
    both = ("--evaluation", f"plain={tmp_path / 'plain.json'}", "--evaluation", f"on={tmp_path / 'on.json'}")
    at_work = ("--model", foreign_folder, "--prompt", prompt)
    status, out, err = run("report", *steered[2:4], *both, *at_work, "--out", tmp_path / "r.html", "--json")
    assert status == 0, err
    assert json.loads(out)["bytes"] == (tmp_path / "r.html").stat().st_size
    assert "Votes and edits, token by token" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_judges_of_truthfulqa_by_name(run, own_data, monkeypatch):
    always = EachAnswer(lambda prompt, answer: "incorrect")
    monkeypatch.setattr("radiant_lens.evaluation.judges.lookup.TruthfulQAJudge", lambda device: always)
    status, out, _ = run("evaluate", "--data", own_data, "--judge", "truthfulqa", "--metrics", "answers", "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["incorrect"]["value"] == 1


def test_the_demo(run, tmp_path):
    status, out, err = run("demo", "--out", tmp_path / "demo", "--samples", 1, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert {row["row"] for row in result["comparison"]} == {
        "no steering",
        "ITI (24 heads, alpha 2)",
        "RADIANT",
        "shuffled labels",
        "random direction",
        "random direction, total covariance",
    }
    assert len(result["examples"]) == 3
    assert all(row["measured"] is not None for row in result["heads"])
    assert result["report"] == str(tmp_path / "demo" / "report.html")
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Not in this report" not in page
    assert "random direction" in page
    assert [str(s) for s in rl.Steering.load(tmp_path / "demo").sites] == sorted(row["head"] for row in result["heads"])


def test_what_people_see(run):
    status, out, _ = run("doctor")
    assert status == 0
    assert "hook_z is the input" in out
    assert "FAILED" not in out
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "collect", "fit", "generate", "evaluate", "report", "doctor"):
        assert command in out
        assert "Example: radiant-lens" in run(command, "--help")[1]
