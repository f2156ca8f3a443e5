"""`radiant-lens fit`: every policy with its own options, and what is written where data are too few."""

from __future__ import annotations

import json
import re
import warnings

import pandas as pd
import pytest

import radiant_lens as rl
from radiant_lens.cli.policies import policies, policy_from_flags
from radiant_lens.detectors import load_detector
from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.policies import least_kl


def test_every_policy_has_its_own_options():
    assert policy_from_flags("least-kl", {"kl": 0.1}, ["steps=2"]) == rl.LeastKLPolicy(budget=0.1, steps=2)
    assert policy_from_flags("iti", {"alpha": 3.0, "heads": "8"}, []) == rl.ITIPolicy(alpha=3.0, heads=8)
    assert policy_from_flags("radiant", {"heads": "L0H1 L2H3"}, []).heads == "L0H1 L2H3"
    assert policy_from_flags("radiant", {}, []) == rl.RadiantPolicy()


FLAGS = {"gamma": 0.1, "geometry": "wasserstein", "alpha": 2.0, "kl": 0.1}


@pytest.mark.parametrize("flag", FLAGS)
def test_options_of_another_policy_are_refused_not_dropped(flag):
    allowed = {
        "gamma": {"radiant"},
        "geometry": {"radiant"},
        "alpha": {"iti", "mean_shift"},
        "kl": {"least_kl"},
    }[flag]
    for name in policies():
        if name in allowed:
            policy_from_flags(name, {flag: FLAGS[flag]}, [])
        else:
            with pytest.raises(UnknownNameError, match=f"'{flag}' is not a known option of policy '{name}'"):
                policy_from_flags(name, {flag: FLAGS[flag]}, [])


def test_an_option_that_is_set_twice():
    for flags, option in (({"gamma": 0.1}, "gamma=0.2"), ({"kl": 0.1}, "budget=0.2"), ({"heads": "4"}, "heads=all")):
        name = "least_kl" if "kl" in flags else "radiant"
        with pytest.raises(InvalidArgumentError, match="is set twice; set it once, as a flag or as an option"):
            policy_from_flags(name, flags, [option])


@pytest.fixture
def small(tmp_path, facts):
    """A file of statements and prompts of a few questions."""

    def write(n_groups: int):
        data = facts.head(n_groups)
        rows = [{"text": s.text, "label": s.label, "group": s.group} for s in data.atoms]
        rows += [
            {
                "prompt": p.text,
                "correct_answers": list(p.correct_answers),
                "incorrect_answers": list(p.incorrect_answers),
                "group": p.group,
            }
            for p in data.bare_prompts
        ]
        (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "my.jsonl"

    return write


def test_a_fit_writes_a_steering_a_report_and_a_table_of_heads(command_line, small, tmp_path):
    status, out, err = command_line("fit", "--data", small(60), "--out", tmp_path / "s", "--heads", "4", "--json")
    assert status == 0, err
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "README.md",
        "heads.csv",
        "meta.json",
        "report.html",
        "tensors.safetensors",
    ]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "s").iterdir()} == {0o644}
    heads = pd.read_csv(tmp_path / "s" / "heads.csv")
    assert list(heads) == ["layer", "head", "fpr", "fnr", "risk", "p_value", "significant"]
    best = heads.sort_values("risk", kind="stable").head(4)
    assert json.loads(out)["heads"] == sorted(f"L{row.layer}H{row.head}" for row in best.itertuples())


def test_data_of_too_few_groups_end_with_detectors(command_line, small, tmp_path):
    line = ("fit", "--data", small(10), "--out", tmp_path / "s")
    status, out, err = command_line(*line, "--json")
    assert status == 1
    assert "validation groups cannot show that a head is significant" in err
    assert "Validation is 20% of the 10 groups of the data." in err
    assert f"Detectors, heat map and report are written to '{tmp_path / 's'}'." in err
    assert json.loads(out)["refusal"] in err
    detector = load_detector(tmp_path / "s")
    assert len(detector.to_dataframe()) == len(pd.read_csv(tmp_path / "s" / "heads.csv")) == 32
    status, _, err = command_line("report", "--detector", tmp_path / "s", "--out", tmp_path / "again.html", "--json")
    assert status == 0, err
    assert "What these data cannot show" in (tmp_path / "again.html").read_text(encoding="utf-8")
    # A steering takes the place of the detector, and then stays.
    assert command_line(*line, "--heads", "all", "--json")[0] == 0
    assert len(rl.Steering.load(tmp_path / "s").sites) == 32
    status, _, err = command_line(*line, "--json")
    assert status == 1
    assert "holds an earlier steering and stays as it was" in err
    assert len(rl.Steering.load(tmp_path / "s").sites) == 32


def test_long_texts_are_skipped_and_counted_or_refused(command_line, small, tmp_path):
    data = small(40)
    long = {"text": "soup " * 300, "label": 0, "group": "soup"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    line = ("fit", "--data", data, "--out", tmp_path / "s", "--policy", "iti", "--heads", "2", "--json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, _, err = command_line(*line)
    assert status == 0, err
    assert err.count("texts are longer than the 256 tokens") == 1 and "1 skipped" in err
    status, _, err = command_line(*line, "--on-long", "error")
    assert status == 1
    assert "has 301 tokens; the model's context holds 256" in err


def test_shares_of_the_groups(command_line, small, tmp_path):
    line = ("fit", "--data", small(40), "--out", tmp_path / "s", "--heads", "2", "--split", "0.4,0.3,0.3", "--json")
    assert command_line(*line)[0] == 0
    assert len(rl.Steering.load(tmp_path / "s").meta["seen_groups"]) == 28
    assert command_line(*line[:-2], "0.6,0.2,0.2", "--json")[0] == 0
    assert len(rl.Steering.load(tmp_path / "s").meta["seen_groups"]) == 32


def test_a_least_kl_fit_that_was_stopped_goes_on(command_line, small, tmp_path, monkeypatch):
    line = ("fit", "--data", small(40), "--policy", "least_kl", "--heads", "L1H5", "--out", tmp_path / "s", "--json")
    measure, made = least_kl.gain_gradient, []

    def stopped(*args, **options):
        if made:
            raise KeyboardInterrupt
        made.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(least_kl, "gain_gradient", stopped)
    assert command_line(*line)[0] != 0
    kept = tmp_path / ".s-measured"
    assert len(list(kept.iterdir())) == 2
    made.clear()
    # One of two halves is left to measure.
    status, _, err = command_line(*line)
    assert status == 0, err
    assert made == [1]
    assert not kept.exists()
    assert len(rl.Steering.load(tmp_path / "s").sites) == 1


def test_a_folder_of_measurements_is_for_least_kl_alone(model, facts, tmp_path):
    with pytest.raises(InvalidArgumentError, match="`out` keeps what a `LeastKLPolicy` measures; leave it out"):
        rl.fit(model, facts, out=tmp_path / "m")


def test_a_model_that_does_not_know_the_words_is_named(tmp_path, command_line, small):
    rows = [f"{text} number {i},{label},{i}" for i in range(12) for label, text in enumerate(("Thank you", "Shut up"))]
    (tmp_path / "english.csv").write_text("\n".join(["text,label,group", *rows]))
    _, out, _ = command_line("fit", "--data", tmp_path / "english.csv", "--heads", 2, "--out", tmp_path / "english")
    assert re.search(
        r"\d\d% of the tokens of english are unknown to tiny, .* name another model by --model", _joined(out)
    )
    _, out, _ = command_line("fit", "--data", small(12), "--heads", 2, "--out", tmp_path / "own")
    assert "unknown to" not in out and "written to" in _joined(out)


def _joined(text: str) -> str:
    return " ".join(text.split())
