"""Saved steerings: their meta data and card, other models, and the Hub (its calls replaced)."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens._files import FORMAT_VERSION
from radiant_lens.errors import ArtefactError, InvalidArgumentError, ModelMismatchError
from radiant_lens.models.identity import signature
from radiant_lens.steering.maps import Certificate
from radiant_lens.steering.model_card import model_card
from radiant_lens.tiny import model_folder


def test_a_saved_steering_records_its_provenance(steering, experiment, tmp_path):
    path = steering.save(tmp_path / "mine", metrics={"correct": {"value": 0.7, "low": 0.6, "high": 0.8}})
    saved = json.loads((path / "meta.json").read_text())
    meta = saved["meta"]
    assert saved["format"] == FORMAT_VERSION
    assert saved["hook"] == "blocks.{layer}.attn.hook_z"
    assert meta["model"]["name"] == "tiny"
    assert {"revision", "config", "weights", "dtype"} <= set(meta["model"])
    assert meta["model"]["config"]["hidden_size"] == 192
    assert len(meta["data_hash"]) == 16
    assert meta["split_seed"] == experiment.detector.seed
    assert meta["detector"]["fnr_weight"] == experiment.detector.fnr_weight
    assert meta["policy"]["name"] == "radiant"
    assert all({"method", "gap", "slack"} <= set(c) for c in saved["certificates"])
    site = steering.sites[0]
    assert meta["metrics"]["detector"][str(site)]["risk"] == pytest.approx(float(experiment.detector.head_risk_[site]))
    assert meta["metrics"]["correct"]["low"] == 0.6
    assert rl.Steering.load(path).meta == meta
    card = (path / "README.md").read_text()
    for text in ("library_name: radiant-lens", "tiny", str(site), "hook_z", meta["data_hash"], "least slack", '"low"'):
        assert text in card
    assert "base_model" not in card
    renamed = replace(steering, meta={**meta, "model": {**meta["model"], "name": "owner/model"}})
    assert "base_model: owner/model" in (renamed.save(tmp_path / "other") / "README.md").read_text()


def test_a_card_gives_known_provenance_and_marks_the_rest_as_not_known(steering):
    known = {
        "model": {"name": "a/b", "architecture": "GPT2LMHeadModel", "revision": "0f0f", "dtype": "bfloat16"},
        "policy": {"name": "mine", "of": "Größe"},
        "detector": {"loss": "smooth"},
        "data": "facts-7",
        "positions": "last",
        "data_hash": "12ab",
        "split_seed": 17,
    }
    certificates = (Certificate("one", gap=1e-9, slack=0.5), Certificate("two", slack=0.25), Certificate("one"))
    card = model_card(replace(steering, meta=known, certificates=certificates))
    for row in (
        "| model | `a/b` (GPT2LMHeadModel), revision 0f0f |",
        "| dtype of the activations | bfloat16 |",
        "| data | facts-7, positions last, hash 12ab |",
        "| split seed | 17 |",
        "| solver | one, two; worst relative gap 1.0e-09; least slack 2.5e-01 |",
        "# Steering of a/b: mine",
    ):
        assert row in card.splitlines()
    settings = card.split("```json\n")[1].split("```")[0]
    assert json.loads(settings) == {"policy": known["policy"], "detector": known["detector"]}
    assert "Größe" in settings
    card = model_card(replace(steering, meta={}, certificates=(Certificate("one"),)))
    for row in (
        "| model | `?` (?), revision not known |",
        "| dtype of the activations | not known |",
        "| data | not known, positions not known, hash not known |",
        "| split seed | not known |",
        "| solver | one |",
        "# Steering of ?: ?",
    ):
        assert row in card.splitlines()
    assert '"detector": {}' in card and "## Metrics" not in card


def test_other_data_has_another_hash(experiment):
    hashes = [
        rl.MeanShiftPolicy(heads=3).fit(cache, experiment.detector).meta["data_hash"]
        for cache in (
            experiment.train_cache,
            experiment.train_cache,
            experiment.train_cache.split((0.5, 0.5), seed=0)[0],
        )
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_metrics_that_json_cannot_hold_are_refused(steering, tmp_path):
    for value in (torch.zeros(1), float("nan")):
        with pytest.raises(InvalidArgumentError, match="`metrics` must be what JSON can hold"):
            steering.save(tmp_path / "mine", metrics={"correct": value})
    assert not (tmp_path / "mine").exists()


def test_another_model_is_refused_with_the_difference(steering):
    plain = AutoModelForCausalLM.from_pretrained(model_folder())
    with rl.steer(plain, steering):
        pass
    plain.config.rms_norm_eps = 0.5
    with pytest.raises(ModelMismatchError, match=r"config.rms_norm_eps = 1e-0\d; 'tiny' has 0.5"):
        with rl.steer(plain, steering):
            pass
    plain = AutoModelForCausalLM.from_pretrained(model_folder())
    with torch.no_grad():
        plain.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    assert signature(plain)["config"] == steering.meta["model"]["config"]
    with pytest.raises(ModelMismatchError, match="made for model 'tiny' with content"):
        with rl.steer(plain, steering):
            pass
    with rl.steer(plain, steering, allow_mismatch=True):
        pass


@pytest.mark.parametrize(("key", "value"), [("architecture", {}), ("config", 5), ("content", 5), ("content", [])])
def test_a_model_whose_description_is_nonsense_is_refused(steering, model, key, value):
    odd = replace(steering, meta={**steering.meta, "model": {**steering.meta["model"], key: value}})
    with pytest.raises(ModelMismatchError, match=f"with {key} = {re.escape(repr(value))}; 'tiny' has"):
        with rl.steer(model, odd):
            pass


def test_steerings_of_the_first_format_still_load(steering, tmp_path):
    path = steering.save(tmp_path / "old")
    saved = json.loads((path / "meta.json").read_text())
    del saved["hook"]
    for key in ("data_hash", "split_seed", "metrics"):
        del saved["meta"][key]
    saved["meta"]["model"] = {
        **{key: saved["meta"]["model"][key] for key in ("name", "architecture", "n_layers", "n_heads", "d_head")},
        "weights": "0123456789abcdef",
    }
    (path / "meta.json").write_text(json.dumps(saved))
    (path / "README.md").unlink()
    old = rl.Steering.load(path)
    plain = AutoModelForCausalLM.from_pretrained(model_folder())
    with pytest.raises(ModelMismatchError, match="by an earlier version, whose hash of weights cannot be compared"):
        with rl.steer(plain, old):
            pass
    with rl.steer(plain, old, allow_mismatch=True):
        pass
    assert (old.save(tmp_path / "again") / "README.md").is_file()


def test_another_hook_is_refused(steering, tmp_path):
    path = steering.save(tmp_path / "mine")
    saved = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**saved, "hook": "blocks.{layer}.hook_resid_post"}))
    with pytest.raises(ArtefactError, match="it edits 'blocks.{layer}.hook_resid_post'"):
        rl.Steering.load(path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub as a folder; the calls are recorded."""
    calls = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create_repo", repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=repo_id, __str__=lambda: repo_id)

        def create_branch(self, repo_id, *, branch, exist_ok):
            calls.append(("create_branch", repo_id, branch, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            calls.append(("upload_folder", repo_id, revision, commit_message))
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append(("snapshot_download", repo_id, revision, tuple(allow_patterns)))
        if not (tmp_path / "hub" / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("there is no such repository")
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_an_uploaded_steering_can_be_downloaded(steering, hub):
    steering.push_to_hub("me/kinder", private=True, revision="v2", metrics={"kl": 0.1})
    loaded = rl.Steering.from_pretrained("me/kinder", revision="v2")
    assert loaded.sites == steering.sites
    assert loaded.meta["metrics"]["kl"] == 0.1
    assert hub == [
        ("create_repo", "me/kinder", True, True),
        ("create_branch", "me/kinder", "v2", True),
        ("upload_folder", "me/kinder", "v2", f"Upload {steering!r}"),
        ("snapshot_download", "me/kinder", "v2", ("tensors.safetensors", "meta.json", "README.md")),
    ]


def test_the_main_branch_is_not_created(steering, hub):
    steering.push_to_hub("me/kinder")
    assert [call[0] for call in hub] == ["create_repo", "upload_folder"]


def test_a_folder_needs_no_hub(steering, hub, tmp_path):
    assert rl.Steering.from_pretrained(steering.save(tmp_path / "here")).sites == steering.sites
    assert not hub


def test_a_hub_that_fails_is_one_sentence(hub):
    with pytest.raises(
        ArtefactError, match=r"'me/nothing' could not be downloaded .*there is no such repository.*use `save`"
    ):
        rl.Steering.from_pretrained("me/nothing")


def test_a_name_that_is_not_a_repository_is_refused():
    with pytest.raises(ArtefactError, match="'a/b/c' could not be downloaded"):
        rl.Steering.from_pretrained("a/b/c")
