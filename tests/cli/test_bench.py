"""`radiant-lens bench` and `side-effects`: mistakes end in one sentence before a model runs."""

from __future__ import annotations

import json

import pytest

from radiant_lens.studies.benchmark import ARMS, Benchmark

MISTAKES = [
    ("bench --budgets x", 2, "`--budgets` must be numbers separated by commas, such as 0.02,0.08,0.25; got 'x'"),
    ("bench --budgets 0.1,", 2, "`--budgets` must be numbers separated by commas"),
    ("bench --budgets 0", 2, "`budgets` must lie strictly above 0; got 0.0"),
    ("bench --budgets nan", 2, "`budgets` must lie strictly above 0; got nan"),
    ("bench --folds 3", 2, "`folds` must be a whole number between 0 and 1; got 3"),
    ("bench --folds x", 2, "`folds` must be whole numbers separated by commas; got 'x'"),
    ("bench --arms wizardry", 2, "'wizardry' is not a known arm of the benchmark: known are 'prompt', 'few-shot'"),
    ("bench --arms radiant", 2, "did you mean 'RADIANT'"),
    ("bench --test-groups 0", 2, "for '--test-groups'"),
    ("bench --validation-groups 0", 2, "for '--validation-groups'"),
    ("bench --gates heads", 2, "`gates` must be one of 'head', 'vote', 'layer', 'joint', 'none'; got 'heads'"),
    ("bench --samples 0", 2, "for '--samples'"),
    ("bench --continuations none.txt", 1, "There is no file 'none.txt'"),
    ("bench --continuations tiny-facts --judge rude", 2, "'rude' is not a known judge"),
    ("bench --judge lexicon", 2, "`--judge` is for `--continuations`; got 'lexicon' without it"),
    ("bench none.csv", 1, "There is no file 'none.csv'"),
    ("bench --on-long drop", 2, "`on_long` must be one of 'skip', 'cut', 'error'; got 'drop'"),
    ("bench --seed -1", 2, "`seed` must be a whole number between 0 and 4294967295; got -1"),
    ("bench --out file/arms", 1, "cannot be written (Not a directory)"),
    ("side-effects", 2, "Missing argument"),
    ("side-effects none", 1, "There is no folder 'none' with a saved steering"),
    ("side-effects steering --seed -1", 2, "`seed` must be a whole number between 0"),
    ("side-effects steering --max-new-tokens 0", 2, "`max_new_tokens` must be a whole number of at least 1; got 0"),
    ("side-effects steering --benchmark none.csv", 1, "There is no file 'none.csv'"),
    ("side-effects steering --model ./none", 1, "There is no folder './none'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, steering):
    folder = tmp_path_factory.mktemp("place")
    steering.save(folder / "steering")
    (folder / "file").write_text("not a folder")
    return folder


@pytest.mark.parametrize(("line", "status", "words"), MISTAKES, ids=[line for line, *_ in MISTAKES])
def test_a_mistake_is_one_sentence_before_a_model_runs(line, status, words, place, monkeypatch, command_line):
    monkeypatch.chdir(place)
    monkeypatch.setattr(Benchmark, "run", lambda *arguments, **options: pytest.fail("the benchmark ran"))
    code, out, err = command_line(*line.split())
    assert code == status, out + err
    assert words in " ".join((out + err).split())
    assert "Traceback" not in out + err
    if "Usage: " not in err:
        assert err.count("\n") == 1 and err.startswith("radiant-lens: ")
    assert sorted(path.name for path in place.iterdir()) == ["file", "steering"]


def test_arms_are_listed(command_line):
    status, out, _ = command_line("bench", "--list", "--json")
    assert (status, json.loads(out)["arms"]) == (0, list(ARMS))


def test_continuations_are_part_of_what_is_printed(command_line):
    line = "bench tiny-facts --folds 0 --budgets 0.1 --test-groups 8 --answers 0 --continuations tiny-facts --samples 2"
    arms = ("--arms", "control: answers alone", "--continued-groups", "5")
    status, out, err = command_line(*line.split(), *arms, "--json")
    assert status == 0, err
    content = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (row,) = content["continuations"]
    assert (row["arm"], row["n_groups"]) == ("none", 5)
    assert content["settings"]["continuations"]["n_samples"] == 2


def test_what_is_named_twice_is_computed_once(monkeypatch, command_line):
    class StopRunError(Exception):
        pass

    settings: list[Benchmark] = []

    def run(self, **options):
        settings.append(self)
        raise StopRunError

    monkeypatch.setattr(Benchmark, "run", run)
    with pytest.raises(StopRunError):
        command_line(
            "bench",
            "tiny-facts",
            "--folds",
            "1,0,1",
            "--budgets",
            "0.2,0.1,0.2",
            "--train-groups",
            7,
            "--test-groups",
            8,
        )
    assert (settings[0].folds, settings[0].budgets) == ([0, 1], (0.1, 0.2))
    assert (settings[0].n_train, settings[0].n_validation, settings[0].n_test) == (7, None, 8)
