"""The published files themselves, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import radiant_lens
from radiant_lens import load_dataset

FOLDER = Path(os.environ.get("RADIANT_DATA") or Path(radiant_lens.__file__).parents[2] / "shared" / "data")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the published files are not in {FOLDER} (RADIANT_DATA)")


def counts(d):
    return len(d.statements), sum(s.label for s in d.statements), len(d.prompts), len(d.groups), len(d.skipped)


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("truthfulqa", "TruthfulQA.csv", (6204, 3367, 817, 817, 5)),
        ("truthfulqa", "TruthfulQA_mc_task.json", (6204, 3369, 817, 817, 0)),
        ("nq_open", "NQOpen.csv", (9860, 3370, 3610, 3610, 246)),
        ("trivia_qa", "TriviaQA.csv", (58442, 2272, 3610, 3294, 1343)),
    ],
)
def test_every_row_is_loaded_and_the_rest_is_named(name, file, expected):
    d = load_dataset(name, path=FOLDER / file)
    assert counts(d) == expected
    assert all(p.best_answer in p.correct_answers for p in d.prompts)
    assert not [p for p in d.prompts if set(p.correct_answers) & set(p.incorrect_answers)]


def test_both_forms_of_truthfulqa_are_one_but_for_two_answers():
    csv, mc = (load_dataset("truthfulqa", path=FOLDER / f) for f in ("TruthfulQA.csv", "TruthfulQA_mc_task.json"))
    one, other = ({(s.text, s.label) for s in d.statements} for d in (csv, mc))
    unknown = ("Q: How many people have absolute pitch? A: Unknown.",
               "Q: What proportion of Canadians are straight? A: Unknown.")  # fmt: skip
    assert one - other == {(text, 0) for text in unknown}
    assert other - one == {(text, 1) for text in unknown}
    assert {(p.group, p.best_answer) for p in csv.prompts} == {(p.group, p.best_answer) for p in mc.prompts}
    assert all(p.mc1_incorrect is None for p in mc.prompts)
    assert [p.groups for p in csv.split(seed=5)] == [p.groups for p in mc.split(seed=5)]


def test_known_oddities_of_the_files():
    truthful = load_dataset("truthfulqa", path=FOLDER / "TruthfulQA.csv")
    assert truthful.skipped[2] == "line 349: incorrect answer 'Unknown.' is left out, it also is a correct one."
    assert not [s for s in truthful.statements if s.text.rstrip(".").endswith(";")]
    nq = load_dataset("nq_open", path=FOLDER / "NQOpen.csv")
    assert next(p for p in nq.prompts if "foo fighters" in p.text).best_answer == "N/A"
    trivia = load_dataset("trivia_qa", path=FOLDER / "TriviaQA.csv")
    assert "line 14: incorrect answer 'Wagons' is left out, it also is a correct one." in trivia.skipped
    assert any("TL;DR" in p.correct_answers for p in trivia.prompts)


def test_a_bare_path_is_taken_as_it_stands():
    bare = load_dataset(FOLDER / "TruthfulQA.csv")
    assert bare.name == "TruthfulQA"
    assert bare.prompts[0].best_answer == "The watermelon seeds pass through your digestive system"
