"""Mistakes at `load_model`, and downloads that break off."""

from __future__ import annotations

import shutil
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from bad_input.mistakes import STATEMENTS, Wrong, assert_refused, each
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import radiant_lens as rl
from radiant_lens.errors import (
    ArtefactError,
    DataError,
    InvalidArgumentError,
    ModelLoadError,
    UnknownNameError,
)
from radiant_lens.tiny import model_folder


def nameless() -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    model.config._name_or_path = ""
    return model


MODELS = [
    Wrong("a typo", lambda w: rl.load_model("tinny"), UnknownNameError, "did you mean 'tiny'"),
    Wrong("a number", lambda w: rl.load_model(3), InvalidArgumentError, "`model` must be a name, a folder"),
    Wrong("a folder that is not there", lambda w: rl.load_model("./none"), ModelLoadError, "no folder './none'"),
    Wrong("a folder without a model", lambda w: rl.load_model(w.place), ModelLoadError, "it has no config.json"),
    Wrong("half a configuration", lambda w: rl.load_model(w.place / "a-model"), ModelLoadError, "cannot be read"),
    Wrong("out of the network's reach", lambda w: rl.load_model("some/model"),
          ModelLoadError, "download it elsewhere and pass its folder; 'tiny' needs none"),
    Wrong("an unknown device", lambda w: rl.load_model("tiny", device="gpu"),
          InvalidArgumentError, "`device` must be such as 'cpu' or 'cuda:0'; got 'gpu'"),
    Wrong("a device that is not there", lambda w: rl.load_model("tiny", device="cuda:99"),
          InvalidArgumentError, "`device` 'cuda:99' does not exist: torch sees"),
    Wrong("a model without a tokenizer", lambda w: rl.load_model(nameless()),
          InvalidArgumentError, "`tokenizer` must be given"),
]  # fmt: skip


@each(MODELS)
def test_mistakes_raise_their_error(wrong, at_hand):
    assert_refused(wrong, at_hand)


BROKEN_OFF = [ConnectionResetError("reset by peer"), httpx.ReadError("peer closed connection"), TimeoutError("slow")]


@pytest.mark.parametrize("error", BROKEN_OFF, ids=lambda error: type(error).__name__)
def test_a_download_that_breaks_off(error, at_hand, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(TransformerBridge, "boot_transformers", broken)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr("datasets.load_dataset", broken)
    for wrong in (
        Wrong("a model", lambda w: rl.load_model("tiny"), ModelLoadError, str(error)),
        Wrong("a steering", lambda w: rl.Steering.from_pretrained("me/mine"), ArtefactError, str(error)),
        Wrong("data", lambda w: rl.load_dataset("truthfulqa"), DataError, str(error)),
    ):
        assert_refused(wrong, at_hand)


def test_a_folder_without_a_tokenizer(tmp_path):
    shutil.copytree(model_folder(), tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(ModelLoadError, match="token"):
        rl.load_model(tmp_path / "bare")


def test_a_tokenizer_without_padding_or_end_is_no_obstacle(model, foreign_folder):
    """Padding is masked, so its token does not matter."""
    tokenizer = AutoTokenizer.from_pretrained(foreign_folder)
    expected = rl.collect(rl.load_model(foreign_folder), STATEMENTS).z
    tokenizer.pad_token = tokenizer.eos_token = None
    bare = rl.load_model(AutoModelForCausalLM.from_pretrained(foreign_folder), tokenizer=tokenizer)
    torch.testing.assert_close(rl.collect(bare, STATEMENTS).z, expected, rtol=1e-4, atol=1e-5)
