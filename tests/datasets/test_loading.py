"""`load_dataset`: names, files, and names that are nearly right."""

from __future__ import annotations

import json

import pytest

from radiant_lens import Contexts, load_dataset
from radiant_lens.datasets import read_records
from radiant_lens.datasets.loading import data_folder
from radiant_lens.datasets.world import build
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "counts"),
    [("tiny-facts", (1296, 324, 324, 324 * 2 * 4, 324 * 3)), ("tiny-tone", (1260, 420, 210, 210 * 2 * 4, 210 * 4))],
)
def test_the_packaged_data_sets_have_the_counts_of_their_card(name, counts):
    d = load_dataset(name)
    assert (len(d.atoms), len(d.bare_prompts), len(d.groups), len(d.statements), len(d.prompts)) == counts
    assert f"{counts[0]:,} statements" in " ".join((data_folder() / "README.md").read_text().split())


@pytest.mark.parametrize("name", ["tiny-facts", "tiny-tone"])
def test_the_packaged_files_are_what_build_makes_now(name, tmp_path):
    build.main(tmp_path)
    assert (data_folder() / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()


# Names and files


@pytest.mark.parametrize(("name", "judge"), [("tiny-facts", "exact"), ("tiny-tone", "lexicon")])
def test_the_packaged_data_sets_bring_their_judge_and_contexts(name, judge):
    d = load_dataset(name)
    assert (d.name, d.judge, d.stop, d.contexts) == (name, judge, (".",), Contexts())


def test_a_file_is_named_after_itself_and_has_contexts_only_if_asked(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"A: {i}", "label": i % 2, "group": str(i // 2)}) + "\n" for i in range(12))
    )
    plain, woven = load_dataset(path), load_dataset(str(path), contexts=Contexts(n_pairs=(2,)))
    assert (plain.name, plain.judge) == ("mine", "contains")
    assert plain.atoms == woven.atoms == plain.statements == read_records(path)[0]
    assert all(s.text.count("A:") == 2 for s in woven.statements)


@pytest.mark.parametrize(
    ("name", "near"), [("tiny-fact", "tiny-facts"), ("tinytone", "tiny-tone"), ("Tiny-Facts", "tiny-facts")]
)
def test_a_misspelled_name_is_answered_by_the_nearest(name, near):
    with pytest.raises(
        UnknownNameError, match=f"{name!r} is not a known data set: did you mean .*{near!r}.*csv, .json or .jsonl"
    ):
        load_dataset(name)


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(UnknownNameError, match="'xyz' is not a known data set: known are .*'tiny-facts', 'tiny-tone'"):
        load_dataset("xyz")


def test_an_error_about_a_name_can_be_caught_as_a_key_error():
    with pytest.raises(KeyError):
        load_dataset("xyz")


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text("text,label\na,0\n")
    assert len(load_dataset("~/mine.csv")) == 1


# Refusals


@pytest.mark.parametrize("path", [["a.csv"], 3, {"a": "b"}])
def test_a_path_that_is_no_path_is_refused_by_its_type(path):
    for source in ("truthfulqa", [{"text": "a", "label": 0}]):
        with pytest.raises(InvalidArgumentError, match=f"`path` must be a str or a Path; got {type(path).__name__}"):
            load_dataset(source, path=path)


def test_a_file_that_is_not_there_is_answered_by_its_neighbour(tmp_path):
    (tmp_path / "answers.csv").write_text("")
    with pytest.raises(DataError, match=r"There is no file '.*anwsers.csv'; there is 'answers.csv' beside it"):
        load_dataset(tmp_path / "anwsers.csv")
    with pytest.raises(DataError, match=r"There is no file '.*other.jsonl'; check its path"):
        load_dataset(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"There is no file '.*nowhere/a.csv': there is no folder '.*nowhere'"):
        load_dataset(tmp_path / "nowhere" / "a.csv")
    with pytest.raises(DataError, match="is a folder; give one of its files"):
        load_dataset("truthfulqa", path=tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*nowhere\.jsonl"):
        load_dataset(tmp_path / "nowhere.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        load_dataset(tmp_path / "empty.jsonl")
