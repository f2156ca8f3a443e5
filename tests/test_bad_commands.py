"""Mistakes at the command line: one sentence, an exit status, and no good file replaced."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from bad_input.bad_files import LONG, read_files, write_bad_artefacts, write_bad_files
from bad_input.mistakes import STATEMENTS
from conftest import files_no_larger_than
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens import _files
from radiant_lens.datasets.readers.records import write_records
from radiant_lens.errors import OutputError
from radiant_lens.evaluation import generation

LONGEST = 480
"""Characters of a message: a sentence or two, whatever the value."""


class Typed(NamedTuple):
    """A command line in the folder `place`, its exit status, and words of its message."""

    line: str
    status: int
    says: str

    @property
    def arguments(self) -> list[str]:
        return [LONG if word == "LONG" else word for word in self.line.split()]


USAGE = [
    Typed("nonsense", 2, "No such command"),
    Typed("fit", 2, "--out"),
    Typed("demo --gamma 0.7", 2, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
    Typed("demo --seed x", 2, "for '--seed'"),
    Typed("demo --out file", 1, "'file' exists and is not a saved steering; it is left alone"),
    Typed("demo --out file/demo", 1, "'file/demo' cannot be written (Not a directory)"),
    Typed("collect --out o --model tinny", 2, "'tinny' is not a known model: did you mean 'tiny'"),
    Typed("collect --out o --data tiny-fact", 2, "did you mean 'tiny-facts'"),
    Typed("collect --out o --data none.csv", 1, "There is no file 'none.csv'"),
    Typed("collect --out o --data mine.xlsx", 2, "A file must end in .csv, .json or .jsonl"),
    Typed("collect --out o --data binary.csv", 1, "binary.csv cannot be read as .csv"),
    Typed("collect --out o --data broken.json", 1, "broken.json cannot be read as .json"),
    Typed("collect --out o --data empty.jsonl", 1, "empty.jsonl has no rows"),
    Typed("collect --out o --data long.jsonl", 1, "Text 0 has 301 tokens; the model's context holds 256"),
    Typed("collect --out o --data surrogate.jsonl", 1, "Text 0 is not valid Unicode"),
    Typed("collect --out o --positions first", 2, "`positions` must be one of"),
    Typed("collect --out o --device gpu", 2, "`device` must be such as 'cpu' or 'cuda:0'; got 'gpu'"),
    Typed("collect --out o --part tests", 2, "`part` must be one of 'train', 'validation', 'test', 'all'; got 'tests'"),
    Typed("collect --out o --split 0.5,0.6", 2, "`--split` must be three positive shares that add up to 1"),
    Typed("collect --out o --data good.jsonl --part test", 2, "3 parts need as many groups; the data has 2"),
    Typed("columns", 2, "Missing argument"),
    Typed("columns none.csv", 1, "There is no file 'none.csv'"),
    Typed("columns tiny-fact", 2, "did you mean 'tiny-facts'"),
    Typed("columns good.jsonl --rows 0", 2, "for '--rows'"),
    Typed("columns good.jsonl --columns text", 2, "`--columns` must read OURS=THEIRS, such as text=statement"),
    Typed("columns good.jsonl --columns text=a,", 2, "`--columns` has an empty piece; got 'text=a,'"),
    Typed("columns good.jsonl --columns text=a,text=b", 2, "`--columns` names 'text' twice"),
    Typed("columns good.jsonl --columns txt=text", 2, "'txt' is not a known column: did you mean 'text'"),
    Typed("columns good.jsonl --columns text=a,label=b,group=c", 1, "has no column 'a' or 'b' or 'c'"),
    Typed("columns good.jsonl --undesirable 7", 1, "`undesirable` names '7', but no row of good.jsonl has this label"),
    Typed("columns good.jsonl --undesirable 1 --threshold 0.5", 2, "must be 'above' (the default) or 'below'"),
    Typed("columns good.jsonl --threshold nan", 2, "`threshold` must be a finite number"),
    Typed("columns good.jsonl --threshold half", 2, "for '--threshold'"),
    Typed("columns good.jsonl --format contrastiv", 2, "did you mean 'contrastive'"),
    Typed("columns good.jsonl --template Q:{question}", 2, "`template` is laid around questions"),
    Typed("columns good.jsonl --template chat", 2, "'tiny' has none: name another `--model`"),
    Typed("columns good.jsonl --template chat --model ./none", 1, "There is no folder './none'"),
    Typed("columns label-two.jsonl --undesirable 3", 1, "`undesirable` names '3'"),
    Typed("columns tiny-facts --columns text=a", 2, "`columns` cannot be given with tiny-facts"),
    Typed("collect", 2, "Give either --out or --store"),
    Typed("collect --out o --store s", 2, "Give either --out or --store"),
    Typed("collect --store s --layers first", 2, "`layers` must be whole numbers separated by commas"),
    Typed("collect --out o --device-map everywhere", 2, "`device_map` must be one of 'auto'"),
    Typed("collect --out steering", 1, "exists and is not a saved head cache"),
    Typed("collect --out /proc/cache", 1, "'/proc/cache' cannot be written"),
    Typed("fit --out o --data no-label.jsonl", 1, "missing column 'label'"),
    Typed("fit --out o --data label-typo.jsonl", 1, "line 2: `label` must be 0 (desirable) or 1 (undesirable)"),
    Typed("fit --out o --data label-two.jsonl", 1, "line 2: `label` must be 0 (desirable) or 1 (undesirable); got 2"),
    Typed(
        "fit --out o --data one-class.jsonl",
        1,
        "groups with an undesirable (1) example; 0 have one",
    ),
    Typed("fit --out o --on-long drop", 2, "`on_long` must be one of 'skip', 'cut', 'error'; got 'drop'"),
    Typed("fit --out o --gate open", 2, "`gate` must be one of"),
    Typed("fit --out o --policy magic", 2, "'magic' is not a known policy: known are 'radiant', 'iti'"),
    Typed("fit --out o --policy iti --gamma 0.1", 2, "'gamma' is not a known option of policy 'iti'"),
    Typed("fit --out o --policy leace --option kind=mean", 2, "known are 'heads', 'n_layers', 'gate'"),
    Typed("fit --out o --policy ablation --option kind=zer", 2, "`kind` must be one of"),
    Typed("fit --out o --option gamma", 2, "`--option` must read name=value; got 'gamma'"),
    Typed("fit --out o --option trust=[", 2, "`--option` 'trust=[' cannot be read"),
    Typed("fit --out o --gamma 0.1 --option gamma=0.2", 2, "`gamma` is set twice"),
    Typed("fit --out o --alpha 2", 2, "'alpha' is not a known option of policy 'radiant'"),
    Typed("fit --out o --policy iti --kl 0.1", 2, "'kl' is not a known option of policy 'iti'"),
    Typed("fit --out o --policy least-kl --kl 0", 2, "`budget` must lie strictly above 0; got 0"),
    Typed("fit --out o --policy least-kl --kl 0.1 --option budget=0.2", 2, "`budget` is set twice"),
    Typed("fit --out o --policy least-kl --alpha 2", 2, "'alpha' is not a known option of policy 'least_kl'"),
    Typed("fit --out o --heads best", 2, "`heads` must be 'significant', 'all'"),
    Typed("fit --out o --heads 0", 2, "`heads` must be a whole number between 1 and 32; got 0"),
    Typed("fit --out o --heads 999", 2, "`heads` must be a whole number between 1 and 32; got 999"),
    Typed("fit --out o --heads L9H0", 2, "`layer` must be a whole number between 0 and 3; got 9"),
    Typed("fit --out o --heads layers:9", 2, "`n_layers` must be a whole number between 1 and 4; got 9"),
    Typed("fit --out o --heads effective", 2, "`heads` 'effective' needs a model"),
    Typed("fit --out o --policy iti --option n_heads=999", 2, "`n_heads` must be a whole number between 1 and 32"),
    Typed("fit --out o --split 0.6,0.4", 2, "`--split` must be three positive shares"),
    Typed("fit --out o --fnr-weight 0", 2, "`fnr_weight` must lie strictly above 0; got 0"),
    Typed("fit --out o --data good.jsonl", 2, "3 parts need as many groups; the data has 2"),
    Typed("generate", 2, "Missing argument"),
    Typed("generate --stop= x", 2, "`stop` must not hold the empty string"),
    Typed("generate --steering lost x", 1, "fitted on model './lost-model', which is not to be found from here"),
    Typed("generate --compare x", 2, "`--compare` needs `--steering`"),
    Typed("generate --dtype float31 x", 2, "`dtype`"),
    Typed("fit --out o --policy iti --alpha 0", 2, "`alpha` must lie strictly above 0; got 0"),
    Typed("fit --out o --seed -1", 2, "`seed` must be a whole number between 0 and 4294967295; got -1"),
    Typed("fit --out cache", 1, "exists and is not a saved steering"),
    Typed("fit --out file/steering", 1, "cannot be written (Not a directory)"),
    Typed("generate --model ./none x", 1, "There is no folder './none'"),
    Typed("generate --model some/model x", 1, "download it elsewhere and pass its folder"),
    Typed("generate --model a-model x", 1, "The model in 'a-model' cannot be read"),
    Typed("generate --steering none x", 1, "There is no folder 'none' with a saved steering"),
    Typed("generate --steering cut x", 1, "The saved steering at 'cut' is damaged"),
    Typed("generate --steering later x", 1, "update radiant-lens"),
    Typed("generate --steering steering.pt x", 1, "is not a saved steering"),
    Typed("generate --steering pickled x", 1, "The saved steering at 'pickled' is damaged"),
    Typed("generate --steering climbing x", 1, "is incomplete: `map_kind` must be one of"),
    Typed("generate --steering other-model x", 1, "with n_layers = 2; 'tiny' has 4"),
    Typed("generate --temperature -1 x", 2, "`temperature` must lie at or above 0"),
    Typed("generate --seed -1 x", 2, "`seed` must be a whole number"),
    Typed("generate LONG", 1, "context holds 256"),
    Typed("generate --max-new-tokens 300 x", 1, "shorten it, or lower `max_new_tokens`"),
    Typed("evaluate --metrics choices", 2, "did you mean 'choice'"),
    Typed("evaluate --judge exakt", 2, "did you mean 'exact'"),
    Typed("evaluate --samples 0", 2, "`n_samples` must be a whole number"),
    Typed("evaluate --part some", 2, "`part` must be one of 'train', 'validation', 'test', 'all'; got 'some'"),
    Typed("evaluate --steering none", 1, "There is no folder 'none' with a saved steering"),
    Typed("evaluate --on-long drop", 2, "`on_long` must be one of 'skip', 'cut', 'error'; got 'drop'"),
    Typed("evaluate --data good.jsonl --undesirable 7", 1, "no row of good.jsonl has this label"),
    Typed("evaluate --out steering", 1, "'steering' cannot be written (it is not an ordinary file)"),
    Typed("ablate", 2, "Name a study (see --list)"),
    Typed("ablate polices", 2, "did you mean 'policies'"),
    Typed("ablate --vary gamma", 2, "`vary` must read name=value,value; got 'gamma'"),
    Typed("ablate --vary gamma=[", 2, "`--vary` 'gamma=[' cannot be read"),
    Typed("ablate --vary gama=0.1,0.2", 2, "did you mean 'gamma'"),
    Typed("ablate --vary gamma=0.1,0.7", 2, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
    Typed("ablate --vary gamma=0.1 --seeds a,b", 2, "`seeds` must be whole numbers separated by commas; got 'a,b'"),
    Typed("ablate --vary gamma=0.1 --seeds -1", 2, "`seeds` must be a whole number between 0"),
    Typed("ablate --vary gamma=0.1 --jobs 0", 2, "`n_jobs` must be a whole number"),
    Typed("ablate --vary gamma=0.1 --out file", 1, "cannot be written (Not a directory)"),
    Typed("ablate gate --data none.csv --undesirable 0", 1, "There is no file 'none.csv'"),
    Typed("ablate paper:table1 --undesirable 0", 2, "The paper's tables read their data in the published format"),
    Typed("ablate none.yaml", 1, "Study file 'none.yaml' cannot be read"),
    Typed("ablate code.yaml", 1, "could not determine a constructor"),
    Typed("ablate key-typo.yaml", 2, "did you mean 'arms'"),
    Typed("ablate paper:table9", 2, "is not a known table of the paper"),
    Typed("report", 2, "There is nothing to report on"),
    Typed("report --model tiny", 2, "`--model` needs `--prompt`"),
    Typed("report --prompt x", 2, "`--prompt` needs `--steering`"),
    Typed("report --evaluation x.json", 2, "`--evaluation` must read NAME=FILE; got 'x.json'"),
    Typed("report --evaluation a=x.json", 1, "The saved evaluation at 'x.json' cannot be read"),
    Typed("report --evaluation a=evaluation.json", 1, "The saved evaluation at 'evaluation.json' cannot be read"),
    Typed("report --evaluation a=steering.pt", 1, "The saved evaluation at 'steering.pt' cannot be read"),
    Typed("report --steering none", 1, "There is no folder 'none' with a saved steering"),
    Typed("report --detector none", 1, "There is no folder 'none' with a saved detector: check the path"),
    Typed("report --steering steering --cache none", 1, "There is no folder 'none' with a saved head cache"),
    Typed("report --detector steering", 1, "'steering' is not a saved detector"),
    Typed("report --steering steering --cache cut-cache", 1, "The saved head cache at 'cut-cache' is damaged"),
    Typed("report --steering steering --out /dev/full", 1, "cannot be written (it is not an ordinary file)"),
    Typed("doctor tinny", 2, "did you mean 'tiny'"),
    Typed("doctor a-model", 1, "The model in 'a-model' cannot be read"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, gaussian_cache):
    folder = tmp_path_factory.mktemp("place")
    write_bad_files(folder)
    steering = random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    write_bad_artefacts(folder, gaussian_cache(4), steering)
    random_steering(2, 4, 8).save(folder / "other-model")
    lost = random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    replace(lost, meta={**lost.meta, "model": {"name": "./lost-model"}}).save(folder / "lost")
    write_records(folder / "good.jsonl", rl.Dataset("good", STATEMENTS))
    return folder


@pytest.mark.parametrize("typed", USAGE, ids=[typed.line for typed in USAGE])
def test_one_sentence_and_a_status(typed, place, monkeypatch, command_line):
    monkeypatch.chdir(place)
    before = read_files(place)
    status, out, err = command_line(*typed.arguments)
    assert status == typed.status, err
    assert typed.says in " ".join((out + err).split())
    assert "Traceback" not in out + err
    # What typer itself refuses is drawn in a box; `doctor` prints a table. All else is one line, not a page.
    if "Usage: " not in err and not typed.line.startswith("doctor"):
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("radiant-lens: ")
        assert len(lines[0]) < LONGEST
    assert read_files(place) == before


# Stopped from outside, and disks that fill up: the good file stays, and nothing else is left


def stopping(number: int) -> Callable[..., None]:
    def stop(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal came too late")

    return stop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("when", ["generating", "half-way through a file"])
def test_stopped(number, status, when, place, monkeypatch, command_line):
    monkeypatch.chdir(place)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def half(tensors, path):
        path.write_bytes(b"half")
        stopping(number)()

    monkeypatch.setattr(generation, "generate_tokens", stopping(number))
    monkeypatch.setattr(_files, "save_file", half)
    before = read_files(place)
    line = "generate hello" if when == "generating" else "collect --data good.jsonl --out cache"
    code, _, err = command_line(*line.split())
    assert code == status
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}; what was complete is kept" in err
    assert "Traceback" not in err
    assert read_files(place) == before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("line", ["collect --data good.jsonl --out cache", "report --steering steering --out file"])
def test_a_disk_that_fills_up(line, place, monkeypatch, command_line):
    monkeypatch.chdir(place)
    before = read_files(place)
    with files_no_larger_than(1000):
        status, _, err = command_line(*line.split())
    assert status == 1
    assert "cannot be written (" in err and "what was there is unchanged. Free some space, or choose" in err
    assert "Traceback" not in err
    assert read_files(place) == before
    rl.HeadCache.load(place / "cache")


def test_no_space_left_at_any_kind_of_file(place, monkeypatch, gaussian_cache):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files, "save_file", full)
    monkeypatch.setattr(_files.os, "fdopen", full)
    before = read_files(place)
    for save in (gaussian_cache(4).save, rl.Report("title", "page").save):
        with pytest.raises(OutputError, match="cannot be written .No space left on device.; what was there"):
            save(place / ("cache" if "Cache" in repr(save) else "report.html"))
    assert read_files(place) == before


def test_limits_are_felt(tmp_path):
    """The twin of the full disk: without the limit the same bytes are written."""
    with files_no_larger_than(1000), pytest.raises(OSError, match="File too large"):
        (tmp_path / "a").write_bytes(bytes(2000))
    (tmp_path / "a").write_bytes(bytes(2000))
    assert (tmp_path / "a").stat().st_size == 2000
