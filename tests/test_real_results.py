"""Each table of results against a reduced run of its command: `pytest -m slow tests/test_real_results.py`.

A reduced run has one arm of the table, at one budget, on one half, with fewer questions. Published files are looked for
in the folder RADIANT_DATA, toys in RADIANT_MODELS; a table whose model, file or judge is missing is skipped.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

import radiant_lens as rl
from radiant_lens.errors import MissingPackageError, ModelLoadError, UnknownNameError
from radiant_lens.studies import PAPER_TABLES, Benchmark
from radiant_lens.studies.benchmark import Continuations
from radiant_lens.studies.benchmark.arms import GATES_ON_OFFER

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RADIANT_DATA", ROOT.parent / "shared" / "data"))
MODELS = Path(os.environ.get("RADIANT_MODELS", ROOT.parent / "shared" / "models"))
OWN = ("misconceptions", "tone", "tiny-facts")
CONTENTS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / ".docs" / "results").glob("*.json"))}
# By model, so that each is loaded once.
NAMES = sorted(CONTENTS, key=lambda name: CONTENTS[name]["settings"]["model"], reverse=True)
TABLES = [name for name in NAMES if "budgets" in CONTENTS[name]["settings"]]
PAPER = [name for name in NAMES if "table" in CONTENTS[name]["settings"]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CONTENTS, reason="the documentation is not part of the package"),
]


class Bounds(NamedTuple):
    low: float
    high: float


def find_file(name, suffix=".csv"):
    file = DATA / f"{name}{suffix}"
    if not file.is_file():
        pytest.skip(f"no file {file.name} in RADIANT_DATA")
    return file


def find_task(name, suffix=".csv"):
    return name if name in OWN else find_file(name, suffix)


@lru_cache(maxsize=1)
def load_model(name):
    folder = MODELS / name
    try:
        return rl.load_model(folder if folder.is_dir() else name)
    except (ModelLoadError, MissingPackageError, UnknownNameError) as error:
        pytest.skip(f"{error} (RADIANT_MODELS)")


def choose_row(name):
    """The row whose gain is clearest, of an arm that other tables of the same task lack if there is one.

    Where no gain is clear of 0, a row of the fastest arm.
    """
    task = ("model", "data")
    settings = {table: CONTENTS[table]["settings"] for table in TABLES}
    others = [s["arms"] for n, s in settings.items() if n != name and all(s[k] == settings[name][k] for k in task)]
    own = set(settings[name]["arms"]).difference(*others)
    rows = [r for r in CONTENTS[name]["rows"] if r["budget"] is not None and r["data"] == settings[name]["data"]]
    rows = [r for r in rows if r["arm"] in own] or rows
    clear = [r for r in rows if r["gain"]["low"] > 0]
    return max(clear, key=lambda r: r["gain"]["low"]) if clear else min(rows, key=lambda r: r["seconds"])


def overlap(one, other):
    return one.low <= other.high and one.high >= other.low


def bounds(printed):
    return Bounds(printed["low"], printed["high"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of finished arms, so that tables of the same fit share it."""
    return tmp_path_factory.mktemp("reduced")


@pytest.mark.parametrize("name", TABLES)
def test_a_reduced_run_agrees_with_its_table(name, folder):
    content = CONTENTS[name]
    settings = content["settings"]
    prompts = settings.get("continuations")
    files = [find_task(task) for task in (settings["data"], *settings["transfer"])]
    continued = None
    if prompts is not None:
        pytest.importorskip("profanity_check")
        file = find_file(prompts["data"], ".txt")
    model = load_model(settings["model"])
    data, *others = (rl.load_dataset(file, model=model.tokenizer) for file in files)
    if prompts is not None:
        continued = Continuations(rl.load_dataset(file, model=model.tokenizer), 10, 10, "profanity")
    chosen = choose_row(name)
    arm, budget = chosen["arm"], chosen["budget"]
    benchmark = Benchmark(
        model,
        data,
        arms=(arm,),
        budgets=(budget,),
        folds=settings["folds"][:1],
        # Tables from before gates could be chosen have these.
        gates=settings.get("gates", GATES_ON_OFFER),
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
        # MC2 of a question has a standard deviation of .3; some tasks have 27 questions of both kinds of answers here.
        assert rows[task, "none"]["mc2"] == pytest.approx(printed[task, "none", None]["mc2"], abs=0.2), task
        now, before = rows[task, arm]["gain"], printed[task, arm, budget]["gain"]
        # The reduced fit sees a quarter of the questions, and gains less where the whole one gains much.
        assert overlap(now, bounds(before)), (task, now, before)
    # Transfer to another task may depend on the half.
    assert chosen["gain"]["low"] <= 0 or rows[settings["data"], arm]["gain"].value > 0
    # Strengths are set on 20 groups.
    assert rows[settings["data"], arm]["kl"] == pytest.approx(budget, rel=0.5)
    if prompts is not None:
        before = {(r["arm"], r["budget"]): r for r in content["continuations"]}
        now = {r["arm"]: r for r in result.continued().to_dict("records")}
        assert now["none"]["incorrect"] == pytest.approx(before["none", None]["incorrect"], abs=0.15)
        assert overlap(now[arm]["incorrect_change"], bounds(before[arm, budget]["incorrect_change"]))


# Of eight answers of ITI, whose strength breaks the model, one may be empty.
@pytest.mark.filterwarnings("ignore:.*generated answers are empty")
@pytest.mark.parametrize("name", PAPER)
def test_a_reduced_run_agrees_with_a_table_of_the_paper(name):
    content = CONTENTS[name]
    settings = content["settings"]
    files = [file and find_file(Path(file).stem) for file in settings["files"]]
    model = load_model(settings["model"])
    table = PAPER_TABLES[settings["table"]]
    result = table.run(model, *files, n_groups=80, seeds=settings["seeds"][:1], judge=settings["judge"])
    printed, now = (
        {(row["row"], row["metric"]): row for row in rows}
        for rows in (content["pooled"], result.comparison.pooled().to_dict("records"))
    )
    for metric in ("mc2", "correct"):
        plain = printed["no steering", metric]["value"]
        assert now["no steering", metric]["value"] == pytest.approx(plain, abs=0.15), metric
        one, other = (difference(p["ITI", metric]) for p in (now, printed))
        assert overlap(one, other), (metric, one, other)
    assert now["ITI", "kl"]["value"] == pytest.approx(printed["ITI", "kl"]["value"], rel=0.6)
    # Eight questions choose RADIANT's layer in the reduced run, and chose others: it is compared at those of the table.
    data = rl.load_dataset(files[0], model=model.tokenizer, template="plain").sample(80, seed=0)
    for fold, (layer,) in enumerate(c["layers"] for c in content["choices"] if c["chosen"]):
        steered, plain = evaluate_layer(model, data, table.protocol, fold, layer)
        gain = steered.difference(plain, "mc2")
        assert overlap(gain, difference(printed["RADIANT", "mc2"])), (fold, layer, gain)
        kl = printed["RADIANT", "kl"]["value"]
        assert steered.metrics["kl"].value == pytest.approx(kl, rel=0.6), (fold, layer)


def difference(row):
    return Bounds(row["difference_low"], row["difference_high"])


def evaluate_layer(model, data, protocol, fold, layer):
    """The paper's recipe for one layer, fitted on one half and tested on the other, and no steering."""
    test = data.split((0.5, 0.5), seed=0)[fold]
    train, validation = data.only(data.groups - test.groups).split((0.8, 0.2), seed=0)
    cache, held_out = (rl.collect(model, part, positions="last") for part in (train, validation))
    detector = rl.RiskAwareDetector(fnr_weight=protocol.fnr_weight, vote_rule="fnr").fit(cache, held_out)
    policy = replace(rl.RadiantPolicy.paper(protocol.margin), heads=f"layer:{layer}")
    return [rl.evaluate(model, test, s, metrics=("choice", "text")) for s in (policy.fit(cache, detector), None)]
