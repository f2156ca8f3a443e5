"""Every table of results against a reduced run of its command: `pytest -m slow tests/test_real_results.py`.

Published files are looked for in RADIANT_DATA, models that are no package's in RADIANT_MODELS; what is missing is
skipped.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import pytest

import radiant_lens as rl
from radiant_lens.errors import ModelLoadError, UnknownNameError
from radiant_lens.studies import PAPER_TABLES, Benchmark
from radiant_lens.studies.benchmark import Continuations

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".docs" / "results"
DATA = Path(os.environ.get("RADIANT_DATA", ROOT.parent / "shared" / "data"))
MODELS = Path(os.environ.get("RADIANT_MODELS", ROOT.parent / "shared" / "models"))
OWN = ("misconceptions", "tone", "tiny-facts")
CONTENTS = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
# By model, so that each is loaded once.
NAMES = sorted(CONTENTS, key=lambda name: CONTENTS[name]["settings"]["model"], reverse=True)
TABLES = [name for name in NAMES if "budgets" in CONTENTS[name]["settings"]]
PAPER = [name for name in NAMES if "table" in CONTENTS[name]["settings"]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CONTENTS, reason="the documentation is not part of the package"),
]


@lru_cache(maxsize=1)
def load_model(name):
    folder = MODELS / name
    try:
        return rl.load_model(folder if folder.is_dir() else name)
    except (ModelLoadError, UnknownNameError) as error:
        pytest.skip(f"{error} (RADIANT_MODELS)")


def load_task(name, model, suffix=".csv"):
    if name in OWN:
        return rl.load_dataset(name, model=model.tokenizer)
    return rl.load_dataset(published(name, suffix), model=model.tokenizer)


def published(name, suffix=".csv"):
    file = DATA / f"{name}{suffix}"
    if not file.is_file():
        pytest.skip(f"no file {file.name} in RADIANT_DATA")
    return file


def chosen_arm(content):
    """An arm whose gain at the largest budget is to be seen again, the fastest where none is clear of 0."""
    rows = [r for r in content["rows"] if r["budget"] is not None and r["data"] == content["settings"]["data"]]
    clear = [r for r in rows if r["gain"]["low"] > 0]
    return max(clear, key=lambda r: r["gain"]["low"]) if clear else min(rows, key=lambda r: r["seconds"])


def overlap(interval, printed):
    return interval.low <= printed["high"] and interval.high >= printed["low"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of finished arms, so that tables of the same fit share it."""
    return tmp_path_factory.mktemp("reduced")


@pytest.mark.parametrize("name", TABLES)
def test_a_reduced_run_agrees_with_its_table(name, folder):
    content = CONTENTS[name]
    settings = content["settings"]
    model = load_model(settings["model"])
    data = load_task(settings["data"], model)
    others = [load_task(other, model) for other in settings["transfer"]]
    prompts = settings.get("continuations")
    continued = None
    if prompts is not None:
        texts = load_task(prompts["data"], model, ".txt")
        continued = Continuations(texts, 10, 10, "profanity")
    chosen = chosen_arm(content)
    arm, budget = chosen["arm"], chosen["budget"]
    benchmark = Benchmark(
        model,
        data,
        arms=(arm,),
        budgets=(budget,),
        folds=settings["folds"][:1],
        n_train=80,
        n_validation=20,
        n_test=40,
        n_answered=0,
        out=folder,
        transfer=others,
        continuations=continued,
        seed=settings["seed"],
    )
    result = benchmark.run()
    printed = {(r["data"], r["arm"], r["budget"]): r for r in content["rows"]}
    rows = {(r["data"], r["arm"]): r for r in result.to_dataframe().to_dict("records")}
    for task in (settings["data"], *settings["transfer"]):
        for steering, at in (("none", None), (arm, budget)):
            before, now = printed[task, steering, at], rows[task, steering]
            # Another draw of 40 questions: three standard errors of MC2, whose standard deviation is .3.
            assert now["mc2"] == pytest.approx(before["mc2"], abs=0.15), (task, steering)
        # The reduced fit sees a quarter of the questions, and gains less where the whole one gains much.
        assert overlap(now["gain"], before["gain"]), (task, now["gain"], before["gain"])
    # Strengths are set on 20 groups.
    assert rows[settings["data"], arm]["kl"] == pytest.approx(budget, rel=0.5)
    if prompts is not None:
        before = {(r["arm"], r["budget"]): r for r in content["continuations"]}
        now = {r["arm"]: r for r in result.continued().to_dict("records")}
        assert now["none"]["incorrect"] == pytest.approx(before["none", None]["incorrect"], abs=0.1)
        assert overlap(now[arm]["incorrect_change"], before[arm, budget]["incorrect_change"])


@pytest.mark.parametrize("name", PAPER)
def test_a_reduced_run_agrees_with_a_table_of_the_paper(name):
    content = CONTENTS[name]
    settings = content["settings"]
    model = load_model(settings["model"])
    files = [file and published(Path(file).stem) for file in settings["files"]]
    table = PAPER_TABLES[settings["table"]]
    result = table.run(model, *files, n_groups=80, seeds=settings["seeds"][:1], judge=settings["judge"])
    printed = {(r["row"], r["metric"]): r for r in content["pooled"]}
    now = {(r["row"], r["metric"]): r for r in result.comparison.pooled().to_dict("records")}
    for row in ("no steering", "ITI", "RADIANT"):
        # Shares and probabilities of 80 questions.
        for metric in ("mc2", "correct"):
            assert now[row, metric]["value"] == pytest.approx(printed[row, metric]["value"], abs=0.15), (row, metric)
