"""The table of the real model against a reduced run of its command: `pytest -m slow tests/test_real_results.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.sources import find_source
from radiant_lens.studies.benchmark import Benchmark

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".docs" / "results" / "truthfulqa-smollm2.json"
FILE = Path(os.environ.get("RADIANT_DATA", ROOT.parent / "shared" / "data")) / "TruthfulQA.csv"
ARM = "mean shift"


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason=f"the published file is not at {FILE} (RADIANT_DATA)")
@pytest.mark.skipif(not RESULTS.is_file(), reason="the documentation is not part of the package")
def test_a_reduced_run_agrees_with_the_table():
    content = json.loads(RESULTS.read_text())
    settings = content["settings"]
    rows = {(r["arm"], r["budget"]): r for r in content["rows"] if r["data"] == settings["data"]}
    try:
        find_source(settings["model"])
    except ModelLoadError as error:
        pytest.skip(str(error))
    model = rl.load_model(settings["model"])
    data = rl.load_dataset(FILE, model=model.tokenizer)
    options = {"folds": (0,), "n_validation": 20, "n_test": 40, "n_answered": 0, "seed": settings["seed"]}
    budget = settings["budgets"][0]
    table = Benchmark(model, data, arms=(ARM,), budgets=(budget,), **options).run().to_dataframe().set_index("arm")
    for name, printed in (("none", rows["none", None]), (ARM, rows[ARM, budget])):
        # Another draw of a quarter of the questions: three standard errors of MC2, whose standard deviation is .3.
        assert table.loc[name, "mc2"] == pytest.approx(printed["mc2"], abs=0.15), name
    gain, printed = table.loc[ARM, "gain"], rows[ARM, budget]["gain"]
    assert gain.value > 0
    assert gain.low <= printed["high"] and gain.high >= printed["low"]
    assert table.loc[ARM, "kl"] == pytest.approx(budget, rel=0.4)
