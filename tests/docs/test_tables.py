"""Tables of results are those of the files that the benchmark printed."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = spec_from_file_location("tables", ROOT / ".docs" / "pictures" / "tables.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_that_of_its_file(tables):
    pages = [page for page in tables.PAGES if "<!-- table: " in page.read_text()]
    names = {"README.md", "real-models.md", "carry-over.md", "courtesy.md", "embedded-world.md"}
    assert {page.name for page in pages} == names
    for page in pages:
        assert tables.filled(page.read_text()) == page.read_text(), page


def test_a_changed_number_is_made_anew(tables):
    page = (ROOT / ".docs" / "pages" / "results" / "real-models.md").read_text()
    value = f"{json.loads((tables.RESULTS / 'truthfulqa-smollm2.json').read_text())['rows'][0]['mc2']:.3f}"
    assert tables.filled(page.replace(f"| {value} |", "| 0.999 |")) == page


def test_an_arm_that_misses_a_fold_says_so_and_is_not_the_best(tables):
    row = {"arm": "a", "budget": 0.1, "n_folds": 2, "mc2": 0.5}
    rows = [row, {**row, "arm": "b", "n_folds": 1, "mc2": 0.9}, {**row, "arm": "control: c", "mc2": 0.8}]
    assert tables.best(rows) == [0]


def test_an_unknown_task_is_refused(tables):
    with pytest.raises(SystemExit, match="has no rows of 'none'"):
        tables.table("truthfulqa-smollm2", "arms", "none")


def test_the_first_gain_is_marked_whosever_it_is(tables, tmp_path, monkeypatch):
    gains = {"ITI": 0.3, "mean shift": 0.1, "least KL, affine": 0.2}
    intervals = {arm: {"value": gain, "low": 0.0, "high": 1.0} for arm, gain in gains.items()}
    rows = [{"data": "d", "arm": arm, "budget": 0.1, "gain": i, "style": i} for arm, i in intervals.items()]
    settings = {"data": "d", "budgets": [0.1], "model": "gemma-3-270m", "folds": [0]}
    (tmp_path / "made-up.json").write_text(json.dumps({"rows": rows, "settings": settings}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (line,) = tables.gains(["made-up"])
    assert line["task"] == "gemma-3, d, first half"
    assert [line[tables.BEST_RIVAL], line[tables.OURS]] == ["**+.300 [.000, 1.000]**", "+.200 [.000, 1.000]"]
    for interval in intervals.values():
        interval["value"] -= 1
    (tmp_path / "made-up.json").write_text(json.dumps({"rows": rows, "settings": settings}))
    assert "**" not in str(tables.gains(["made-up"]))


def test_gains_of_several_files_are_a_line_for_each_budget(tables):
    lines = tables.gains(["tone-smollm2", "truthfulqa-smollm2"])
    assert [(line["task"], line["KL"]) for line in lines] == [
        ("SmolLM2, tone", "0.05"), ("SmolLM2, tone", "0.2"),
        ("SmolLM2, TruthfulQA", "0.08"), ("SmolLM2, TruthfulQA", "0.25"),
    ]  # fmt: skip
    rows = json.loads((tables.RESULTS / "truthfulqa-smollm2.json").read_text())["rows"]
    rivals = [r["gain"]["value"] for r in rows if r["arm"] in ("ITI", "mean shift") and r["budget"] == 0.25]
    assert len(rivals) == 2
    assert float(lines[-1][tables.BEST_RIVAL].split()[0]) == pytest.approx(max(rivals), abs=6e-4)
    assert tables.short({"value": -0.0213, "low": -0.1, "high": 0.3}) == "-.021 [-.100, .300]"
    assert tables.short({"value": 10.25, "low": 0.0, "high": 20.0}) == "+10.250 [.000, 20.000]"


def test_a_table_of_the_paper(tables):
    values = {"mc1": 0.25, "mc2": 0.4, "correct": 0.5, "other": 0.2, "kl": 0.01}
    change = {"difference": 0.1, "difference_low": -0.05, "difference_high": 0.25}
    pooled = [
        {"row": row, "metric": metric, "value": value, **change}
        for row in ("no steering", "RADIANT")
        for metric, value in values.items()
    ]
    choices = [{"layers": [i], "chosen": i != 7} for i in (3, 7)] + [{"layers": [], "chosen": True}]
    plain, steered = tables.paper_rows({"pooled": pooled, "choices": choices})
    assert [plain["gain of MC2"], plain["KL"], plain["layers, by fold"]] == ["", "", ""]
    assert steered["gain of MC2"] == "+0.100 [-0.050, +0.250]"
    assert [steered["informative"], steered["True*Info"]] == ["80.0%", "40.0%"]
    assert steered["layers, by fold"] == "3 / none"


def test_runs_are_joined_only_where_their_arms_differ_alone(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def write(name, settings, mc2=0.5):
        rows = [{"data": "d", "arm": arm, "budget": None, "mc2": mc2} for arm in ("none", name)]
        content = {"rows": rows, "settings": {"data": "d", "folds": [0], "arms": [name], **settings}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    write("a", {})
    # Files of earlier versions do not name what was not chosen.
    write("b", {"n_train": None})
    assert [row["arm"] for row in tables.join(["a", "b"])["rows"]] == ["none", "a", "b"]
    for settings, words in (({"folds": [1]}, "folds"), ({"n_train": 80}, "n_train"), ({"continuations": {}}, "contin")):
        write("b", settings)
        with pytest.raises(SystemExit, match=f"a, b differ in {words}"):
            tables.join(["a", "b"])
    write("b", {}, mc2=0.6)
    with pytest.raises(SystemExit, match="mc2 of 'none' is 0.5 and 0.6"):
        tables.join(["a", "b"])
    write("b", {})
    with pytest.raises(SystemExit, match="is of one run"):
        tables.table("a,b", "paper")
