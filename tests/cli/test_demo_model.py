"""`radiant-lens demo` on another model than the embedded one: answers before and after, gain, control and cost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens.cli import demo_model

FOLDER = Path(rl.__file__).parent / "tiny" / "model"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo_model, "N_TRAIN", 30)
    monkeypatch.setattr(demo_model, "N_VALIDATION", 12)
    monkeypatch.setattr(demo_model, "N_TEST", 12)


def test_it_fits_on_the_data_of_another_model(small, tmp_path, command_line):
    out = tmp_path / "demo"
    status, printed, err = command_line(
        "demo", "--model", str(FOLDER), "--data", "tiny-facts", "--out", str(out), "--json"
    )
    assert status == 0, err
    result = json.loads(printed)
    plain, steered = result["comparison"]
    assert (plain["steering"], steered["steering"]) == (demo_model.UNSTEERED, demo_model.STEERED)
    assert steered["MC2"] > plain["MC2"] and plain["KL"] == 0 < steered["KL"]
    assert [set(row) for row in result["examples"]] == [{"prompt", "before", "after", "reference"}] * 3
    assert any(row["before"] != row["after"] for row in result["examples"])
    steering = rl.Steering.load(out)
    assert steering.meta["least_kl"]["steps"][0]["measured_kl"] == pytest.approx(demo_model.BUDGET, rel=0.05)
    assert Path(result["report"]).read_text(encoding="utf-8").count("least KL, affine") > 0


def test_it_prints_answers_before_the_table(small, tmp_path, command_line):
    status, printed, err = command_line(
        "demo", "--model", str(FOLDER), "--data", "tiny-facts", "--out", str(tmp_path / "demo")
    )
    assert status == 0, err
    places = [
        printed.index(text) for text in ("as it is, on held-out prompts", "heads moved for", "held-out groups of")
    ]
    assert places == sorted(places)
    text = " ".join(printed.split())
    rows = re.findall(r"(none|least KL,)\W+(\.?\d\S*)\W+(\d\.\d+)", text)
    gain = re.search(r"Gain of MC2 ([+-]\d\.\d{3}) \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\], of answers judged", text)
    assert gain is not None and len(rows) == 2
    assert float(gain[1]) == pytest.approx(float(rows[1][2]) - float(rows[0][2]), abs=0.0011)
    # It ends in commands that can be typed: the embedded model has no chat template, so there is no `--chat`.
    assert "radiant-lens generate --steering" in text and "--chat" not in text
    assert "radiant-lens explore --steering" in text


def test_a_folder_that_holds_something_else_is_refused_before_the_model_is_loaded(tmp_path, command_line, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setattr("radiant_lens.models.loading.load_model", lambda *a, **k: pytest.fail("loaded"))
    status, _, err = command_line("demo", "--model", str(FOLDER), "--data", "tiny-facts", "--out", str(tmp_path))
    assert status == 1 and "is not" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
