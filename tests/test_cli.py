"""The command line: the same commands on the embedded model and on the user's own, statuses, one JSON object."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

import radiant_lens as rl
from radiant_lens.cli import output
from radiant_lens.cli.policies import policies
from radiant_lens.evaluation.judges.judge import EachAnswer
from radiant_lens.steering.steering import Steering


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


def test_all_commands_on_the_users_own_model_and_data(run, foreign_folder, own_data, tmp_path):
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
    # The steering's folder names the model.
    steered = ("--seed", 3, "--steering", tmp_path / "steering", "--json")
    status, out, _ = run("generate", *steered, "--samples", 2, prompt)
    assert status == 0
    assert [a["prompt"] for a in json.loads(out)["answers"]] == [prompt] * 2
    assert run("generate", *steered, "--samples", 2, prompt)[1] == out
    status, out, _ = run("evaluate", *own[2:], *steered[2:4], "--json")
    assert status == 0
    default = {"correct", "incorrect", "other", "kl", "cross_entropy", "edited_share"}
    assert set(json.loads(out)["metrics"]) - {"displacement"} == default
    chosen = ("--metrics", "choice", "--metrics", "fluency", "--fluency-model", "tiny", "--judge", "overlap")
    status, out, err = run("evaluate", *own, *chosen, "--out", tmp_path / "e.json", "--json")
    assert status == 0, err
    assert set(json.loads(out)["metrics"]) == {"mc1", "mc2", "perplexity"}
    saved = rl.Evaluation.load(tmp_path / "e.json")
    assert saved.settings == json.loads(out)["settings"]
    assert saved.settings["judge"] == "overlap"
    status, out, err = run("evaluate", *own, "--out", tmp_path / "plain.json", "--json")
    status, out, err = run("evaluate", *own, *steered[2:4], "--out", tmp_path / "on.json", "--json")
    both = ("--evaluation", f"plain={tmp_path / 'plain.json'}", "--evaluation", f"on={tmp_path / 'on.json'}")
    status, out, err = run("report", *steered[2:4], *both, "--prompt", prompt, "--out", tmp_path / "r.html", "--json")
    assert status == 0, err
    assert json.loads(out)["bytes"] == (tmp_path / "r.html").stat().st_size
    assert "Votes and edits, token by token" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_judges_of_truthfulqa_by_name(run, own_data, monkeypatch):
    always = EachAnswer(lambda prompt, answer: "incorrect")
    monkeypatch.setattr("radiant_lens.evaluation.judges.registry.TruthfulQAJudge", lambda device: always)
    status, out, _ = run("evaluate", "--data", own_data, "--judge", "truthfulqa", "--metrics", "answers", "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["incorrect"]["value"] == 1


# `.ci/run` runs the command itself, as README has it.
@pytest.mark.slow
def test_the_demo(run, tmp_path, monkeypatch):
    shown: list[Any] = []

    def emit(result, *, as_json, shown: list[Any], into=shown) -> None:
        into.extend(shown)
        output.emit(result, as_json=as_json, shown=shown)

    monkeypatch.setattr("radiant_lens.cli.app.emit", emit)
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
    # What people read begins with answers, sets the gain beside the control's, and ends in commands that run.
    text = _text(shown)
    order = ("Before and after", "95% intervals", "Gains over no steering", "Edited heads", "radiant-lens generate")
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    correct = {row["row"]: row["value"] for row in result["comparison"] if row["metric"] == "correct/after_undesirable"}
    gains = [100 * (correct[name] - correct["no steering"]) for name in ("RADIANT", "random direction")]
    assert f"after undesirable: {gains[0]:+.0f} and {gains[1]:+.0f} points" in text
    (command,) = re.findall(r"radiant-lens (generate .*)", text)
    status, out, err = run(*shlex.split(command))
    assert status == 0, err


def _text(shown: list[Any]) -> str:
    """What is printed on a wide terminal."""
    console = Console(width=400, record=True, file=io.StringIO(), markup=False)
    for item in shown:
        console.print(item, soft_wrap=True)
    return console.export_text()


def test_doctor_and_help_for_people(run):
    status, out, _ = run("doctor")
    assert status == 0
    assert "hook_z is the input" in out
    assert "FAILED" not in out
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "columns", "collect", "fit", "generate", "evaluate", "ablate", "report", "doctor"):
        assert command in out
        assert "Example: radiant-lens" in run(command, "--help")[1]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), ("fit",), ("generate",), ("columns",)], ids=" ".join)
def test_help_has_a_short_flag(flag, command, run):
    status, out, _ = run(*command, flag)
    assert status == 0
    assert "Usage: " in out and "--help" in out


def test_the_version(run):
    assert run("--version")[:2] == (0, f"radiant-lens {rl.__version__}\n")


@pytest.mark.parametrize("command", ["demo", "columns", "collect", "fit", "evaluate", "ablate"])
def test_every_command_that_takes_data_says_how_they_are_read(command, run):
    text = run(command, "--help")[1]
    for option in ("--columns", "--undesirable", "--threshold", "--template", "--format"):
        assert option in text


def test_help_does_not_load_torch():
    code = "import sys, radiant_lens.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Policies by name


@pytest.fixture
def fitted_policy(run, tmp_path):
    """Run `fit` and return the settings of the policy, as the steering records them."""

    def fit(*arguments: object) -> dict[str, object]:
        status, out, err = run("fit", "--out", tmp_path / "steering", *arguments, "--json")
        assert status == 0, err
        return rl.Steering.load(json.loads(out)["path"]).meta["policy"]

    return fit


@pytest.mark.parametrize("policy", policies())
def test_every_policy_is_fitted_by_its_name(policy, run, own_data, tmp_path):
    assert f"'{policy}'" in " ".join(run("fit", "--help")[1].split())
    line = ("--data", own_data, "--policy", policy, "--heads", "2", "--out", tmp_path / "steering", "--json")
    status, out, err = run("fit", *line)
    assert status == 0, err
    assert len(json.loads(out)["heads"]) == 2
    assert isinstance(rl.Steering.load(tmp_path / "steering"), Steering)


def test_flags_and_options_reach_the_policy(fitted_policy, own_data):
    line = ("--data", own_data, "--policy", "mean_shift", "--option", "heads=2")
    settings = fitted_policy(*line, "--alpha", 0.5, "--option", "gate=head")
    assert (settings["alpha"], settings["gate"]) == (0.5, "head")
    other = fitted_policy(*line)
    assert (other["alpha"], other["gate"]) == (1.0, "none")


# Generating


@pytest.fixture(scope="module")
def shift(tmp_path_factory, model, experiment):
    """An ungated steering that changes what the model says."""
    path = tmp_path_factory.mktemp("steering") / "shift"
    rl.ITIPolicy(alpha=5.0, n_heads=24).fit(experiment.train_cache, experiment.detector).save(path)
    return path


def test_answers_with_and_without_steering_next_to_each_other(run, shift):
    prompts = ("Q : what is the capital of dupeka ? A :", "Q : what is the food of dupeka ? A :")
    options = ("--temperature", 0, "--samples", 2, "--json")
    status, out, err = run("generate", "--steering", shift, "--compare", *options, *prompts)
    assert status == 0, err
    rows = json.loads(out)["answers"]
    assert [list(row) for row in rows] == [["prompt", "plain", "steered"]] * 4
    assert [row["prompt"] for row in rows] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert any(row["plain"] != row["steered"] for row in rows)
    for column, steering in (("plain", ()), ("steered", ("--steering", shift))):
        alone = json.loads(run("generate", *steering, *options, *prompts)[1])["answers"]
        assert [row["answer"] for row in alone] == [row[column] for row in rows]


def test_stop_strings_end_answers(run, shift):
    line = ("generate", "--steering", shift, "--temperature", 0, "--json", "Q : what is the capital of dupeka ? A :")
    whole = json.loads(run(*line)[1])["answers"][0]["answer"]
    assert "." in whole[:-1]
    cut = json.loads(run(*line, "--stop", ".")[1])["answers"][0]["answer"]
    assert cut == whole[: whole.index(".") + 1]
    assert json.loads(run(*line, "--stop", "zzz", "--stop", ".")[1])["answers"][0]["answer"] == cut


def test_the_groups_of_a_part_alone_are_collected(run, own_data, tmp_path):
    data = rl.load_dataset(own_data)
    for part, expected in zip(("train", "validation", "test"), data.split((0.5, 0.25, 0.25), seed=2)):
        line = ("--data", own_data, "--part", part, "--split", "0.5,0.25,0.25", "--seed", 2)
        assert run("collect", *line, "--out", tmp_path / part, "--json")[0] == 0
        assert set(rl.HeadCache.load(tmp_path / part).group_names) == expected.groups


def test_a_metric_that_is_not_a_number_says_why(run, own_data, tmp_path, experiment):
    # No position is edited: the length of an edit is no number.
    steering = rl.RadiantPolicy(heads=1, gate="vote").fit(experiment.train_cache, experiment.detector)
    never = replace(steering.scores, biases=torch.full_like(steering.scores.biases, -1e9))
    replace(steering, scores=never).save(tmp_path / "shut")
    status, out, err = run("evaluate", "--data", own_data, "--steering", tmp_path / "shut", "--max-new-tokens", 2)
    assert status == 0, err
    assert "nan" not in out
    line = next(line for line in out.splitlines() if "displacement" in line)
    assert "no edit" in line and line.count("-") >= 3


def test_texts_beyond_the_context_are_skipped_cut_or_refused(run, tmp_path):
    rows = [{"text": f"the soup {i} " + "soup " * n, "label": i % 2} for i, n in enumerate((1, 1, 1, 400))]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("collect", "--data", tmp_path / "long.jsonl", "--out", tmp_path / "cache", "--json", "--on-long")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for choice, n_texts in (("skip", 3), ("cut", 4)):
            status, out, err = run(*line, choice)
            assert (status, json.loads(out)["texts"]) == (0, n_texts)
            # A warning is a sentence, without the line of code that it comes from.
            assert err.startswith("radiant-lens: ") and "1 " in err and ".py" not in err
    assert run(*line, "error")[0] == 1


def test_the_model_is_loaded_with_the_dtype_and_the_bos_that_are_named(run, monkeypatch, own_data, tmp_path):
    from radiant_lens.models import loading

    load, calls = loading.load_model, []

    def recording(*arguments: object, **options: object) -> object:
        calls.append((options["dtype"], options["prepend_bos"]))
        return load(*arguments, **options)

    monkeypatch.setattr(loading, "load_model", recording)
    named = ("--dtype", "float32", "--prepend-bos")
    lines = [
        ("collect", "--data", own_data, "--out", tmp_path / "cache", "--json"),
        ("generate", "hello", "--json"),
        ("evaluate", "--data", own_data, "--metrics", "answers", "--json"),
        ("fit", "--data", own_data, "--policy", "iti", "--out", tmp_path / "s", "--json"),
    ]
    for line in lines:
        assert run(*line, *named)[0] == 0
    assert calls == [("float32", True)] * 4
    assert run("generate", "hello", "--no-prepend-bos", "--json")[0] == 0
    assert run("generate", "hello", "--json")[0] == 0
    assert calls[4:] == [(None, False), (None, None)]
    for command in ("demo", "report", "ablate", "doctor"):
        text = run(command, "--help")[1]
        assert "--dtype" in text and "--no-prepend-bos" in text
