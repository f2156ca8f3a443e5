"""The files of `../shared/cases` from the command line; each stands for a kind of file that people have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import radiant_lens as rl

CASES = Path(rl.__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not part of the package")


@pytest.fixture
def columns(command_line):
    """What is read from a case with some options."""

    def command(name: str, *arguments: object) -> dict:
        status, out, err = command_line("columns", CASES / name, *arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return command


@pytest.fixture
def refusal(command_line):
    def command(name: str, *arguments: object) -> str:
        status, _, err = command_line("columns", CASES / name, *arguments)
        assert status in (1, 2)
        return err

    return command


def texts(shown: dict) -> dict[str, int]:
    return {s["text"]: int(s["label"][0]) for s in shown["statements"]}


def test_lists_written_as_text(columns):
    shown = columns("lists_python.csv")
    assert (shown["desirable"], shown["undesirable"]) == (3, 3)
    assert not any("[" in s["text"] for s in shown["statements"])


def test_preferences_are_whole(columns):
    shown = columns("dpo3.jsonl", "--rows", 9)
    assert shown["desirable"] == shown["undesirable"] == len(CASES.joinpath("dpo3.jsonl").read_text().splitlines())
    assert {"Tell me about 0. Gladly, 0 is nice; ask more.": 0, "Tell me about 0. No; go away 0.": 1}.items() <= texts(
        shown
    ).items()


def test_chats_ask_for_a_template(refusal):
    assert "--template chat" in refusal("messages.jsonl")


def test_contrastive_pairs(columns):
    assert (columns("caa.json")["desirable"], columns("caa.json")["undesirable"]) == (2, 2)
    swapped = columns("caa.json", "--undesirable", "answer_not_matching_behavior")
    assert texts(swapped) == {text: 1 - label for text, label in texts(columns("caa.json")).items()}


def test_columns_named_by_the_caller(columns):
    shown = columns("halu_qa.json", "--columns", "correct_answers=right_answer,incorrect_answers=hallucinated_answer")
    assert texts(shown)["Q: Which came first, X or Y? A: X, in 1844; Y came later"] == 0
    assert texts(shown)["Q: Which came first, X or Y? A: Y was first; in 1900"] == 1


def test_an_ending_in_capital_letters(columns):
    assert texts(columns("CAPS.CSV")) == {"a": 1, "b": 0}


def test_labels_are_never_inverted_in_silence(refusal, columns):
    names = ("--columns", "text=statement,group=city")
    assert "--undesirable 0" in refusal("cities.csv", *names)
    assert texts(columns("cities.csv", *names, "--undesirable", 0)) == {
        "The city of A is in B.": 0,
        "The city of A is in C.": 1,
    }


def test_words_as_labels_are_asked_for(refusal, columns):
    assert "--undesirable" in refusal("label_words.jsonl")
    shown = columns("label_words.jsonl", "--undesirable", "false")
    assert shown["undesirable"] > 0 and shown["desirable"] > 0


def test_a_missing_answer_is_not_the_text_nan(columns):
    assert set(texts(columns("nan_best.jsonl"))) == {"Q: who? A: me", "Q: who? A: you"}


def test_an_answer_marker_counts_at_a_word_boundary(columns):
    assert texts(columns("nasa.jsonl")) == {"The USA: a country of 50 states in North America.": 0}


def test_forty_rows_end_with_a_heat_map_a_steering_and_a_report(command_line, tmp_path):
    data = ("--data", CASES / "two_kinds_40.jsonl", "--out", tmp_path / "out")
    status, out, err = command_line("fit", *data, "--json")
    assert status == 1
    assert "2 validation groups cannot show that a head is significant" in err
    assert "About 8 validation groups are enough" in err
    result = json.loads(out)
    assert (result["heads"], result["certificate"]) == ([], None)
    assert {"heads.csv", "report.html"} < {path.name for path in (tmp_path / "out").iterdir()}
    status, out, err = command_line("fit", *data, "--heads", 4, "--json")
    assert status == 0, err
    assert len(json.loads(out)["heads"]) == len(rl.Steering.load(tmp_path / "out").sites) == 4
    # Words of the field are explained where they stand.
    page = re.sub(r"</?abbr[^>]*>", "", (tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "Validation risk of each head" in page
    assert "What these data cannot show: that one head alone detects. On 2 validation groups" in page
    assert "groups without a failure would be needed to confirm it" in page
