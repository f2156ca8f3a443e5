"""Artefacts on disk survive interruption, and nothing else is ever replaced."""

from __future__ import annotations

import json
import locale
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from radiant_lens import _files
from radiant_lens._files import FORMAT_VERSION, load_folder, save_folder, write_text
from radiant_lens.errors import ArtefactError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


@pytest.fixture
def saved(tmp_path):
    return save_folder(tmp_path / "it", "thing", TENSORS, {"name": "old"})


def rewrite_meta(path, **changes):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, **changes}))


def test_what_is_saved_is_loaded(saved):
    tensors, meta = load_folder(saved, "thing")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in TENSORS.items())
    assert meta == {"format": FORMAT_VERSION, "kind": "thing", "name": "old"}


def test_a_folder_of_the_same_kind_is_replaced_and_nothing_is_left_beside(saved):
    save_folder(saved, "thing", {"a": torch.zeros(1)}, {"name": "new"})
    tensors, meta = load_folder(saved, "thing")
    assert meta["name"] == "new"
    assert list(tensors) == ["a"]
    assert os.listdir(saved.parent) == ["it"]


def test_views_and_missing_parent_folders_are_saved(tmp_path):
    turned = torch.arange(6.0).reshape(2, 3).mT
    path = save_folder(tmp_path / "new" / "deep" / "it", "thing", {"a": turned}, {})
    assert torch.equal(load_folder(path, "thing")[0]["a"], turned)


def test_other_alphabets_are_kept_whatever_the_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        path = save_folder(tmp_path / "it", "thing", TENSORS, {"name": "Ελλάδα"})
        assert load_folder(path, "thing")[1]["name"] == "Ελλάδα"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.parametrize("there", ["file", "empty folder", "other files", "other kind", "broken meta"])
def test_nothing_but_an_artefact_of_that_kind_is_replaced(tmp_path, there):
    path = tmp_path / "it"
    if there == "file":
        path.write_text("mine")
    elif there == "other kind":
        save_folder(path, "other", TENSORS, {})
    else:
        path.mkdir()
        if there != "empty folder":
            (path / ("meta.json" if there == "broken meta" else "thesis.tex")).write_text("[mine]")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtefactError, match="exists and is not a saved thing; it is left alone, choose another path"):
        save_folder(path, "thing", TENSORS, {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert os.listdir(tmp_path) == ["it"]


# Interruptions


def assert_old_is_intact(saved):
    tensors, meta = load_folder(saved, "thing")
    assert meta["name"] == "old"
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert os.listdir(saved.parent) == ["it"]


def test_a_write_that_is_interrupted_leaves_the_old_one(saved, monkeypatch):
    def half(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_files, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_folder(saved, "thing", {"a": torch.zeros(1)}, {"name": "new"})
    assert_old_is_intact(saved)


def test_meta_data_that_cannot_be_written_leave_the_old_one(saved):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_folder(saved, "thing", {"a": torch.zeros(1)}, {"name": object()})
    assert_old_is_intact(saved)


def test_an_interruption_between_the_two_renames_leaves_the_old_one(saved, monkeypatch):
    replace, interrupted = os.replace, []

    def once(source, target):
        if target == saved and not interrupted:
            interrupted.append(source)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(_files.os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        save_folder(saved, "thing", {"a": torch.zeros(1)}, {"name": "new"})
    assert_old_is_intact(saved)


# Refusals when reading


def test_a_folder_without_meta_data_is_no_artefact(tmp_path):
    message = f"^{re.escape(repr(str(tmp_path)))} is not a saved thing: it has no meta.json.$"
    with pytest.raises(ArtefactError, match=message):
        load_folder(tmp_path, "thing")


def test_a_missing_folder_is_refused_with_advice(tmp_path):
    path = str(tmp_path / "it")
    message = f"^There is no folder {re.escape(repr(path))} with a saved thing: check the path.$"
    with pytest.raises(ArtefactError, match=message):
        load_folder(path, "thing")


def test_another_kind_is_refused(saved):
    with pytest.raises(ArtefactError, match="is not a saved head cache"):
        load_folder(saved, "head cache")


def test_a_later_format_is_refused_with_advice(saved):
    rewrite_meta(saved, format=FORMAT_VERSION + 1)
    with pytest.raises(ArtefactError, match=f"has format {FORMAT_VERSION + 1}; .* update radiant-lens"):
        load_folder(saved, "thing")


def test_a_later_format_is_named_even_where_its_files_have_other_names(saved):
    rewrite_meta(saved, format=FORMAT_VERSION + 1)
    (saved / "tensors.safetensors").rename(saved / "shard-1.safetensors")
    with pytest.raises(ArtefactError, match="update radiant-lens"):
        load_folder(saved, "thing")


def test_a_hash_that_was_lost_is_missed_but_not_in_the_first_format(saved):
    meta = json.loads((saved / "meta.json").read_text())
    del meta["sha256"]
    (saved / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ArtefactError, match="damaged: tensors.safetensors is not what was saved"):
        load_folder(saved, "thing")
    rewrite_meta(saved, format=1)
    assert load_folder(saved, "thing")[0].keys() == TENSORS.keys()


@pytest.mark.parametrize("version", [None, "1"])
def test_a_format_that_is_no_number_is_refused(saved, version):
    rewrite_meta(saved, format=version)
    with pytest.raises(ArtefactError, match=f"has format {version!r}"):
        load_folder(saved, "thing")


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "kind": "thi', b"\xff\xfe\x00"])
def test_damaged_meta_data_are_called_damaged(saved, content):
    (saved / "meta.json").write_bytes(content)
    with pytest.raises(ArtefactError, match="The saved thing at .* is damaged"):
        load_folder(saved, "thing")


def test_meta_data_of_another_shape_are_refused(saved):
    (saved / "meta.json").write_text("[1, 2]")
    with pytest.raises(ArtefactError, match="is not a saved thing"):
        load_folder(saved, "thing")


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_truncated_tensors_are_called_damaged(saved, keep):
    file = saved / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtefactError, match="The saved thing at .* is damaged"):
        load_folder(saved, "thing")


def test_missing_tensors_are_called_damaged(saved):
    (saved / "tensors.safetensors").unlink()
    with pytest.raises(ArtefactError, match="The saved thing at .* is damaged"):
        load_folder(saved, "thing")


def test_pickles_are_never_read(saved):
    torch.save(TENSORS, saved / "tensors.safetensors")
    with pytest.raises(ArtefactError, match="is damaged"):
        load_folder(saved, "thing")
    save_file(TENSORS, saved / "tensors.safetensors")
    assert load_folder(saved, "thing")[1]["name"] == "old"


# Text files


def test_text_is_written_as_utf8_into_new_folders(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "Ελλάδα\n")
    assert path.read_bytes() == "Ελλάδα\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


# Permissions


def test_everything_that_is_saved_can_be_read_by_others(tmp_path):
    before = os.umask(0o077)
    try:
        folder = save_folder(tmp_path / "it", "thing", TENSORS, {}, card="a card")
        save_folder(folder, "thing", TENSORS, {}, card="a card")
        text = write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (*folder.iterdir(), text)}
    assert modes == dict.fromkeys(("tensors.safetensors", "meta.json", "README.md", "a.txt"), 0o644)
    assert folder.stat().st_mode & 0o777 == 0o755
