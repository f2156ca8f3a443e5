"""The comparison with other libraries, in small and with what is installed: the embedded model, one turn."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import peers
from benchmarks.peer_code import picture, probes, tables, worker
from benchmarks.peer_code.process import Worker
from sklearn.metrics import roc_auc_score


class Inside:
    """A worker in this process, with one model for each library, which spares the seconds of starting many."""

    loaded: dict[str, worker.Tasks] = {}

    def __init__(self, python: str, library: str, work: Path, *, lazy: bool = False) -> None:
        if library not in self.loaded:
            self.loaded[library] = worker.Tasks(library, json.loads(work.read_text()))
        self._tasks = self.loaded[library]
        self.ready = {"seconds": 1.0, "peak": 1.0, "versions": worker.versions(library)}

    def run(self, task: str) -> dict[str, Any]:
        return worker.answer(self._tasks, {"task": task})

    def values(self, task: str) -> torch.Tensor:
        return self._tasks.find(task)()

    def close(self) -> None:
        pass


pytestmark = pytest.mark.slow

OPTIONS = argparse.Namespace(
    model="tiny",
    data="tiny-facts",
    environments=Path(),
    peers=["transformers", "transformer_lens", "repeng"],
    dtypes=["float32"],
    turns=1,
    together=1,
    texts=8,
    new=6,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")

    def refuse(folder: Path, packages: tuple[str, ...]) -> str:
        raise RuntimeError("did not install: no index | at all")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "Worker", Inside)
        patch.setattr(Inside, "loaded", {})
        patch.setattr(peers.environments, "make", refuse)
        found = peers.run(OPTIONS, folder)
        found["probes"] = probes.compare("tiny", "tiny-facts", 1, n_groups=24)
        # One library as the command runs it, in a process of its own.
        process = Worker(sys.executable, "transformers", folder / "float32.json")
        found["process"] = [process.ready, process.run("capture")]
        with pytest.raises(RuntimeError, match="KeyError: 'no such edit'"):
            process.run("no such edit")
    return found


def test_all_libraries_read_and_add_the_same(results):
    for library in ("transformers", "transformer_lens"):
        result = results["float32"][library]["check"]
        assert result["capture"] < 1e-4 and result["layer"] == result["layers"] == 1
        # Edits do something, or equal tokens would show nothing.
        assert result["changed"]["layer"] > 0.1
    ours = results["float32"]["radiant_lens"]["check"]
    assert ours["capture"] < 1e-4 and ours["changed"]["heads"] > 0.1


def test_the_table_has_a_row_for_each_library_and_counts_lines(results):
    text = tables.page(results)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {cells[0].strip("| "): cells for cells in table}
    assert len(table[0]) == 11 and all(len(cells) == 11 for cells in table[:6])
    assert int(rows["TransformerLens"][9]) > int(rows["radiant_lens, edits everywhere"][9]) > 3
    assert "behind the vote gate" in text and "did not install: no index / at all" in text
    assert {"`rl.RiskAwareDetector`", "scikit-learn `LogisticRegression`", "`rl.LEACEPolicy`"} <= rows.keys()
    assert picture.draw(results).count("<rect") == 1 + 3 * 3


def test_processes_answer(results):
    ready, answer = results["process"]
    assert ready["versions"].keys() == {"torch", "transformers"} and 0 < answer["before"] <= answer["peak"]
    assert 0 < answer["seconds"] < 60


def test_lines_are_those_of_the_body(tmp_path):
    file = tmp_path / "with_it.py"
    (tmp_path / "answer_tokens.py").write_text("def answer_tokens(a):\n    b = a\n    return b\n")
    body = '    """What."""\n\n    # why\n    b = (\n        a\n    )\n    return answer_tokens(b)\n'
    file.write_text(f"def f(a):\n{body}")
    assert tables.function_lines(file, "f") == 4 + 2


def test_area_under_the_curve_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, (80, 3)).astype(float), random.integers(0, 2, 80)
    weights = random.integers(0, 3, 80).astype(float)
    expected = [roc_auc_score(labels, column, sample_weight=weights) for column in scores.T]
    np.testing.assert_allclose(probes.auroc(scores, labels, weights), expected, rtol=1e-12)
    assert not np.allclose(probes.auroc(scores, labels, np.ones(80)), expected)


def test_erasure_leaves_nothing_to_read_and_equals_the_package(results):
    erasure = results["probes"]["erasure"]
    assert erasure["difference"] < 1e-4
    middle, low, high = erasure["`rl.LEACEPolicy`"]["accuracy"]
    assert low <= middle <= high and abs(middle - 0.5) < abs(erasure["before"][0] - 0.5)


def test_a_page_without_the_comments_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a <!-- tables -->old<!-- /tables --> b")
    tables.replace(page, "new")
    assert page.read_text() == "a <!-- tables -->\nnew\n<!-- /tables --> b"
    page.write_text("no comments")
    with pytest.raises(ValueError, match="no comment"):
        tables.replace(page, "new")
