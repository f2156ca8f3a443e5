"""Detectors on disk: all figures come back, and a damaged folder is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import radiant_lens as rl
from radiant_lens.detectors import load_detector, save_detector
from radiant_lens.errors import ArtefactError


@pytest.fixture(scope="module")
def detector(gaussian_cache):
    return rl.RiskAwareDetector(fnr_weight=1.5, seed=3).fit(gaussian_cache(60), gaussian_cache(60, seed=1))


@pytest.fixture
def folder(detector, tmp_path):
    return save_detector(detector, tmp_path / "detector")


def test_everything_comes_back(detector, folder, gaussian_cache):
    again, held_out = load_detector(folder), gaussian_cache(9, seed=2)
    assert again.get_params() == detector.get_params()
    assert set(vars(again)) == set(vars(detector))
    assert str(again) == str(detector)
    assert again.to_dataframe().equals(detector.to_dataframe())
    assert torch.equal(again.predict(held_out), detector.predict(held_out))
    assert (again.training_groups_, again.collected_layers_) == (detector.training_groups_, detector.collected_layers_)
    # It is as good as the fitted one: a policy takes it.
    one, other = (rl.RadiantPolicy(heads=2).fit(gaussian_cache(60), d) for d in (again, detector))
    assert one.sites == other.sites


def spoil(folder, *, tensors=None, **meta):
    saved = json.loads((folder / "meta.json").read_text())
    if tensors is not None:
        save_file({**load_file(folder / "tensors.safetensors"), **tensors}, folder / "tensors.safetensors")
    # Without a hash, as a hand-made folder has none.
    (folder / "meta.json").write_text(json.dumps({**saved, "sha256": "not taken", **meta}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"magic": 1}}, "magic"),
        ({"parameters": None}, "is incomplete"),
        ({"fitted": {}}, "least_p_value_"),
        ({"tensors": {"biases_": torch.zeros(9)}}, "`biases_` must have axes `layer head`"),
        ({"tensors": {"weights_": torch.full((2, 3, 4), torch.nan)}}, "`weights_` must be finite"),
    ],
    ids=["parameter", "no parameters", "no figures", "shape", "NaN"],
)
def test_a_damaged_folder_is_refused(changes, words, folder):
    spoil(folder, **changes)
    with pytest.raises(ArtefactError, match="The saved detector at .* is incomplete") as raised:
        load_detector(folder)
    assert words in str(raised.value)


def test_other_folders_are_refused(folder, tmp_path, gaussian_cache):
    with pytest.raises(ArtefactError, match="There is no folder .* with a saved detector: check the path"):
        load_detector(tmp_path / "none")
    gaussian_cache(4).save(tmp_path / "cache")
    with pytest.raises(ArtefactError, match="is not a saved detector"):
        load_detector(tmp_path / "cache")
    whole = (folder / "tensors.safetensors").read_bytes()
    (folder / "tensors.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="is damaged"):
        load_detector(folder)
