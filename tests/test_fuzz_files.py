"""Files that anything may have happened to: what is loaded is what was saved, or the error is a documented one."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from conftest import make_cache
from fuzz.fuzz_readers import READERS, STUDY, Reader, changed, changed_json, data_ways, loads
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens.datasets.readers.parsing import gather
from radiant_lens.errors import ArtefactError, DataError, RadiantError
from radiant_lens.studies import read_study

FILES = ("meta.json", "tensors.safetensors")


class Saved(RuleBasedStateMachine):
    """A folder that is saved, replaced, damaged and read in any order."""

    def make(self, seed):
        raise NotImplementedError

    def load(self):
        raise NotImplementedError

    def tensors(self, thing):
        raise NotImplementedError

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed):
        self.parent = Path(tempfile.mkdtemp())
        self.path = self.parent / "it"
        self.write(seed)

    def write(self, seed):
        self.saved = self.make(seed)
        self.saved.save(self.path)
        self.sound = self.same_tensors = True

    def teardown(self):
        shutil.rmtree(self.parent)

    @rule(seed=st.integers(0, 3))
    def replace(self, seed):
        try:
            self.write(seed)
        except ArtefactError:
            # Nobody knows whose it is: it is left alone.
            assert not self.sound
            shutil.rmtree(self.path)
            self.write(seed)

    @precondition(lambda self: self.sound)
    @rule()
    def save_what_was_loaded(self):
        self.load().save(self.path)

    @rule(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def corrupt_a_byte(self, name, where, flip):
        data = bytearray(self.content(name))
        data[int(where * len(data))] ^= flip
        self.damage(name, bytes(data))

    @rule(name=st.sampled_from(FILES), keep=st.floats(0, 1, exclude_max=True))
    def truncate(self, name, keep):
        data = self.content(name)
        self.damage(name, data[: int(keep * len(data))])

    @rule(name=st.sampled_from(FILES))
    def delete(self, name):
        (self.path / name).unlink(missing_ok=True)
        self.sound = False

    @rule(seed=st.integers(0, 10**6))
    def change_a_value(self, seed):
        data = changed_json(self.content("meta.json"), seed)
        assume(data is not None)
        self.damage("meta.json", data)

    def content(self, name):
        assume((self.path / name).is_file() and (self.path / name).stat().st_size)
        return (self.path / name).read_bytes()

    def damage(self, name, data):
        self.sound = self.sound and data == (self.path / name).read_bytes()
        (self.path / name).write_bytes(data)

    @invariant()
    def what_is_loaded_is_what_was_saved(self):
        try:
            loaded = self.load()
        except ArtefactError:
            assert not self.sound
            return
        for one, other in zip(self.tensors(loaded), self.tensors(self.saved), strict=True):
            assert torch.equal(one, other)
        assert repr(loaded)
        if self.sound:
            assert loaded.meta == self.saved.meta
        assert {p.name for p in self.parent.iterdir()} == {"it"}


class SavedCache(Saved):
    def make(self, seed):
        return make_cache(4, seed=seed)

    def load(self):
        return rl.HeadCache.load(self.path)

    def tensors(self, cache):
        return cache.z, cache.labels, cache.text_index, cache.positions


class SavedSteering(Saved):
    def make(self, seed):
        return random_steering(2, 3, 4, seed=seed, gate="vote", kind=("rank_one", "dense")[seed % 2])

    def load(self):
        return rl.Steering.load(self.path)

    def tensors(self, steering):
        return [*steering.scores.tensors().values(), *steering.head_maps.tensors().values()]


TestSavedCache = pytest.mark.filterwarnings("default")(SavedCache.TestCase)
TestSavedSteering = pytest.mark.filterwarnings("default")(SavedSteering.TestCase)
for case in (TestSavedCache, TestSavedSteering):
    case.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)


class Started(NamedTuple):
    """A reader, the good input that the fuzzer starts from, and the folder that both use."""

    reader: Reader
    seeds: list[bytes]
    folder: Path


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Of each target, made once: to make those of data takes longer than to read them."""

    @cache
    def start(target):
        reader, folder = READERS[target](), tmp_path_factory.mktemp(target)
        return Started(reader, list(reader.seeds(folder)), folder)

    return start


@pytest.mark.parametrize("target", sorted(READERS))
def test_what_the_fuzzer_starts_from_can_be_read(target, started):
    reader, seeds, folder = started(target)
    assert seeds
    for seed in seeds:
        reader.read(seed, folder)


def test_the_fuzzer_starts_from_every_way_to_read_data(started):
    assert {seed[1] for seed in started("data").seeds} == set(range(len(data_ways())))


@pytest.mark.parametrize("target", sorted(READERS))
def test_odd_values_and_bytes_give_documented_errors(target, started):
    reader, seeds, folder = started(target)
    random = Random(0)
    n_loaded = n_refused = 0
    for i in range(300):
        data = random.choice(seeds)
        new = changed_json(data, i) if i % 3 else None
        if new is None:
            cut = random.randrange(3, len(data))
            new = data[:cut] + random.randbytes(random.randrange(3)) + data[cut + random.randrange(3) :]
        if new == data:
            continue
        loaded = loads(reader, new, folder)
        n_loaded += loaded
        n_refused += not loaded
    # Changes that all load, or that are all refused, test one half of a reader alone.
    assert n_loaded + n_refused > 250
    assert min(n_loaded, n_refused) >= 10


# What the fuzzer found.


def test_tensors_that_were_changed_are_not_loaded(tmp_path):
    path = make_cache(3).save(tmp_path / "it")
    tensors = path / "tensors.safetensors"
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="is damaged: tensors.safetensors is not what was saved"):
        rl.HeadCache.load(path)
    assert len(rl.HeadCache.load(path, verify=False)) == 6
    tensors.write_bytes(good)
    assert len(rl.HeadCache.load(path)) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_names": ["a", "b", 1, "d", "e", "f"]}, "`group_names` must hold str alone; got 1"),
        ({"texts": "abcdef"}, "`texts` must be a list; got 'abcdef'"),
        ({"meta": None}, "`meta` must hold dict alone; got None"),
    ],
)
def test_a_cache_of_other_values_is_incomplete(tmp_path, change, words):
    path = make_cache(3).save(tmp_path / "it")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ArtefactError, match=words):
        rl.HeadCache.load(path)


def test_every_head_needs_its_certificate(tmp_path):
    path = random_steering(2, 2, 3).save(tmp_path / "it")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "certificates": meta["certificates"][1:]}))
    with pytest.raises(ArtefactError, match="4 heads need as many certificates; got 3"):
        rl.Steering.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": 0.5}, "`policy` must be a dict; got float 0.5"),
        ({"model": None}, "`model` must be a dict; got NoneType"),
        ({"seen_groups": [1]}, "`seen_groups` must hold str alone; got 1"),
        ({"gamma": "much"}, "`gamma` must be an int or a float or a NoneType; got str 'much'"),
    ],
)
def test_a_steering_of_other_provenance_is_incomplete(tmp_path, change, words):
    path = random_steering(2, 2, 3).save(tmp_path / "it")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "meta": {**meta["meta"], **change}}))
    with pytest.raises(ArtefactError, match=f"is incomplete: {words}"):
        rl.Steering.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"parts": {}},
        {"parts": {"metric": [1], "group": ["g"], "numerator": [1], "denominator": [1]}},
        {"parts": {"metric": ["kl"], "group": ["g"], "numerator": ["x"], "denominator": [1]}},
        {"parts": {"metric": ["kl"], "group": ["g"], "numerator": [1], "denominator": [-1]}},
        {"parts": {"metric": ["kl"], "group": ["g"], "numerator": [1], "denominator": [float("nan")]}},
        {"table": {"prompt_index": [0]}},
        {"settings": []},
        {"prompts": []},
    ],
)
def test_an_evaluation_of_other_values_is_damaged(tmp_path, change):
    reader = READERS["evaluation"]()
    (good,) = reader.seeds(tmp_path)
    reader.read(good, tmp_path)
    with pytest.raises(ArtefactError, match="The saved evaluation at .* is damaged"):
        reader.read(json.dumps({**json.loads(good), **change}).encode(), tmp_path)


@pytest.mark.parametrize("wrong", ["grid: {1: 2}", "arms: 3", "arms: [1]", "seeds: 3", "seeds: {1: 2}"])
def test_a_study_of_other_values_cannot_be_made(tmp_path, wrong):
    path = tmp_path / "s.yaml"
    path.write_text(STUDY)
    read_study(path)
    key = wrong.split(":")[0]
    path.write_text("\n".join(["arms: [{name: RADIANT}]"] * (key != "arms") + [wrong]))
    with pytest.raises(RadiantError):
        read_study(path)


def test_changes_change():
    value = {"a": [1, 2], "b": {"c": "d"}}
    assert sum(changed(value, Random(i)) != value for i in range(100)) > 80
    assert value == {"a": [1, 2], "b": {"c": "d"}}


DEEP, LONG = "[" * 100_000 + "]" * 100_000, "9" * 5000
ROW = '{"text": "A: x", "label": 1, "question": %s}'
TOO_MUCH = [(DEEP, "nested too deeply"), (LONG, "4300 digits")]


@pytest.mark.parametrize(("value", "words"), TOO_MUCH, ids=["deep", "long"])
@pytest.mark.parametrize(
    ("ending", "content", "place"), [(".json", f"[{ROW}]", ""), (".jsonl", f"\n{ROW}\n", "line 2: ")]
)
def test_data_too_deep_or_too_long_is_refused(tmp_path, ending, content, place, value, words):
    path = tmp_path / f"data{ending}"
    path.write_text(content % '"who?"')
    assert len(rl.load_dataset(path).statements) == 1
    path.write_text(content % value)
    with pytest.raises(DataError, match=rf"data\{ending} cannot be read as \{ending}: {place}.*{words}"):
        rl.load_dataset(path)


def test_a_row_that_is_too_deep_to_be_shown_is_a_bad_row(tmp_path):
    def read(row, place):
        raise RecursionError

    with pytest.raises(DataError, match="it has rows that cannot be used \\(1\\): row 1: it is nested too deeply"):
        gather([("row 1", {})], read, name="it", columns={}, required={}, on_bad_rows="raise")


@pytest.mark.parametrize(("value", "words"), TOO_MUCH, ids=["deep", "long"])
@pytest.mark.parametrize("target", ["cache", "steering"])
def test_meta_data_too_deep_or_too_long_is_damaged(tmp_path, target, value, words):
    reader = READERS[target]()
    list(reader.seeds(tmp_path))
    with pytest.raises(ArtefactError, match=f"is damaged: .*{words}"):
        reader.read(b'\0{"format": 1, "x": %s}' % value.encode(), tmp_path)


@pytest.mark.parametrize(("value", "words"), TOO_MUCH, ids=["deep", "long"])
def test_an_evaluation_too_deep_or_too_long_cannot_be_read(tmp_path, value, words):
    with pytest.raises(ArtefactError, match=f"cannot be read: .*{words}"):
        READERS["evaluation"]().read(value.encode(), tmp_path)


@pytest.mark.parametrize(
    ("value", "words"), [*TOO_MUCH, ("2026-13-45", "month must be in 1..12"), ("[", "parsing a flow node")]
)
def test_a_study_of_values_that_yaml_cannot_make_is_refused(tmp_path, value, words):
    with pytest.raises(DataError, match=f"Study file 's.yaml' cannot be read: .*{words}"):
        READERS["study"]().read(f"n_samples: {value}".encode(), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), None], ids=["no number", "one too few"])
def test_maps_that_are_not_one_finite_map_for_each_head_are_refused(tmp_path, value):
    steering = random_steering(2, 2, 3)
    maps = steering.head_maps
    broken = maps.take(torch.arange(3)) if value is None else replace(maps, shift=maps.shift * value)
    path = replace(steering, head_maps=broken).save(tmp_path / "it")
    words = "`write` must have axes" if value is None else "`shift` must be finite"
    with pytest.raises(ArtefactError, match=f"is incomplete: {words}"):
        rl.Steering.load(path)
